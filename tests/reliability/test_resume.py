"""Whatever ends a run, what it is gone on with ends as if nothing had: the same bytes."""

import json
import random
import shutil
import signal

import pytest
from faults import CALLS, artifact, in_write, save_every, say_threads, signal_at
from fuzzing import THOROUGH

METHODS = {
    "simclr": (), "byol": (), "jigsaw": (), "context-prediction": (), "denoising": (),
    "denoising-stacked": ("--stacked",), "colorization": (), "inpainting": (),
    "inpainting-adversarial": ("--adversarial",), "split-brain": (), "counting": (),
}  # fmt: skip
STEPS = 12
TINY = ("--encoder", "resnet8-w8", "--batch", "16", "--epochs", "6", "--init", "scratch")
ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}


def command(name):
    method = next(m for m in ("denoising", "inpainting", name) if name == m or name.startswith(m + "-"))
    return ("pretrain", "unlabeled", *TINY, "--method", method, *METHODS[name])


def steps_of(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    images(folder / "unlabeled", classes=[""], each=40)
    images(folder / "labeled", each=16)
    return folder


@pytest.fixture(scope="module")
def whole(clfew, folder):
    """whole(name, *arguments) is the run that the command makes when nothing ends it."""

    def run(name, *arguments):
        out = folder / f"whole-{name}"
        if not out.exists():
            clfew.ok(*arguments, "--out", out.name, cwd=folder)
        return out

    return run


# Each method with each signal takes minutes: else SimCLR with all of them, each other with one.
ENDED = [
    (name, number)
    for place, name in enumerate(METHODS)
    for turn, number in enumerate(ENDS)
    if THOROUGH or name == "simclr" or place % len(ENDS) == turn
]


@pytest.mark.long
@pytest.mark.parametrize(("name", "number"), ENDED)
def test_every_method_goes_on_to_the_same_weights(clfew, folder, whole, name, number):
    step = random.Random(f"{name} {number}").randrange(2, STEPS - 1)
    run = folder / f"{name}-{number.name}"
    faults = save_every(3) + signal_at(step, number)
    ended = clfew(*command(name), "--out", run.name, cwd=folder, faults=faults)
    assert ended.rc == ENDS[number], ended.stderr
    resume = ("pretrain", "--resume", run.name)
    if number != signal.SIGKILL:
        assert ended.next == [f"clfew {' '.join(resume)}"]
    shutil.rmtree(clfew.home / "cache", ignore_errors=True)  # What is decoded again changes nothing.
    clfew.ok(*resume, cwd=folder)
    assert artifact(run) == artifact(whole(name, *command(name)))
    assert steps_of(run) == sorted(set(steps_of(run))) and steps_of(run)[-1] == STEPS
    assert not (run / "state").exists()


@pytest.mark.parametrize("step", random.Random(6).sample(range(1, STEPS), 10))
def test_a_run_killed_at_any_step_goes_on_from_its_last_save(clfew, folder, whole, step):
    run = folder / f"killed-{step}"
    faults = save_every(2) + signal_at(step, signal.SIGKILL)
    assert clfew(*command("simclr"), "--out", run.name, cwd=folder, faults=faults).rc == -9
    resumed = clfew.ok("pretrain", "--resume", run.name, cwd=folder)
    # The step is not saved yet when the signal comes in it.
    saved = (step - 1) // 2 * 2
    assert (f"after step {saved}" if saved else "from its beginning") in resumed.stderr
    assert artifact(run) == artifact(whole("simclr", *command("simclr")))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_a_run_killed_while_it_writes_its_artifact(clfew, folder, whole, call, after):
    run = folder / f"artifact-{call}-{after}"
    faults = save_every(4) + in_write("encoder.safetensors", 1, call, after)
    assert clfew(*command("simclr"), "--out", run.name, cwd=folder, faults=faults).rc == -9
    if (run / "encoder.safetensors").exists():
        assert "has finished" in clfew.refused("pretrain", "--resume", run.name, cwd=folder)
    else:
        clfew.ok("pretrain", "--resume", run.name, cwd=folder)
        assert list(run.rglob(".*")) == []
    assert artifact(run) == artifact(whole("simclr", *command("simclr")))


def test_a_run_stopped_again_and_again_ends_the_same(clfew, folder, whole):
    run, begin = folder / "again", command("simclr")
    for step in (3, 4, 9):
        ended = clfew(
            *begin, *(() if run.exists() else ("--out", run.name)), cwd=folder,
            faults=signal_at(step, signal.SIGTERM),
        )  # fmt: skip
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
def test_a_layer_on_a_pretrained_network_goes_on_to_the_same_weights(clfew, folder, whole, number):
    whole("simclr", *command("simclr"))
    begin = ("pretrain", "unlabeled", "--init", "whole-simclr", "--batch", "16", "--epochs", "6")
    reference = whole("layer", *begin)
    assert json.loads((reference / "config.json").read_text())["adapt"] == "layer"
    run = folder / f"layer-{number.name}"
    faults = save_every(3) + signal_at(7, number)
    assert clfew(*begin, "--out", run.name, cwd=folder, faults=faults).rc == ENDS[number]
    clfew.ok("pretrain", "--resume", run.name, cwd=folder)
    assert artifact(run) == artifact(reference)


def test_the_printed_line_takes_the_threads_of_the_run_and_others_only_where_asked(clfew, folder):
    # The weights differ in their last digits with other threads: the tests' own are one.
    begin, ran_on = (*command("simclr"), "--threads", "2"), say_threads()
    for name, others, threads in (("two", (), 2), ("three", ("--threads", "3"), 3)):
        ended = clfew(*begin, "--out", name, cwd=folder, faults=ran_on + signal_at(4, signal.SIGINT))
        assert ended.rc == 130 and "on 2 threads" in ended.stderr
        resumed = clfew.ok("pretrain", "--resume", name, *others, cwd=folder, faults=ran_on)
        assert f"on {threads} threads" in resumed.stderr


FINETUNE = (
    "finetune", "labeled", "--labels", "10/class", "--from", "whole-simclr", "--mode", "auto",
    "--repeat", "2", "--epochs", "8", "--batch", "8",
)  # fmt: skip


@pytest.mark.parametrize(
    ("training", "step", "number"),
    [(1, 2, signal.SIGKILL), (2, 3, signal.SIGINT), (3, 1, signal.SIGTERM), (4, 2, signal.SIGKILL)],
)
def test_finetune_goes_on_to_the_same_classifier(clfew, folder, whole, training, step, number):
    whole("simclr", *command("simclr"))
    reference = whole("finetune", *FINETUNE)
    run = folder / f"finetune-{training}-{number.name}"
    faults = save_every(1) + signal_at(step, number, training)
    ended = clfew(*FINETUNE, "--out", run.name, cwd=folder, faults=faults)
    assert ended.rc == ENDS[number], ended.stderr
    if number != signal.SIGKILL:
        assert ended.next == [f"clfew finetune --resume {run.name}"]
    resumed = clfew.ok("finetune", "--resume", run.name, "--format", "json", cwd=folder)
    assert artifact(run) == artifact(reference)
    told = json.loads(resumed.stdout)
    assert told | {"run": ""} == json.loads((reference / "result.json").read_text()) | {"run": ""}
    assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in reference.iterdir())


