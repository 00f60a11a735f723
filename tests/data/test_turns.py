"""Large images take turns, over threads and processes."""

import io
import os
import subprocess
import sys
import threading
import time

import pytest
from PIL import Image

from clfew.data import decode, turns
from clfew.data.turns import DECODING_BYTES, LARGE, MOST_TURNS, Turns


@pytest.fixture
def few(monkeypatch):
    """few(gigabytes) makes turns for a machine with so much memory available."""

    def make(gigabytes):
        monkeypatch.setattr(turns, "memory_available", lambda: int(gigabytes * 2**30))
        return Turns()

    return make


def left(some):
    return len(os.read(some.pipe[0], 100))


@pytest.mark.parametrize(("gigabytes", "count"), [(0.5, 1), (4, 2), (9, 4), (10_000, MOST_TURNS)])
def test_there_are_as_many_turns_as_fit_into_memory(few, gigabytes, count):
    assert left(few(gigabytes)) == count
    assert count == 1 or count * DECODING_BYTES <= gigabytes * 2**30


def test_the_memory_is_known_here():
    assert 2**20 < turns.memory_available() < 2**50


def test_no_more_large_images_are_decoded_at_a_time_than_there_are_turns(few):
    some, lock, running, most = few(4), threading.Lock(), [0], [0]

    def work():
        with some.turn(LARGE + 1):
            with lock:
                running[0] += 1
                most[0] = max(most[0], running[0])
            time.sleep(0.02)
            with lock:
                running[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 2 and left(some) == 2


def test_small_images_wait_for_nobody(few):
    some = few(2)
    with some.turn(LARGE + 1), some.turn(LARGE):
        pass
    assert left(some) == 1


def test_a_turn_comes_back_from_an_image_that_fails(few):
    some = few(2)
    with pytest.raises(ZeroDivisionError), some.turn(LARGE + 1):
        raise ZeroDivisionError
    assert left(some) == 1


def test_a_turn_that_was_lost_with_its_process_is_not_waited_for_for_ever(few, monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE", 0.1)
    some = few(2)
    with some.turn(LARGE + 1), some.turn(LARGE + 1):  # The second goes on without one.
        pass
    assert left(some) == 1  # And gives none back.


def test_another_process_takes_its_turns_from_the_same_pipe(few):
    some = few(2)
    program = f"""
from clfew.data import turns
turns.PATIENCE = 0.2
some = turns.Turns({some.pipe})
assert some._take() == b"", "the turn is taken"
print("waited", flush=True)
input()
turns.PATIENCE = 20
with some.turn(turns.LARGE + 1):
    print("taken", flush=True)
"""
    with some.turn(LARGE + 1):
        other = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=some.pipe,
        )
        assert other.stdout.readline() == "waited\n"
    out, _ = other.communicate("\n", timeout=60)
    assert out == "taken\n" and left(some) == 1


@pytest.mark.parametrize(("format", "waits"), [("PNG", True), ("JPEG", False)])
def test_what_counts_is_what_is_decoded(monkeypatch, format, waits):
    """A large photograph is decoded at a smaller scale, and waits for nobody."""
    content, asked = io.BytesIO(), []
    Image.new("RGB", (2500, 2000)).save(content, format)

    class Noting(Turns):
        def turn(self, pixels):
            asked.append(pixels > LARGE)
            return super().turn(pixels)

    monkeypatch.setattr(decode, "turns", Noting())
    decode.load_square(content.getvalue(), 64)
    assert asked == [waits]
