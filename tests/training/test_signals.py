import signal

from clfew.training.signals import StopRequest


def test_what_comes_inside_another_one_is_left_to_it():
    with StopRequest() as outer:
        with StopRequest() as first:
            signal.raise_signal(signal.SIGTERM)
            assert first.signal == signal.SIGTERM
        assert outer.signal == signal.SIGTERM
        with StopRequest() as second:  # Begins with it: its first step is its last.
            assert second.signal == signal.SIGTERM


def test_what_came_before_is_known_inside():
    with StopRequest() as outer:
        signal.raise_signal(signal.SIGINT)
        assert outer.signal == signal.SIGINT
        with StopRequest() as inner:
            assert inner.signal == signal.SIGINT
