"""Lists of labels that are filled in so far, as `clfew select` writes them, from finetune to distill."""

import csv
import json
import random

import pytest
import safetensors.numpy
from commands import CLASSES, paint

from clfew.data.workers import content_digest

COLUMNS = ("order", "how", "label", "path", "split", "remark")

STOPPED = """
import os, signal
from clfew.training import loop
take = loop._step
def stopped(*arguments):
    if arguments[-1].step == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return take(*arguments)
loop._step = stopped
"""
"""Sends the command a signal during the third step of its training."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clfew):
    """Images without class folders, a pretrained encoder, and a list that a spreadsheet saved."""
    folder = tmp_path_factory.mktemp("listed")
    paint(folder / "painted")
    (folder / "photos").mkdir()
    for number, file in enumerate(sorted((folder / "painted").rglob("*.png"))):
        file.rename(folder / f"photos/{file.parent.name[0]}{number}.png")
    clfew.ok("pretrain", "photos", "--encoder", "resnet8-w8", "--epochs", 1, cwd=folder)
    write_list(folder / "list.csv", rows_of(folder))
    return folder


def rows_of(folder):
    """A random test sample of 12 rows of which 10 are labelled, and 20 rows to learn from, 18 of them
    labelled; in the order in which they are to be labelled."""
    names = sorted(file.name for file in (folder / "photos").iterdir())
    random.Random(0).shuffle(names)
    rows = []
    for number, name in enumerate(names[:32]):
        split = "test" if number < 12 else "train"
        how = "random" if number < 20 else "chosen (herding)"
        label = next(each for each in CLASSES if each[0] == name[0])
        rows.append((number, how, "" if number in (3, 4, 15, 25) else label, name, split, "a; b"))
    return rows


def write_list(file, rows):
    """Writes a list as a spreadsheet does that has sorted it by another column."""
    with open(file, "w", newline="", encoding="utf-8-sig") as written:
        writer = csv.writer(written, delimiter=";", lineterminator="\r\n")
        writer.writerows([COLUMNS, *sorted(rows, key=lambda row: row[3])])


def digests_in(run, step):
    stored = safetensors.numpy.load_file(run / "classifier.safetensors")[f"seen.{step}"]
    return set(stored.view("u8").tolist())


def digests_of(folder, split):
    names = [row[3] for row in rows_of(folder) if row[4] == split]
    return {content_digest((folder / "photos" / name).read_bytes()) for name in names}


def result_in(run):
    return json.loads((run / "result.json").read_text())


@pytest.fixture(scope="module")
def tuned(clfew, folder):
    """What finetune says to stderr; its run is `tuned`, from scratch `blank`."""
    words = ("finetune", "photos", "--labels", "list.csv", "--format", "json")
    clfew.ok(
        *words, "--from", "scratch", "--encoder", "resnet8-w8", "--size", 16, "--mode", "full",
        "--epochs", 1, "--out", "blank", cwd=folder,
    )  # fmt: skip
    return clfew.ok(*words, "--mode", "propagate", "--out", "tuned", cwd=folder).stderr


def test_a_list_that_is_partly_filled_in_is_taken_as_it_is(folder, tuned):
    assert "18 of the 20 rows of list.csv to learn from have a label" in tuned
    assert "10 of the 12 images of the test sample have a label" in tuned
    result = result_in(folder / "tuned")
    assert result["test_images"] == 10 and result["draws"][0]["labels"] == 18
    assert result["label_origins"] == {"chosen": 11, "random": 7}
    assert result["test_origins"] == {"random": 10}
    with open(folder / "tuned/labels.csv", newline="") as file:
        written = [tuple(row.values()) for row in csv.DictReader(file)]
    expected = {
        (row[3], row[2], row[4], row[1]) for row in rows_of(folder) if row[2] or row[4] == "test"
    }
    assert set(written) == expected and len(written) == len(expected)


def test_the_test_sample_is_never_learned_from(clfew, folder, tuned):
    sample, learned = digests_of(folder, "test"), digests_of(folder, "train")
    taught = digests_in(folder / "tuned", "finetuning")
    assert len(taught) == 18 and taught < learned
    # What pretraining has seen is not of this command; from scratch, nothing else was seen.
    assert not digests_in(folder / "blank", "finetuning") & sample
    assert not digests_in(folder / "blank", "pretraining") & sample
    clfew.ok("distill", "--from", "blank", "--epochs", 1, "--keep", "--out", "taught", cwd=folder)
    seen = digests_in(folder / "taught", "pretraining")
    assert seen and not seen & sample
    assert digests_in(folder / "taught", "finetuning") == digests_in(folder / "blank", "finetuning")
    report = json.loads(clfew.ok("eval", "--from", "taught", "--format", "json", cwd=folder).stdout)
    assert report["n"] == 10 and report["split"] == "the random test sample of list.csv"


def test_labels_csv_says_the_same_as_the_list(clfew, folder, tuned):
    clfew.ok(
        "finetune", "photos", "--labels", "tuned/labels.csv", "--mode", "propagate", "--from",
        "runs/pretrain-1", "--out", "again", cwd=folder,
    )  # fmt: skip
    first, again = result_in(folder / "tuned"), result_in(folder / "again")
    assert first.pop("read_as") != again.pop("read_as")  # It names the list.
    assert first == again
    assert (folder / "tuned/labels.csv").read_bytes() == (folder / "again/labels.csv").read_bytes()
    report, other = (
        json.loads(clfew.ok("eval", "--from", run, "--format", "json", cwd=folder).stdout)
        for run in ("tuned", "again")
    )
    assert report["n"] == 10 and report["accuracy"] == other["accuracy"] == pytest.approx(first["mean"])
    assert report["seen_in_finetuning"] == 0
    info = clfew.ok("info", "tuned", cwd=folder).stdout
    assert "label_origins.chosen" in info and "test_origins.random" in info


def test_a_list_that_is_filled_in_later_does_not_change_what_was_tested(clfew, folder, tuned):
    write_list(folder / "later.csv", rows_of(folder))
    words = ("--labels", "later.csv", "--mode", "knn", "--from", "runs/pretrain-1", "--out", "later")
    clfew.ok("finetune", "photos", *words, cwd=folder)
    write_list(folder / "later.csv", [(*row[:4], "train", "") for row in rows_of(folder)])
    report = json.loads(clfew.ok("eval", "--from", "later", "--format", "json", cwd=folder).stdout)
    assert report["n"] == 10 and report["accuracy"] == pytest.approx(result_in(folder / "later")["mean"])


def test_a_run_with_a_list_is_resumed(clfew, folder):
    words = (
        "finetune", "photos", "--labels", "list.csv", "--mode", "full", "--epochs", 4, "--batch", 8,
        "--from", "runs/pretrain-1", "--out",
    )  # fmt: skip
    clfew.ok(*words, "whole", cwd=folder)
    stopped = clfew(*words, "halves", cwd=folder, faults=STOPPED)
    assert stopped.rc == 130, stopped.stderr
    clfew.ok("finetune", "--resume", "halves", cwd=folder)
    assert result_in(folder / "whole") == result_in(folder / "halves")
    assert (folder / "whole/labels.csv").read_bytes() == (folder / "halves/labels.csv").read_bytes()


def test_the_folder_of_a_selection_tells_the_source(clfew, folder):
    select = folder / "runs/select-1"
    select.mkdir()
    config = {"command": "select", "source": str(folder / "photos"), "group_by": "([a-z][0-9]+)"}
    (select / "config.json").write_text(json.dumps(config))
    write_list(select / "to_label.csv", rows_of(folder))
    sample = [row[3] for row in rows_of(folder) if row[4] == "test"]
    (select / "select.json").write_text(json.dumps({"test": sample}))
    words = ("--labels", "runs/select-1/to_label.csv", "--mode", "knn", "--from", "runs/pretrain-1")
    said = clfew.ok("finetune", *words, "--out", "selected", cwd=folder).stderr
    assert "the images of runs/select-1/to_label.csv" in said
    assert json.loads((folder / "selected/config.json").read_text())["group_by"] == config["group_by"]
    # One column was sorted alone.
    rows = rows_of(folder)
    splits = sorted(row[4] for row in rows)
    write_list(
        select / "to_label.csv", [(*r[:4], s, r[5]) for r, s in zip(rows[::-1], splits, strict=True)]
    )
    message = clfew.refused("finetune", *words, cwd=folder)
    assert "test sample" in message and "select.json" in message


def test_chosen_images_are_no_test(clfew, folder):
    rows = [(*row[:4], "train", "") for row in rows_of(folder)[12:]]
    write_list(folder / "chosen.csv", rows)
    words = ("finetune", "photos", "--mode", "knn", "--from", "runs/pretrain-1", "--labels")
    found = clfew.ok(*words, "chosen.csv", "--out", "untested", cwd=folder)
    assert "clfew select --test 50" in found.stdout and "clfew select --test 50" in found.stderr
    assert result_in(folder / "untested")["test_origins"] == {}
    write_list(folder / "unfair.csv", [*rows[:12], *((*row[:4], "test", "") for row in rows[12:])])
    assert (
        "chosen images are no fair test"
        in clfew.ok(*words, "unfair.csv", "--out", "unfair", cwd=folder).stderr
    )
    report = json.loads(clfew.ok("eval", "--from", "unfair", "--format", "json", cwd=folder).stdout)
    assert report["split"] == "the test rows of unfair.csv"


def test_a_test_sample_without_labels_is_held_out_all_the_same(clfew, folder):
    rows = [(*r[:2], "" if r[4] == "test" else r[2], *r[3:]) for r in rows_of(folder)]
    write_list(folder / "later-tested.csv", rows)
    words = (
        "--labels",
        "later-tested.csv",
        "--from",
        "scratch",
        "--encoder",
        "resnet8-w8",
        "--size",
        16,
    )
    options = ("--mode", "full", "--epochs", 1, "--out", "held")
    found = clfew.ok("finetune", "photos", *words, *options, cwd=folder)
    assert "none of the 12 images of the test sample has a label" in found.stderr
    assert "18 labels used of 48 images" in found.stderr
    assert "fine-tune again" in clfew.refused("eval", "--from", "held", cwd=folder)
    clfew.ok("distill", "--from", "held", "--epochs", 1, "--keep", "--out", "held-taught", cwd=folder)
    assert not digests_in(folder / "held-taught", "pretraining") & digests_of(folder, "test")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "linear", "knn", "propagate", "full"])
def test_a_class_without_a_label_is_never_predicted(clfew, images, project, mode):
    images(project / "rare", classes=CLASSES[:2], each=20)
    images(project / "rare", classes=["lonely", "pair", "two"], each=2, seed=1)
    words = ("--labels", "5/random", "--mode", mode, "--from", "runs/pretrain-1")
    found = clfew.ok("finetune", "rare", *words, "--out", "few", "--repeat", 2, cwd=project)
    assert "of 5 classes have no label and are never predicted" in found.stderr
    with open(project / "few/labels.csv", newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    assert len(labels) == 5 and result_in(project / "few")["label_origins"] == {"random": 5}
    report = json.loads(clfew.ok("eval", "--from", "few", "--format", "json", cwd=project).stdout)
    without = [row for row in report["per_class"] if row["class"] not in labels]
    assert without and all(row["precision"] is None for row in without)
