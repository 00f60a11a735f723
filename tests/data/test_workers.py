import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from clfew.data import workers
from clfew.data.decode import BadImage, load_square, read_bytes
from clfew.data.workers import CHUNK, content_digest, decode_ahead


@pytest.fixture
def files(image_folder):
    """Forty files, of which two are not images and one is missing."""
    folder = image_folder({"cat": 37})
    paths = sorted(folder.rglob("*.png"))
    (folder / "cat" / "005b.png").write_bytes(b"<html>")
    (folder / "cat" / "020b.png").write_bytes(b"")
    return sorted(
        [*paths, folder / "cat" / "005b.png", folder / "cat" / "020b.png", folder / "none.png"]
    )


@pytest.fixture(params=["threads", "processes"])
def decoded_by(request, monkeypatch):
    monkeypatch.setattr(workers, "FEW", 0 if request.param == "processes" else 10**9)
    return request.param


@pytest.fixture
def started(monkeypatch):
    """The processes that were started."""
    processes = []
    original = subprocess.Popen

    def start(*args, **options):
        processes.append(original(*args, **options))
        return processes[-1]

    monkeypatch.setattr(workers.subprocess, "Popen", start)
    return processes


def check(results, files, side):
    assert [path for path, _ in results] == files
    for path, image in results:
        try:
            pixels, aspect = load_square(read_bytes(path), side)
        except BadImage as error:
            assert isinstance(image, BadImage) and str(image) == str(error)
            continue
        assert np.array_equal(image.pixels, pixels) and image.aspect == aspect
        assert image.digest == content_digest(path.read_bytes())


def test_images_are_in_order_and_equal_to_those_of_load_square(files, decoded_by, started, monkeypatch):
    many, requests, original = files * 3, [], workers._decode_in
    monkeypatch.setattr(workers, "_decode_in", lambda *rest: requests.append(rest[0]) or original(*rest))
    check(list(decode_ahead(many, read_bytes, 12, 2)), many, 12)
    assert len(started) == (2 if decoded_by == "processes" else 0)
    assert len(requests) == (-(-len(many) // CHUNK) if decoded_by == "processes" else 0)
    assert all(process.poll() is not None for process in started)


def test_large_files_are_not_held_together(files, decoded_by, monkeypatch):
    monkeypatch.setattr(workers, "_HELD_BYTES", 100)
    held = []
    original = workers._decode_together
    monkeypatch.setattr(
        workers, "_decode_together", lambda some, *rest: held.append(some) or original(some, *rest)
    )
    check(list(decode_ahead(files, read_bytes, 12, 2)), files, 12)
    sizes = [[len(content) for content in some if isinstance(content, bytes)] for some in held]
    assert len(sizes) > 5 and all(sum(some[:-1]) <= 100 for some in sizes)


def test_a_few_images_start_no_process(files, started):
    assert len(list(decode_ahead(files, read_bytes, 12, 2))) == len(files)
    assert not started


def test_processes_that_are_killed_lose_no_image(files, started, monkeypatch):
    monkeypatch.setattr(workers, "FEW", 0)
    many = files * 20
    results = []
    for number, pair in enumerate(decode_ahead(many, read_bytes, 12, 2)):
        results.append(pair)
        if number in (3, CHUNK * 8):
            started[number > 3].kill()
    check(results, many, 12)


def test_threads_decode_everything_if_no_process_can_be_started(files, monkeypatch):
    monkeypatch.setattr(workers, "FEW", 0)
    monkeypatch.setattr(sys, "executable", None)
    check(list(decode_ahead(files, read_bytes, 12, 2)), files, 12)


def test_stopping_early_leaves_no_process_behind(files, started, monkeypatch):
    monkeypatch.setattr(workers, "FEW", 0)
    images = decode_ahead(files * 20, read_bytes, 12, 2)
    next(images)
    images.close()
    assert len(started) == 2 and all(process.poll() is not None for process in started)


@pytest.mark.parametrize("count", [2, 6])
def test_only_a_bounded_number_is_decoded_ahead(files, monkeypatch, count):
    monkeypatch.setattr(workers, "FEW", 10**9)
    reads = []
    images = decode_ahead(files * 100, lambda path: reads.append(path) or read_bytes(path), 12, count)
    next(images)
    images.close()
    assert len(reads) <= max(8, 2 * count) * CHUNK


def test_processes_end_with_their_parent(tmp_path, files):
    program = f"""
import os, sys, time
from pathlib import Path
from clfew.data import workers
from clfew.data.decode import read_bytes
workers.FEW = 0
images = workers.decode_ahead([Path({str(files[0])!r})] * 2000, read_bytes, 12, 2)
next(images)
print(os.getpid(), flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    children = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    assert len(children) == 2
    os.kill(pid, signal.SIGKILL)
    parent.wait()
    for child in children:
        for _ in range(200):
            status = Path(f"/proc/{child}/status")
            if not status.exists() or "State:\tZ" in status.read_text():
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"process {child} still runs without its parent")


def test_modules_in_the_users_folder_are_not_run(files, tmp_path, monkeypatch):
    for name in ("json", "PIL", "numpy", "clfew"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('run from the wrong place')")
    monkeypatch.chdir(tmp_path)
    processes = workers._Processes(workers._Form(12, None), 1)
    assert processes.decode([files[0].read_bytes()]) is not None
    processes.close()
