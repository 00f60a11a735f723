"""However one of several processes ends, all of them end soon, and nothing is lost."""

import json
import os
import re
import signal

import pytest
from launched import Running
from marks import THOROUGH, rest_is_slow, thorough

LINE = ("pretrain", "images", "--encoder", "resnet8-w8", "--init", "scratch", "--threads", "1")
LINE += ("--batch", "12", "--epochs", "400", "--out", "run")
RESUME = "clfew pretrain --resume run"


@pytest.fixture
def running(images, clfew, tmp_path):
    """running(restarts) starts a pretraining in two processes and waits until it has taken steps."""
    images(tmp_path / "images", each=10, size=8)
    started = []

    def run(restarts=0, line=LINE):
        started.append(Running(*line, cwd=tmp_path, env=clfew.env, restarts=restarts))
        started[0].wait_for(tmp_path / "run/metrics.jsonl", 5)
        return started[0]

    yield run
    for each in started:
        each.kill()


def last_step(folder):
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]


def send(rank, number):
    return lambda running: os.kill(running.ranks[rank], number)


ENDS = {
    "SIGTERM to a helper": (send(1, signal.SIGTERM), "stopped; the run's state was saved"),
    "a helper is killed": (send(1, signal.SIGKILL), "error: Process 1 of 2 has ended or hangs."),
    "the first is killed": (send(0, signal.SIGKILL), "error: Process 0 of 2 has ended or hangs."),
    "SIGINT to the first": (send(0, signal.SIGINT), "stopped; the run's state was saved"),
    "SIGTERM to torchrun": (lambda r: r.torchrun.terminate(), "stopped; the run's state was saved"),
    "torchrun is killed": (lambda r: r.torchrun.kill(), "stopped; the run's state was saved"),
}


@pytest.mark.parametrize("end", [*rest_is_slow(list(ENDS)[:3]), *thorough(list(ENDS)[3:])])
def test_all_end_and_the_run_is_resumed_by_one_process(running, clfew, tmp_path, end):
    act, said = ENDS[end]
    run = running()
    act(run)
    assert run.ended(60) != 0
    output = run.output
    assert output.count(said) == 1, output
    own = re.findall(r"^(?:error: |stopped).*$", output, re.MULTILINE)
    assert len(own) == 1 and output.count(RESUME) == 1, output
    at = last_step(tmp_path / "run")
    if end != "the first is killed":  # It alone could save the state at that moment.
        assert (tmp_path / "run/state/state.safetensors").exists()
    # One process goes on, for four seconds.
    stop = "threading.Timer(4, os.kill, (os.getpid(), signal.SIGTERM)).start()"
    faults = f"import os, signal, threading; {stop}"
    resumed = clfew("pretrain", "--resume", "run", cwd=tmp_path, faults=faults)
    assert resumed.rc == 143, resumed.stderr
    if end != "the first is killed":
        assert re.search(r"resumed    run after step \d", resumed.stderr)
        assert last_step(tmp_path / "run") >= at - 5


@pytest.mark.slow
def test_a_restart_goes_on_by_itself(running, tmp_path):
    line = [*LINE]
    line[line.index("400")] = "60"
    run = running(restarts=1, line=line)
    os.kill(run.ranks[1], signal.SIGKILL)
    assert run.ended(120) == 0, run.output
    assert run.output.count("resumed    run after step ") == 1
    assert (tmp_path / "run/encoder.safetensors").exists()
    steps = [
        json.loads(row)["step"] for row in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    assert steps == sorted(set(steps)) and steps[-1] == 60 * 2


@pytest.mark.slow
@THOROUGH
def test_a_process_that_hangs_ends_the_others(running):
    run = running()
    os.kill(run.ranks[1], signal.SIGSTOP)
    assert run.ended(60) == 1
    assert run.output.count("error: Process 1 of 2 has ended or hangs.") == 1


@pytest.mark.slow
def test_a_full_disk_in_the_first_process(running, tmp_path):
    """The run folder cannot be written any more."""
    run = running()
    (tmp_path / "run/metrics.jsonl").unlink()
    (tmp_path / "run/metrics.jsonl").mkdir()
    assert run.ended(60) != 0
    assert run.output.count("error: run/metrics.jsonl cannot be written") == 1, run.output
