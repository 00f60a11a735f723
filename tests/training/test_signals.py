import signal

from clfew.training.signals import StopRequest


def test_a_signal_inside_is_passed_on_to_the_outer_request():
    with StopRequest() as outer:
        with StopRequest() as first:
            signal.raise_signal(signal.SIGTERM)
            assert first.signal == signal.SIGTERM
        assert outer.signal == signal.SIGTERM
        with StopRequest() as second:  # It starts with the signal: its first step is its last.
            assert second.signal == signal.SIGTERM


def test_an_earlier_signal_is_known_inside():
    with StopRequest() as outer:
        signal.raise_signal(signal.SIGINT)
        assert outer.signal == signal.SIGINT
        with StopRequest() as inner:
            assert inner.signal == signal.SIGINT
