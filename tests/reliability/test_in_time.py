"""How soon a run with default settings ends when it is asked to."""

import signal
import time

import pytest

SECONDS = 10


@pytest.mark.parametrize(
    ("arguments", "phase", "number"),
    [
        ((), "views ", signal.SIGINT),  # Features of views, where pretrained weights are on the machine.
        (("--init", "scratch"), "training ", signal.SIGINT),
        (("--init", "scratch"), "training ", signal.SIGTERM),
    ],
)
def test_a_default_run_ends_in_time(clfew, images, tmp_path, arguments, phase, number):
    images(tmp_path / "photos", classes=[""], each=200, size=96)
    process = clfew.popen("pretrain", "photos", *arguments, cwd=tmp_path)
    said = next((line for line in process.stderr if line.startswith(phase)), None)
    assert said, "it has ended already"
    time.sleep(3)
    started = time.monotonic()
    process.send_signal(number)
    _, rest = process.communicate(timeout=60)
    assert time.monotonic() - started < SECONDS
    assert process.returncode == 128 + number
    if phase == "training ":
        assert "next: clfew pretrain --resume runs/pretrain-1" in rest
