"""A call of clfew from Python leaves the program as it found it."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

import clfew
from clfew.data import workers
from clfew.runs import files
from clfew.training import device
from clfew.training.signals import StopRequest


@pytest.fixture
def trained(images, tmp_path, monkeypatch):
    images(tmp_path / "photos", ["cross", "ring"], each=20)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_random_numbers_and_threads_are_the_callers(trained):
    torch.manual_seed(5)
    expected = torch.rand(3)
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    tiny = {"encoder": "resnet8-w8", "epochs": 1.0, "init": "scratch"}
    clfew.pretrain("photos", **tiny, threads=2 if threads != 2 else 1)
    assert torch.get_num_threads() == threads
    clfew.finetune("photos", labels="2/class", mode="linear", threads=2 if threads != 2 else 1)
    clfew.evaluate()
    some = [str(path) for path in (trained / "photos/ring").glob("*")]
    for number, _ in enumerate(clfew.predict(some, threads=2 if threads != 2 else 1)):
        assert torch.get_num_threads() == threads and number < len(some)
    assert torch.equal(torch.rand(3), expected)


def test_predictions_are_made_with_the_threads_asked_for():
    seen = []

    def steps():
        for _ in range(3):
            seen.append(torch.get_num_threads())
            yield 1

    def run(threads):
        torch.set_num_threads(threads)
        return steps()

    before = torch.get_num_threads()
    assert list(device.without_traces(run)(before + 1)) == [1, 1, 1]
    assert seen == [before + 1] * 3 and torch.get_num_threads() == before


MEMORY = """
import sys, torch
sys.path.insert(0, {root!r})
from clfew.training.device import keep_freed_memory, without_traces

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def hungry():
    keep_freed_memory(torch.device("cpu"))
    held = [torch.ones(2_000_000) for _ in range(40)]

before = resident()
without_traces(hungry)()
print((resident() - before) // 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_freed_memory_is_given_back():
    root = os.path.dirname(os.path.dirname(clfew.__file__))
    code = MEMORY.format(root=root)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 100  # Of 320 MB.


def test_the_umask_is_read_without_setting_it(monkeypatch):
    def forbidden(mask):
        raise AssertionError("another thread may write a file now")

    current = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", forbidden)
        if sys.platform.startswith("linux"):
            assert files._umask() == 0o027
        monkeypatch.undo()
        monkeypatch.setattr(files.Path, "read_text", lambda *a, **k: "Name: other system\n")
        assert files._umask() == 0o027
    finally:
        monkeypatch.undo()
        os.umask(current)


def test_a_second_interrupt_is_the_callers():
    received = []
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.signal == signal.SIGINT and received == []
            signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_that_was_not_set_from_python_is_left_alone(monkeypatch):
    set_anew = []
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda *arguments: set_anew.append(arguments))
    with StopRequest():
        pass
    assert set_anew == []


def test_the_users_warning_filters_come_first():
    code = """
import warnings
warnings.simplefilter("error", UserWarning)
import clfew.data.decode
try:
    warnings.warn_explicit("odd", UserWarning, "PIL/Image.py", 1, module="PIL.Image")
except UserWarning:
    print("raised")
warnings.warn_explicit("odd", RuntimeWarning, "PIL/Image.py", 1, module="PIL.Image")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "raised\n" and "odd" not in result.stderr


def test_images_are_decoded_by_the_callers_settings_of_pillow(tmp_path, monkeypatch):
    """Other processes would not know them, and find other images bad."""
    assert workers._decodes_as_elsewhere()
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert not workers._decodes_as_elsewhere()
    monkeypatch.undo()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert not workers._decodes_as_elsewhere()


def test_hugging_faces_switches_are_put_back(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    import huggingface_hub.constants as constants

    from clfew.data.sources import open_source

    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"set/{name}/0.png")
    before = constants.HF_HUB_DISABLE_TELEMETRY, datasets.are_progress_bars_disabled()
    try:
        datasets.enable_progress_bars()
        open_source(f"hf:{tmp_path / 'set'}")
        assert not datasets.are_progress_bars_disabled()
        assert before[0] == constants.HF_HUB_DISABLE_TELEMETRY
        assert "HF_HUB_DISABLE_TELEMETRY" not in os.environ
    finally:
        (datasets.disable_progress_bars if before[1] else datasets.enable_progress_bars)()