DISTILL = ("distill", "--from", "whole-finetune", "--epochs", "3", "--batch", "16", "--keep")


@pytest.mark.parametrize(
    ("training", "step", "number"),
    [(1, 5, signal.SIGINT), (2, 1, signal.SIGKILL), (3, 4, signal.SIGTERM)],
)
def test_distill_goes_on_to_the_same_student(clfew, folder, whole, training, step, number):
    whole("simclr", *command("simclr"))
    whole("finetune", *FINETUNE)
    reference = whole("distill", *DISTILL)
    run = folder / f"distill-{training}"
    faults = save_every(1) + signal_at(step, number, training)
    ended = clfew(*DISTILL, "--out", run.name, cwd=folder, faults=faults)
    assert ended.rc == ENDS[number], ended.stderr
    clfew.ok("distill", "--resume", run.name, cwd=folder)
    assert artifact(run) == artifact(reference)
    assert (run / "result.json").read_bytes() == (reference / "result.json").read_bytes()


COMPARE = (
    "compare", "labeled", "--methods", "simclr,jigsaw", "--labels", "2/class,4/class", "--draws", "2",
    "--epochs", "3", "--encoder", "resnet8-w8",
)  # fmt: skip


@pytest.mark.parametrize(
    ("training", "step", "number"),
    [(1, 2, signal.SIGKILL), (2, 1, signal.SIGINT), (4, 30, signal.SIGTERM), (5, 2, signal.SIGKILL)],
)
def test_compare_goes_on_to_the_same_rows(clfew, folder, whole, training, step, number):
    reference = json.loads((whole("compare", *COMPARE) / "result.json").read_text())
    run = folder / f"compare-{training}"
    faults = save_every(1) + signal_at(step, number, training)
    ended = clfew(*COMPARE, "--out", run.name, cwd=folder, faults=faults)
    assert ended.rc == ENDS[number], ended.stderr
    if number != signal.SIGKILL:
        assert ended.next[-1] == f"clfew compare --resume {run.name}"
    clfew.ok("compare", "--resume", run.name, cwd=folder)
    assert json.loads((run / "result.json").read_text())["rows"] == reference["rows"]


def test_minutes_already_used_are_not_given_again(clfew, folder):
    run = folder / "minutes"
    begin = ("pretrain", "unlabeled", "--encoder", "resnet8-w8", "--batch", "16", "--minutes", "0.03")
    faults = save_every(5) + signal_at(7, signal.SIGKILL)
    assert clfew(*begin, "--out", run.name, cwd=folder, faults=faults).rc == -9
    planned = json.loads((run / "config.json").read_text())["plan"]
    used = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["seconds"]
    clfew.ok("pretrain", "--resume", run.name, cwd=folder)
    config = json.loads((run / "config.json").read_text())
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert config["plan"] == planned and last["step"] == planned["steps"] and last["seconds"] > used
    # And the same number of epochs is the same run.
    again = ("--epochs", repr(config["epochs"]), "--out", "epochs")
    clfew.ok(*begin[:-2], *again, cwd=folder)
    assert artifact(run)[0] == artifact(folder / "epochs")[0]
