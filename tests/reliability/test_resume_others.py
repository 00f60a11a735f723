"""finetune, distill and compare go on as pretraining does: with what they were started with, or not."""

import json
import signal

import pytest
from faults import COUNT_STEPS, artifact, save_every, signal_at
from resuming import ENDS, assert_went_on, command

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
    resume = ("finetune", "--resume", run.name, "--format", "json")
    resumed = clfew.ok(*resume, cwd=folder, faults=COUNT_STEPS)
    assert artifact(run) == artifact(reference)
    assert_went_on(resumed, reference, training, step - 1 if number == signal.SIGKILL else step)
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
    if number != signal.SIGKILL:
        assert ended.next == [f"clfew distill --resume {run.name}"]
    resumed = clfew.ok("distill", "--resume", run.name, cwd=folder, faults=COUNT_STEPS)
    assert artifact(run) == artifact(reference)
    assert_went_on(resumed, reference, training, step - 1 if number == signal.SIGKILL else step)
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
    reference = whole("compare", *COMPARE)
    run = folder / f"compare-{training}"
    faults = save_every(1) + signal_at(step, number, training)
    ended = clfew(*COMPARE, "--out", run.name, cwd=folder, faults=faults)
    assert ended.rc == ENDS[number], ended.stderr
    if number != signal.SIGKILL:
        assert ended.next[-1] == f"clfew compare --resume {run.name}"
    resumed = clfew.ok("compare", "--resume", run.name, cwd=folder, faults=COUNT_STEPS)
    rows, wanted = (json.loads((r / "result.json").read_text())["rows"] for r in (run, reference))
    assert rows == wanted
    # Only pretraining is gone on with: what a classifier takes is short, and begins again.
    saved = (step - (number == signal.SIGKILL)) * (training <= 2)
    assert_went_on(resumed, reference, training, saved, repeats_ended=False)
