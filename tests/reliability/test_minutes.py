"""A budget in minutes: the time is kept, and what was done in it can be done again."""

import json
import signal

import pytest
import safetensors.numpy
from faults import signal_at


def weights(artifact):
    return safetensors.numpy.load_file(artifact)


def assert_same(one, other, name="encoder.safetensors"):
    one, other = weights(one / name), weights(other / name)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name].tobytes() != other[name].tobytes()] == []


SLOW = """
import time
from clfew.training import loop
take, begun = loop._step, time.monotonic()
def slow_after_two_thirds(stepper, batch, order):
    if order.progress > 0.66:
        time.sleep(0.05)
    return take(stepper, batch, order)
loop._step = slow_after_two_thirds
"""


@pytest.mark.slow
@pytest.mark.parametrize("faults", ["", SLOW])
def test_a_run_of_some_minutes_can_be_repeated(clfew, images, tmp_path, faults):
    images(tmp_path / "unlabeled", classes=[""], each=40)
    options = ("pretrain", "unlabeled", "--encoder", "resnet8-w8", "--batch", "16")
    clfew.ok(*options, "--minutes", 0.05, cwd=tmp_path, faults=faults)
    run = tmp_path / "runs/pretrain-1"
    config = json.loads((run / "config.json").read_text())
    assert config["replanned"] != [[]] or not faults
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == rows[-1]["steps"] == round(config["epochs"] * 2)  # 32 images, by 16.
    artifact = str(run / "encoder.safetensors")
    # A run that repeats it can be repeated as well.
    for number, again in enumerate(("runs/pretrain-1", artifact, "runs/pretrain-2"), start=2):
        clfew.ok(*options, "--epochs", again, cwd=tmp_path)
        assert_same(run, tmp_path / f"runs/pretrain-{number}")


@pytest.mark.parametrize(
    ("epochs", "words"),
    [
        ("runs/pretrain-7", "neither a number nor a run"),
        ("1O", "neither a number nor a run"),
        ("unlabeled", "not a finished run of clfew pretrain"),
        ("runs/finetune-1", "not a finished run of clfew pretrain"),
        ("unfinished", "finish it: clfew pretrain --resume unfinished"),
        ("other", "an epoch was 40 images in batches of 16, and now it is 40 images in batches of 8"),
    ],
)
def test_epochs_that_no_run_records_are_refused(clfew, images, tmp_path, epochs, words):
    images(tmp_path / "unlabeled", classes=[""], each=40)
    options = ("pretrain", "unlabeled", "--encoder", "resnet8-w8", "--batch")
    if epochs == "unfinished":
        faults = signal_at(2, signal.SIGINT)
        clfew(*options, 16, "--minutes", 0.05, "--out", "unfinished", cwd=tmp_path, faults=faults)
    if epochs == "other":
        clfew.ok(*options, 16, "--minutes", 0.02, "--out", "other", cwd=tmp_path)
    if epochs.startswith("runs"):
        (tmp_path / "runs/finetune-1").mkdir(parents=True)
        (tmp_path / "runs/finetune-1/config.json").write_text('{"command": "finetune"}')
    assert words in clfew.refused(*options, 8, "--epochs", epochs, cwd=tmp_path)


def used(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return rows[-1]["seconds"]


@pytest.mark.slow
def test_a_distillation_of_some_minutes_keeps_them_and_can_be_repeated(clfew, images, tmp_path):
    images(tmp_path / "photos", each=30)
    clfew.ok("pretrain", "photos", "--encoder", "resnet8-w8", "--epochs", "2", cwd=tmp_path)
    clfew.ok("finetune", "photos", "--labels", "4/class", "--mode", "linear", cwd=tmp_path)
    options = ("distill", "--from", "runs/finetune-1", "--keep")
    clfew.ok(*options, "--minutes", 0.15, "--out", "one", cwd=tmp_path, faults=SLOW)
    config = json.loads((tmp_path / "one/config.json").read_text())
    assert len(config["replanned"]) == 3 and any(config["replanned"])
    assert 0.5 * 3 < used(tmp_path / "one") < 1.2 * 3  # Each of three students has three seconds.
    clfew.ok(*options, "--epochs", "one", "--out", "again", cwd=tmp_path)
    assert_same(tmp_path / "one", tmp_path / "again", "classifier.safetensors")
    again = json.loads((tmp_path / "again/config.json").read_text())
    assert again["replanned"] == config["replanned"]
    result = [json.loads((tmp_path / run / "result.json").read_text()) for run in ("one", "again")]
    assert result[0]["verdict"] == result[1]["verdict"]
    both = ("--epochs", "1", "--minutes", "1")
    assert "two budgets" in clfew.refused(*options, *both, rc=2, cwd=tmp_path)
    assert "not a finished run of clfew distill" in clfew.refused(
        *options, "--epochs", "runs/pretrain-1", cwd=tmp_path
    )


@pytest.mark.slow
def test_a_comparison_of_some_minutes_can_be_repeated(clfew, images, tmp_path):
    images(tmp_path / "photos", each=20)
    options = ("compare", "photos", "--methods", "simclr,byol", "--labels", "2/class", "--draws", "1")
    options += ("--encoder", "resnet8-w8")
    clfew.ok(*options, "--minutes", 0.05, "--out", "one", cwd=tmp_path, faults=SLOW)
    clfew.ok(*options, "--epochs", "one", "--out", "again", cwd=tmp_path)
    for method in ("simclr", "byol"):
        name = f"pretrain-{method}-0"
        assert_same(tmp_path / "one" / name, tmp_path / "again" / name)
    rows = [json.loads((tmp_path / run / "result.json").read_text())["rows"] for run in ("one", "again")]
    assert [row["draws"] for row in rows[0]] == [row["draws"] for row in rows[1]]
    assert "the epochs of" in (tmp_path / "again/compare.html").read_text()
    message = clfew.refused(*options, "--epochs", "two", cwd=tmp_path)
    assert "--epochs two is neither a number nor a comparison" in message and "compare-1" in message
    others = ("compare", "photos", "--methods", "jigsaw", "--epochs", "one")
    assert "a training of jigsaw, seed 0" in clfew.refused(*others, cwd=tmp_path)
