"""Stopping and resuming: nothing is lost, and the weights are those of a run never stopped."""

import array
import fcntl
import json
import signal
import subprocess
import termios
import time

import pytest
import safetensors.numpy
from marks import rest_is_slow

LONG = ("pretrain", "unlabeled", "--encoder", "resnet8-w8", "--batch", "16", "--epochs", "80")


def weights(run):
    return safetensors.numpy.load_file(run / "encoder.safetensors")


def assert_same(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name].tobytes() != other[name].tobytes()] == []


def rows(run):
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def wait_for_rows(process, run, count=1):
    """Waits until training has logged `count` rows; fails if the process ends before."""
    deadline = time.monotonic() + 120
    while len(rows(run)) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(clfew, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    images(folder / "unlabeled", classes=[""], each=40)
    clfew.ok(*LONG, cwd=folder)
    return folder


@pytest.mark.parametrize(("number", "rc"), rest_is_slow([(signal.SIGINT, 130), (signal.SIGTERM, 143)]))
def test_a_stopped_run_resumes_to_the_same_weights(clfew, images, uninterrupted, tmp_path, number, rc):
    images(tmp_path / "unlabeled", classes=[""], each=40)
    process = clfew.popen(*LONG, cwd=tmp_path)
    run = tmp_path / "runs/pretrain-1"
    wait_for_rows(process, run)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (rc, ""), stderr
    assert stderr.splitlines()[-1] == "next: clfew pretrain --resume runs/pretrain-1"
    assert "Traceback" not in stderr
    assert (run / "state").is_dir() and not (run / "encoder.safetensors").exists()
    assert "can be resumed" in clfew.ok("info", "runs/pretrain-1", cwd=tmp_path).stdout
    # An unfinished run has no encoder that finetune could start from.
    assert "pretrain" in clfew.refused(
        "finetune", "--labels", "1%", "--from", "runs/pretrain-1", cwd=tmp_path
    )
    resumed = clfew.ok("pretrain", "--resume", "runs/pretrain-1", cwd=tmp_path)
    assert resumed.next == ["clfew label"]
    assert not (run / "state").exists()
    assert_same(run, uninterrupted / "runs/pretrain-1")
    steps = [json.loads(row)["step"] for row in rows(run)]
    assert steps == sorted(set(steps)) and steps[-1] == 160


@pytest.mark.slow
def test_a_run_is_not_resumed_on_other_images(clfew, images, tmp_path):
    images(tmp_path / "unlabeled", classes=[""], each=40)
    process = clfew.popen(*LONG, "--out", "my run", cwd=tmp_path)
    wait_for_rows(process, tmp_path / "my run")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    # The printed command is quoted for a shell.
    assert stderr.splitlines()[-1] == "next: clfew pretrain --resume 'my run'"
    (tmp_path / "unlabeled/000.png").unlink()
    assert "have changed" in clfew.refused("pretrain", "--resume", "my run", cwd=tmp_path)


@pytest.mark.slow
def test_a_stop_during_finetune_is_quiet_and_leaves_no_classifier(clfew, project):
    options = ("finetune", "--labels", "all", "--mode", "full", "--epochs", "5000")
    process = clfew.popen(*options, cwd=project)
    wait_for_rows(process, project / "runs/finetune-2")
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (143, "") and "Traceback" not in stderr
    # The newest classifier is still the one from before.
    clfew.ok("predict", "image.jpg", cwd=project)


def processor_time(process):
    with open(f"/proc/{process.pid}/stat") as file:
        return sum(map(int, file.read().rsplit(")", 1)[1].split()[11:13]))


@pytest.mark.slow
def test_a_stop_while_waiting_for_names_is_quiet(clfew, project):
    process = clfew.popen("predict", "-", "--format", "jsonl", cwd=project, stdin=subprocess.PIPE)
    # Once the command has started, it reads all names there are and waits for more.
    process.stdin.write("image.jpg\n")
    process.stdin.flush()
    left = array.array("i", [1])
    while left[0]:
        fcntl.ioctl(process.stdin, termios.FIONREAD, left)
        time.sleep(0.05)
    used = [-1, processor_time(process)]
    while used[-1] != used[-2]:  # Until the command uses no more processor time, so only waits.
        time.sleep(1.5)
        used.append(processor_time(process))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in stderr


def test_the_seed_decides_and_nothing_else_does(clfew, images, tmp_path):
    images(tmp_path / "unlabeled", classes=[""], each=40)
    options = ("pretrain", "unlabeled", "--encoder", "resnet8-w8", "--epochs", "2")
    for seed in (7, 7, 8):
        clfew.ok(*options, "--seed", seed, cwd=tmp_path)
    assert_same(tmp_path / "runs/pretrain-1", tmp_path / "runs/pretrain-2")
    one, other = weights(tmp_path / "runs/pretrain-1"), weights(tmp_path / "runs/pretrain-3")
    assert any(one[name].tobytes() != other[name].tobytes() for name in one)
