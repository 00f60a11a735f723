"""A run with default settings ends soon after a signal."""

import contextlib
import os
import signal
import time

import pytest
from marks import rest_is_slow

SECONDS = 10
"""Processor time. On a busy machine, wall-clock time would depend on other programs."""

WAITING = 60
"""Wall-clock time, because a command that only waits uses no processor time."""


def processor_seconds(process):
    with open(f"/proc/{process.pid}/stat") as file:
        user, system = file.read().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "phase", "number"),
    rest_is_slow(
        [
            (("--init", "scratch"), "training ", signal.SIGINT),
            (("--init", "scratch"), "training ", signal.SIGTERM),
            # If the machine has pretrained weights, it computes view features.
            ((), "views ", signal.SIGINT),
        ]
    ),
)
def test_a_default_run_ends_in_time(clfew, images, tmp_path, arguments, phase, number):
    images(tmp_path / "photos", classes=[""], each=200, size=96)
    process = clfew.popen("pretrain", "photos", *arguments, cwd=tmp_path)
    line_of_phase = next((line for line in process.stderr if line.startswith(phase)), None)
    assert line_of_phase, "it has ended already"
    time.sleep(3)
    before = used = processor_seconds(process)
    process.send_signal(number)
    latest = time.monotonic() + WAITING
    while process.poll() is None and time.monotonic() < latest:
        with contextlib.suppress(OSError, IndexError):  # The process has just ended.
            used = processor_seconds(process)
        time.sleep(0.05)
    _, rest = process.communicate(timeout=1)
    assert used - before < SECONDS
    assert process.returncode == 128 + number
    if phase == "training ":
        assert "next: clfew pretrain --resume runs/pretrain-1" in rest
