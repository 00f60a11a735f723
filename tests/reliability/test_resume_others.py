"""finetune, distill and compare resume as pretraining does, or refuse if their input has changed."""

import json
import os
import signal

import pytest
from faults import COUNT_STEPS, artifact, in_write, save_every, signal_at
from marks import rest_is_slow
from resuming import ENDS, assert_resumed, command

FINETUNE = (
    "finetune", "labeled", "--labels", "10/class", "--from", "whole-simclr", "--mode", "auto",
    "--repeat", "2", "--epochs", "8", "--batch", "8",
)  # fmt: skip


@pytest.mark.parametrize(
    ("training", "step", "number"),
    rest_is_slow(
        [(1, 2, signal.SIGKILL), (2, 3, signal.SIGINT), (3, 1, signal.SIGTERM), (4, 2, signal.SIGKILL)]
    ),
)
def test_finetune_resumes_to_the_same_classifier(clfew, folder, whole, training, step, number):
    whole("simclr", *command("simclr"))
    reference = whole("finetune", *FINETUNE)
    run = folder / f"finetune-{training}-{number.name}"
    faults = save_every(1) + signal_at(step, number, training)
    ended = clfew(*FINETUNE, "--out", run.name, cwd=folder, faults=faults)
    assert ended.rc == ENDS[number], ended.stderr
    if number != signal.SIGKILL:
        assert ended.next == [f"clfew finetune --resume {run.name}"]
    # It is resumed from another folder than the one it was started in.
    resume = ("finetune", "--resume", f"../{run.name}", "--format", "json")
    resumed = clfew.ok(*resume, cwd=folder / "labeled", faults=COUNT_STEPS)
    assert artifact(run) == artifact(reference)
    assert_resumed(resumed, reference, training, step - 1 if number == signal.SIGKILL else step)
    result = json.loads(resumed.stdout)
    assert result | {"run": ""} == json.loads((reference / "result.json").read_text()) | {"run": ""}
    assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in reference.iterdir())


DISTILL = ("distill", "--from", "whole-finetune", "--epochs", "3", "--batch", "16", "--keep")


@pytest.mark.parametrize(
    ("training", "step", "number"),
    rest_is_slow([(1, 5, signal.SIGINT), (2, 1, signal.SIGKILL), (3, 4, signal.SIGTERM)]),
)
def test_distill_resumes_to_the_same_student(clfew, folder, whole, training, step, number):
    whole("simclr", *command("simclr"))
    whole("finetune", *FINETUNE)
    reference = whole("distill", *DISTILL)
    run = folder / f"distill-{training}"
    faults = save_every(1) + signal_at(step, number, training)
    ended = clfew(*DISTILL, "--out", run.name, cwd=folder, faults=faults)
    assert ended.rc == ENDS[number], ended.stderr
    if number != signal.SIGKILL:
        assert ended.next == [f"clfew distill --resume {run.name}"]
    elsewhere = folder / "labeled"
    resumed = clfew.ok("distill", "--resume", f"../{run.name}", cwd=elsewhere, faults=COUNT_STEPS)
    assert artifact(run) == artifact(reference)
    assert_resumed(resumed, reference, training, step - 1 if number == signal.SIGKILL else step)
    assert (run / "result.json").read_bytes() == (reference / "result.json").read_bytes()


COMPARE = (
    "compare", "labeled", "--methods", "simclr,jigsaw", "--labels", "2/class,4/class", "--draws", "2",
    "--epochs", "3", "--encoder", "resnet8-w8",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "step", "number"),
    rest_is_slow(
        [(1, 2, signal.SIGKILL), (2, 1, signal.SIGINT), (4, 5, signal.SIGTERM), (5, 2, signal.SIGKILL)]
    ),
)
def test_compare_resumes_to_the_same_rows(clfew, folder, whole, training, step, number):
    reference = whole("compare", *COMPARE)
    run = folder / f"compare-{training}"
    faults = save_every(1) + signal_at(step, number, training)
    ended = clfew(*COMPARE, "--out", run.name, cwd=folder, faults=faults)
    assert ended.rc == ENDS[number], ended.stderr
    if number != signal.SIGKILL:
        assert ended.next[-1] == f"clfew compare --resume {run.name}"
    elsewhere = folder / "labeled"
    resumed = clfew.ok("compare", "--resume", f"../{run.name}", cwd=elsewhere, faults=COUNT_STEPS)
    rows, wanted = (json.loads((r / "result.json").read_text())["rows"] for r in (run, reference))
    assert rows == wanted
    # Only pretraining is resumed within a training: classifiers train quickly and start again.
    saved = (step - (number == signal.SIGKILL)) * (training <= 2)
    assert_resumed(resumed, reference, training, saved, repeats_ended=False)


