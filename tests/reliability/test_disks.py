"""Disks that become full or read-only, or lose files, in the middle of a run."""

import signal
import subprocess

import pytest
from faults import artifact, in_write, save_every, signal_at
from marks import rest_is_slow
from resuming import PRETRAIN

from clfew.training.state import saved_position


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(size) mounts a file system of this size at `disk`."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk]
        mounted = subprocess.run(command, capture_output=True, check=False)
        if mounted.returncode:
            pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_reported_and_leaves_no_partial_file(clfew, images, tmp_path, small_disk):
    images(tmp_path / "unlabeled", classes=[""], each=40)
    small_disk("512k")
    faults = save_every(2)
    result = clfew(
        *PRETRAIN, "--encoder", "resnet8-w32", "--out", "disk/run", cwd=tmp_path, faults=faults
    )
    assert result.rc == 1 and "Traceback" not in result.stderr
    error, hint = result.stderr.splitlines()[-2:]
    assert error.startswith("error: disk/run/state/state.safetensors (") and "bytes)" in error
    assert "No space left" in error and hint.startswith("hint: ")
    assert list((tmp_path / "disk").rglob(".*")) == []


def test_a_run_resumes_once_a_read_only_disk_is_writable_again(clfew, images, tmp_path, small_disk):
    images(tmp_path / "unlabeled", classes=[""], each=40)
    small_disk("8m")
    stopped = clfew(*PRETRAIN, "--out", "disk/run", cwd=tmp_path, faults=signal_at(5, signal.SIGINT))
    assert stopped.rc == 130
    resume = ("pretrain", "--resume", "disk/run")
    subprocess.run(["mount", "-o", "remount,ro", tmp_path / "disk"], check=True)
    assert "cannot be written: Read-only" in clfew.refused(*resume, cwd=tmp_path)
    subprocess.run(["mount", "-o", "remount,rw", tmp_path / "disk"], check=True)
    clfew.ok(*resume, cwd=tmp_path)
    clfew.ok(*PRETRAIN, "--out", "whole", cwd=tmp_path)
    assert artifact(tmp_path / "disk/run") == artifact(tmp_path / "whole")


def test_a_full_disk_in_the_middle_of_a_run_leaves_what_was_saved(clfew, images, tmp_path):
    images(tmp_path / "unlabeled", classes=[""], each=40)
    faults = save_every(2) + in_write("state.safetensors", 3, "write", False, "ENOSPC")
    result = clfew(*PRETRAIN, "--out", "run", cwd=tmp_path, faults=faults)
    assert (result.rc, "Traceback" in result.stderr) == (1, False)
    assert "state.safetensors" in result.stderr and "hint: " in result.stderr
    assert saved_position(tmp_path / "run/state/state.safetensors")["step"] == 4
    clfew.ok("pretrain", "--resume", "run", cwd=tmp_path)
    clfew.ok(*PRETRAIN, "--out", "whole", cwd=tmp_path)
    assert artifact(tmp_path / "run") == artifact(tmp_path / "whole")


AT_STEP = """
import os, shutil
from clfew.training import loop
take = loop._step
def faulty_step(stepper, batch, order):
    if order.step == 5:
        {what}
    return take(stepper, batch, order)
loop._step = faulty_step
"""


REMOVED = ("run", "run/state", "run/state/state.safetensors", "run/metrics.jsonl", "run/lock", "cache")


@pytest.mark.parametrize("name", rest_is_slow(REMOVED, 3))
def test_a_file_of_the_run_removed_while_it_runs(clfew, images, tmp_path, name):
    images(tmp_path / "unlabeled", classes=[""], each=40)
    remove = f"(shutil.rmtree if os.path.isdir({name!r}) else os.unlink)({name!r})"
    faults = save_every(2) + AT_STEP.format(what=remove)
    env = {"CLFEW_CACHE": str(tmp_path / "cache")}
    result = clfew(*PRETRAIN, "--out", "run", cwd=tmp_path, env=env, faults=faults)
    if name == "run":  # It is not created again.
        assert result.rc == 1 and "Traceback" not in result.stderr
        assert result.stderr.splitlines()[-2].startswith("error: The folder run/state cannot be made")
    else:
        assert result.rc == 0, result.stderr
        clfew.ok(*PRETRAIN, "--out", "whole", cwd=tmp_path)
        assert artifact(tmp_path / "run") == artifact(tmp_path / "whole")
