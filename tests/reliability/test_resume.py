"""A pretraining run interrupted in any way resumes to the same bytes as an uninterrupted one."""

import json
import random
import shutil
import signal

import pytest
import safetensors.torch
from faults import CALLS, COUNT_STEPS, artifact, in_write, save_every, signal_at
from fuzzing import THOROUGH
from marks import rest_is_slow
from resuming import ENDS, METHODS, STEPS, assert_resumed, command, steps_of

from clfew.runs.checksum import add_checksum

# Each method with each signal takes minutes. Otherwise SimCLR gets all signals, other methods one each.
ENDED = [
    (name, number)
    for place, name in enumerate(METHODS)
    for turn, number in enumerate(ENDS)
    if THOROUGH or name == "simclr" or place % len(ENDS) == turn
]


@pytest.mark.long
@pytest.mark.parametrize(("name", "number"), rest_is_slow(ENDED, 4))
def test_every_method_resumes_to_the_same_weights(clfew, folder, whole, name, number):
    step = random.Random(f"{name} {number}").randrange(4, STEPS - 1)
    run = folder / f"{name}-{number.name}"
    faults = save_every(3) + signal_at(step, number)
    ended = clfew(*command(name), "--out", run.name, cwd=folder, faults=faults)
    assert ended.rc == ENDS[number], ended.stderr
    resume = ("pretrain", "--resume", run.name)
    if number != signal.SIGKILL:
        assert ended.next == [f"clfew {' '.join(resume)}"]
    resumed = clfew.ok(*resume, cwd=folder, faults=COUNT_STEPS)
    reference = whole(name, *command(name))
    assert artifact(run) == artifact(reference)
    # A killed run had saved every third step; after another signal the step is finished and saved.
    assert_resumed(resumed, reference, 1, (step - 1) // 3 * 3 if number == signal.SIGKILL else step)
    assert steps_of(run) == sorted(set(steps_of(run))) and steps_of(run)[-1] == STEPS
    assert not (run / "state").exists()


@pytest.mark.parametrize("step", rest_is_slow(random.Random(6).sample(range(1, STEPS), 10), 2))
def test_a_run_killed_at_any_step_resumes_from_its_last_save(clfew, folder, whole, step):
    run = folder / f"killed-{step}"
    faults = save_every(2) + signal_at(step, signal.SIGKILL)
    assert clfew(*command("simclr"), "--out", run.name, cwd=folder, faults=faults).rc == -9
    resumed = clfew.ok("pretrain", "--resume", run.name, cwd=folder, faults=COUNT_STEPS)
    # The signal comes during the step, before it is saved.
    saved = (step - 1) // 2 * 2
    assert (f"after step {saved}" if saved else "from its beginning") in resumed.stderr
    reference = whole("simclr", *command("simclr"))
    assert artifact(run) == artifact(reference)
    assert_resumed(resumed, reference, 1, saved)


SAVES = [(call, after) for call in CALLS for after in (False, True)]


@pytest.mark.long
@pytest.mark.parametrize(("call", "after"), SAVES if THOROUGH else SAVES[2:3] + SAVES[-4:-2])
def test_a_run_killed_while_it_saves(clfew, folder, whole, call, after):
    run = folder / f"save-{call}-{after}"
    faults = save_every(3) + in_write("state.safetensors", 2, call, after)
    assert clfew(*command("simclr"), "--out", run.name, cwd=folder, faults=faults).rc == -9
    resumed = clfew.ok("pretrain", "--resume", run.name, cwd=folder, faults=COUNT_STEPS)
    reference = whole("simclr", *command("simclr"))
    assert artifact(run) == artifact(reference)
    has_arrived = CALLS.index(call) + after > CALLS.index("replace")
    assert_resumed(resumed, reference, 1, 6 if has_arrived else 3)
    assert list(run.rglob(".*")) == []


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", rest_is_slow(CALLS, 2))
def test_a_run_killed_while_it_writes_its_artifact(clfew, folder, whole, call, after):
    run = folder / f"artifact-{call}-{after}"
    faults = save_every(4) + in_write("encoder.safetensors", 1, call, after)
    assert clfew(*command("simclr"), "--out", run.name, cwd=folder, faults=faults).rc == -9
    if (run / "encoder.safetensors").exists():
        # The run has its artifact; resuming only removes the remaining files.
        refused = clfew("pretrain", "--resume", run.name, cwd=folder)
        assert refused.rc == 1 and "has finished" in refused.stderr
        assert not (run / "state").exists() and not (run / "lock").exists()
    else:
        clfew.ok("pretrain", "--resume", run.name, cwd=folder)
        assert list(run.rglob(".*")) == []
    assert artifact(run) == artifact(whole("simclr", *command("simclr")))


def test_a_run_stopped_again_and_again_ends_the_same(clfew, folder, whole):
    run, begin = folder / "again", command("simclr")
    for step in (3, 4, 9):
        ended = clfew(
            *begin,
            *(() if run.exists() else ("--out", run.name)),
            cwd=folder,
            faults=signal_at(step, signal.SIGTERM),
        )
        assert ended.rc == 143
        begin = ("pretrain", "--resume", run.name)
    clfew.ok(*begin, cwd=folder)
    assert artifact(run) == artifact(whole("simclr", *command("simclr")))


def test_the_second_signal_ends_it_at_once_and_the_last_save_is_whole(clfew, folder, whole):
    run = folder / "twice"
    clfew(*command("simclr"), "--out", run.name, cwd=folder, faults=signal_at(4, signal.SIGINT))
    before = (run / "state/state.safetensors").read_bytes()
    faults = signal_at(7, signal.SIGTERM, twice=True)
    ended = clfew("pretrain", "--resume", run.name, cwd=folder, faults=faults)
    assert (ended.rc, ended.next) == (143, [])
    assert (run / "state/state.safetensors").read_bytes() == before
    clfew.ok("pretrain", "--resume", run.name, cwd=folder)
    assert artifact(run) == artifact(whole("simclr", *command("simclr")))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_layer_on_a_pretrained_network_resumes_to_the_same_weights(clfew, folder, whole, number):
    whole("simclr", *command("simclr"))
    begin = ("pretrain", "unlabeled", "--init", "whole-simclr", "--batch", "16", "--epochs", "6")
    reference = whole("layer", *begin)
    assert json.loads((reference / "config.json").read_text())["adapt"] == "layer"
    run = folder / f"layer-{number.name}"
    faults = save_every(3) + signal_at(7, number)
    assert clfew(*begin, "--out", run.name, cwd=folder, faults=faults).rc == ENDS[number]
    resumed = clfew.ok("pretrain", "--resume", run.name, cwd=folder, faults=COUNT_STEPS)
    assert artifact(run) == artifact(reference)
    assert_resumed(resumed, reference, 1, 6 if number == signal.SIGKILL else 7)


@pytest.mark.slow
def test_resume_uses_the_threads_of_the_run_unless_others_are_given(clfew, folder, whole):
    # With another number of threads, weights differ in their last digits. The tests use one thread.
    begin = (*command("simclr"), "--threads", "2")
    reference = whole("two-threads", *begin)
    for name, others, threads in (("two", (), 2), ("three", ("--threads", "3"), 3)):
        ended = clfew(*begin, "--out", name, cwd=folder, faults=signal_at(4, signal.SIGINT))
        assert ended.rc == 130
        resumed = clfew.ok("pretrain", "--resume", name, *others, cwd=folder, faults=COUNT_STEPS)
        assert f"{STEPS - 4} steps on {threads} threads" in resumed.stderr
    assert artifact(folder / "two") == artifact(reference)


def signal_in(name):
    """Sends a signal in a function that pretraining calls outside its steps."""
    return f"""
import signal
from clfew.commands import pretraining
original = pretraining.{name}
def interrupted(*arguments):
    signal.raise_signal(signal.SIGTERM)
    return original(*arguments)
pretraining.{name} = interrupted
"""


def test_a_signal_before_or_after_the_steps_loses_none(clfew, folder, whole):
    run, resume = folder / "around", ("pretrain", "--resume", "around")
    faults = save_every(5) + signal_in("save_encoder")
    ended = clfew(*command("simclr"), "--out", run.name, cwd=folder, faults=faults)
    for _ in range(2):
        assert (ended.rc, ended.next) == (143, ["clfew pretrain --resume around"])
        ended = clfew(
            *resume, cwd=folder, faults=signal_in("cached_images")
        )  # While images are decoded.
    resumed = clfew.ok(*resume, cwd=folder, faults=COUNT_STEPS)
    reference = whole("simclr", *command("simclr"))
    assert artifact(run) == artifact(reference)
    assert_resumed(resumed, reference, 1, STEPS)


IN_PROCESSES = """
import os, sys
from clfew.data import workers
class Noted(workers._Processes):
    def __init__(self, *arguments):
        print("decoded by other processes", file=sys.stderr)
        super().__init__(*arguments)
workers._Processes, workers.FEW = Noted, 0
os.sched_getaffinity = lambda process: {0, 1}
"""


def test_other_workers_decode_the_same_images(clfew, folder, whole):
    faults = signal_at(5, signal.SIGINT)
    assert clfew(*command("simclr"), "--out", "workers", cwd=folder, faults=faults).rc == 130
    shutil.rmtree(clfew.home / "cache")
    stderr = clfew.ok("pretrain", "--resume", "workers", cwd=folder, faults=IN_PROCESSES).stderr
    assert "decoded by other processes" in stderr
    assert artifact(folder / "workers") == artifact(whole("simclr", *command("simclr")))


def test_minutes_already_used_are_not_given_again(clfew, folder):
    run = folder / "minutes"
    begin = ("pretrain", "unlabeled", "--encoder", "resnet8-w8", "--batch", "16", "--minutes", "0.03")
    faults = save_every(5) + signal_at(7, signal.SIGKILL)
    assert clfew(*begin, "--out", run.name, cwd=folder, faults=faults).rc == -9
    planned = json.loads((run / "config.json").read_text())["plan"]
    # The state is changed as if its five steps had taken long.
    path, used = run / "state/state.safetensors", 1000.0
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    position = json.loads(metadata["position"])
    assert 0 < position["seconds"] < used
    metadata["position"] = json.dumps(position | {"seconds": used})
    path.write_bytes(add_checksum(safetensors.torch.save(safetensors.torch.load_file(path), metadata)))
    clfew.ok("pretrain", "--resume", run.name, cwd=folder)
    config = json.loads((run / "config.json").read_text())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert config["plan"] == planned
    # No time is left, and the step that shows it is the last one.
    assert [row["step"] for row in rows if row["step"] > 5] == [6]
    assert all(used < row["seconds"] < used + 60 for row in rows if row["step"] > 5)
    # A run that repeats it has the same result.
    clfew.ok(*begin[:-2], "--epochs", run.name, "--out", "epochs", cwd=folder)
    assert artifact(run)[0] == artifact(folder / "epochs")[0]