def test_compare_keeps_the_steps_of_a_run_that_was_killed_before_its_first_save(clfew, folder):
    begin = (*COMPARE[:-4], "--encoder", "resnet8-w8", "--minutes", "0.02")
    run, config = folder / "compare-minutes", folder / "compare-minutes/pretrain-simclr-0/config.json"
    assert clfew(*begin, "--out", run.name, cwd=folder, faults=signal_at(2, signal.SIGKILL)).rc == -9
    before = json.loads(config.read_text())
    resumed = clfew("compare", "--resume", run.name, cwd=folder, faults=signal_at(1, signal.SIGTERM, 2))
    assert resumed.rc == 143 and "from its beginning" in resumed.stderr
    after = json.loads(config.read_text())
    carried_out = ("epochs", "replanned")  # Which are known only now.
    assert all(after[name] == value for name, value in before.items() if name not in carried_out)


def test_a_signal_when_all_is_saved_changes_nothing(clfew, folder, whole):
    whole("simclr", *command("simclr"))
    run, reference = folder / "late", whole("finetune", *FINETUNE)
    faults = in_write("classifier.safetensors", 1, "replace", True, "SIGINT")
    clfew.ok(*FINETUNE, "--out", run.name, cwd=folder, faults=faults)
    assert artifact(run) == artifact(reference)
    assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in reference.iterdir())


HOLD = """
import sys
from pathlib import Path
from clfew.errors import UserError
from clfew.runs.locks import held
from clfew.training import loop
take_held = loop._step
def asking(*arguments):
    try:
        with held(Path({run!r})):
            pass
    except UserError as error:
        print(error.message, file=sys.stderr)
    return take_held(*arguments)
loop._step = asking
"""


@pytest.mark.parametrize("name", rest_is_slow(["finetune", "simclr", "distill", "compare"]))
def test_a_run_is_held_by_the_command_that_makes_it(clfew, folder, whole, name):
    whole("simclr", *command("simclr"))
    whole("finetune", *FINETUNE)
    begin = {"simclr": command("simclr"), "finetune": FINETUNE, "distill": DISTILL, "compare": COMPARE}
    # In compare, the step belongs to a pretraining run, while both folders are locked.
    faults = HOLD.format(run=f"held-{name}") + signal_at(2, signal.SIGTERM)
    ended = clfew(*begin[name], "--out", f"held-{name}", cwd=folder, faults=faults)
    assert ended.rc == 143
    assert ended.stderr.count(f"Another clfew is working in held-{name}.") >= 2


@pytest.fixture
def changed(folder):
    """changed(name) changes a file; all changes are undone when the test ends."""
    before = {}

    def change(name):
        path = folder / name
        before[path] = path.read_bytes(), path.stat()
        path.write_bytes(path.read_bytes() + b" ")

    def restore():
        for path, (content, status) in before.items():
            path.write_bytes(content)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        before.clear()

    change.restore = restore
    yield change
    restore()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "option", "files"),
    [
        ("finetune", ("--labels", "4/class"), {
            "labeled/cross/003.png": "have changed", "whole-simclr/encoder.safetensors": "started from",
            "unlabeled/003.png": "unlabeled have changed since",
        }),
        ("distill", ("--temperature", "2"), {
            "labeled/cross/003.png": "have changed", "whole-finetune/classifier.safetensors": "teacher",
            "whole-finetune/labels.csv": "the teacher's labels",
        }),
        ("compare", ("--labels", "3/class"), {"labeled/cross/003.png": "have changed"}),
    ],
)  # fmt: skip
def test_a_change_that_prevents_resuming_is_named(clfew, folder, whole, changed, name, option, files):
    whole("simclr", *command("simclr"))
    whole("finetune", *FINETUNE)
    begin = {"finetune": FINETUNE, "distill": DISTILL, "compare": COMPARE}[name]
    run = f"changed-{name}"
    faults = save_every(1) + signal_at(2, signal.SIGINT)
    assert clfew(*begin, "--out", run, cwd=folder, faults=faults).rc == 130
    message = clfew.refused(name, "--resume", run, *option, rc=2, cwd=folder)
    assert option[1] in message and "was started with" in message
    for file, words in files.items():
        changed(file)
        assert words in clfew.refused(name, "--resume", run, cwd=folder)
        changed.restore()
    # The same options once more are no change, in whatever form they are given.
    clfew.ok(*begin, "--resume", run, cwd=folder)
