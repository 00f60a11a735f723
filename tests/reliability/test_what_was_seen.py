"""Images that a network learned from in any earlier step count as seen when it is tested."""

import json

import pytest
from faults import signal_at

TRAIN = ("--encoder", "resnet8-w8", "--epochs", "1")


@pytest.fixture
def folders(images, tmp_path):
    """Two sources of the same two classes, without a test split of their own."""
    images(tmp_path / "one", ["cross", "ring"], each=20)
    images(tmp_path / "two", ["cross", "ring"], each=20, seed=1)
    return tmp_path


def evaluated(clfew, folder, *arguments):
    return json.loads(clfew.ok("eval", *arguments, "--format", "json", cwd=folder).stdout)


def test_labels_of_an_earlier_finetuning_are_not_tested_on(clfew, folders):
    """Another seed would hold out images whose labels the first run learned."""
    first = ("finetune", "one", "--from", "scratch", "--mode", "full", "--labels", "all")
    short = ("--epochs", "1", "--encoder", "resnet8-w8")
    clfew.ok(*first, *short, "--seed", "0", "--out", "first", cwd=folders)
    again = ("finetune", "one", "--from", "first", "--mode", "linear", "--labels", "2/class")
    clfew.ok(*again, "--seed", "1", "--out", "second", cwd=folders)
    report = evaluated(clfew, folders, "--from", "second")
    assert report["n"] == 8 and report["seen_in_finetuning"] == 0
    # In a list of all images, they are counted.
    rows = "\n".join(f"one/{p.parent.name}/{p.name},{p.parent.name}" for p in folders.glob("one/*/*"))
    (folders / "all.csv").write_text("path,label\n" + rows + "\n")
    report = evaluated(clfew, folders, "all.csv", "--from", "second")
    assert report["n"] == 40 and report["seen_in_finetuning"] == 32


@pytest.mark.slow
def test_images_of_the_run_that_weights_come_from_count(clfew, folders):
    clfew.ok("pretrain", "one", *TRAIN, "--transductive", "--out", "first", cwd=folders)
    clfew.ok("pretrain", "two", "--init", "first", "--epochs", "1", "--out", "second", cwd=folders)
    probe = ("--mode", "linear", "--labels", "2/class")
    for start in (("--from", "second"), ("--init", "first")):
        clfew.ok("finetune", "one", *start, *probe, "--out", f"tuned{start[0]}", cwd=folders)
        report = evaluated(clfew, folders, "--from", f"tuned{start[0]}")
        assert report["seen_in_pretraining"] == report["n"] == 8


def test_they_count_after_a_stop_too(clfew, folders):
    clfew.ok("pretrain", "one", *TRAIN, "--transductive", "--out", "first", cwd=folders)
    begin = ("pretrain", "two", "--init", "first", "--epochs", "2", "--out", "second")
    assert clfew(*begin, cwd=folders, faults=signal_at(1, 9)).rc == -9
    clfew.ok("pretrain", "--resume", "second", cwd=folders)
    probe = ("--mode", "linear", "--labels", "2/class")
    clfew.ok("finetune", "one", "--from", "second", *probe, cwd=folders)
    assert evaluated(clfew, folders)["seen_in_pretraining"] == 8


def test_images_that_labels_were_propagated_through_count(clfew, folders):
    clfew.ok("pretrain", "two", *TRAIN, "--out", "first", cwd=folders)
    propagate = ("--mode", "propagate", "--labels", "2/class")
    clfew.ok("finetune", "one", "--from", "first", *propagate, cwd=folders)
    rows = "\n".join(f"one/{p.parent.name}/{p.name},{p.parent.name}" for p in folders.glob("one/*/*"))
    (folders / "all.csv").write_text("path,label\n" + rows + "\n")
    result = clfew.ok("eval", "all.csv", cwd=folders)
    assert "28 of these images were seen in pretraining, propagation or distillation" in result.stdout
    assert "4 of these images were seen in finetuning" in result.stdout
