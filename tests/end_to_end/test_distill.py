"""`clfew distill` as a user runs it: with and without held-out labels, student kept and not kept."""

import json
import shutil

import pytest


@pytest.fixture(scope="module")
def taught(tmp_path_factory, clfew, images, tiny):
    """A folder with an encoder, a classifier of six labels a class, and a student that was kept."""
    folder = tmp_path_factory.mktemp("taught")
    images(folder / "unlabeled")
    clfew.ok("pretrain", "./unlabeled", *tiny, cwd=folder)
    clfew.ok("finetune", "--labels", "6/class", "--mode", "linear", cwd=folder)
    result = clfew.ok("distill", "--epochs", "2", "--keep", "--format", "json", cwd=folder)
    return folder, result


def test_a_student_is_compared_with_its_teacher_and_kept_on_request(taught):
    folder, result = taught
    found = json.loads(result.stdout)
    assert found["kept"] and found["verdict"]["held_out"] == 18
    assert 0 <= found["teacher"] <= 1 and 0 <= found["student"] <= 1 and found["test_images"] == 12
    assert result.next == ["clfew eval", "clfew predict IMAGE"]
    before, training = result.stderr.split(
        "expected   about the teacher's accuracy (-0.8 to +1.0 points"
    )
    assert "teacher    " in before and "kept       " in training
    run = folder / "runs/distill-1"
    assert {p.name for p in run.iterdir()} == {
        "classifier.safetensors",
        "config.json",
        "labels.csv",
        "metrics.jsonl",
        "result.json",
        "README.md",
    }
    assert json.loads((run / "result.json").read_text())["verdict"] == found["verdict"]
    assert (run / "labels.csv").read_text() == (folder / "runs/finetune-1/labels.csv").read_text()


def test_the_student_is_a_classifier_like_any_other(taught, clfew):
    folder, _ = taught
    info = json.loads(clfew.ok("info", "runs/distill-1", "--format", "json", cwd=folder).stdout)
    assert info["mode"] == "distilled" and info["training"]["distill"]["held_out"] == 18
    report = json.loads(clfew.ok("eval", "--format", "json", cwd=folder).stdout)  # The newest is taken.
    assert report["mode"] == "distilled" and report["labels"] == 18 and report["seen_in_finetuning"] == 0
    image = "unlabeled/ring/000.png"
    row = clfew.ok("predict", image, "--format", "jsonl", cwd=folder).rows()[0]
    assert row["label"] in ("cross", "ring", "stripe")
    features = clfew.ok("embed", "unlabeled", "--from", "runs/distill-1", cwd=folder)
    assert "60 × " in features.stdout


def test_a_student_that_is_not_better_is_not_kept(taught, clfew):
    folder, _ = taught
    # The learning rate is so high that training destroys the student.
    result = clfew.ok(
        "distill",
        "--from",
        "runs/finetune-1",
        "--epochs",
        "1",
        "--lr",
        "100",
        "--format",
        "json",
        "--out",
        "worse",
        cwd=folder,
    )
    found = json.loads(result.stdout)
    assert not found["kept"] and "not kept" in result.stderr
    assert not (folder / "worse/classifier.safetensors").exists()
    assert result.next == ["clfew eval --from runs/finetune-1"]


def test_another_encoder_learns_from_the_teacher(taught, clfew):
    folder, _ = taught
    result = clfew.ok(
        "distill",
        "--from",
        "runs/finetune-1",
        "--student",
        "resnet8-w16",
        "--size",
        "24",
        "--keep",
        "--epochs",
        "1",
        "--temperature",
        "2",
        "--no-labels",
        "--out",
        "other",
        cwd=folder,
    )
    assert "the student is kept" in result.stdout and "resnet8-w16 from scratch" in result.stderr
    assert "expected   a network for speed" in result.stderr
    assert "measured; the student is kept" in " ".join(result.stderr.split())
    info = json.loads(clfew.ok("info", "other", "--format", "json", cwd=folder).stdout)
    assert (info["encoder"], info["size"]) == ("resnet8-w16", 24)
    assert info["training"]["distill"]["temperature"] == 2
    clfew.ok("predict", "unlabeled/ring/000.png", "--from", "other", cwd=folder)
    clfew.ok("eval", "--from", "other", "--out", "tested", cwd=folder)
    assert (
        "clfew distill --from runs/finetune-1 --student" in (folder / "tested/report.html").read_text()
    )


def test_a_fully_fine_tuned_network_can_be_the_teacher(taught, clfew):
    folder, _ = taught
    clfew.ok(
        "finetune",
        "--labels",
        "2/class",
        "--mode",
        "full",
        "--epochs",
        "1",
        "--out",
        "whole",
        "--from",
        "runs/pretrain-1",
        cwd=folder,
    )
    found = clfew.ok(
        "distill",
        "--from",
        "whole",
        "--epochs",
        "1",
        "--format",
        "json",
        "--out",
        "of-whole",
        cwd=folder,
    )
    assert json.loads(found.stdout)["verdict"]["held_out"] == 6


@pytest.mark.slow
def test_unlabelled_images_in_a_folder_of_their_own(tmp_path, clfew, images, tiny):
    images(tmp_path / "unlabeled", classes=("",), each=40)
    images(tmp_path / "labeled", seed=1)
    clfew.ok("pretrain", "./unlabeled", *tiny, cwd=tmp_path)
    clfew.ok("finetune", "--labels", "4/class", "--mode", "linear", cwd=tmp_path)
    result = clfew.ok("distill", "--epochs", "1", "--keep", cwd=tmp_path)
    # It learns from all of ./unlabeled and from those images of ./labeled that are not held out.
    assert "88 to learn from, 12 held out" in result.stderr
    clfew.ok("eval", cwd=tmp_path)


def test_too_few_labels_to_compare_by_are_refused_before_training(taught, clfew):
    folder, _ = taught
    clfew.ok(
        "finetune",
        "--labels",
        "1/class",
        "--mode",
        "linear",
        "--out",
        "one",
        "--from",
        "runs/pretrain-1",
        cwd=folder,
    )
    message = clfew.refused("distill", "--from", "one", cwd=folder)
    assert "one label only" in message and "--keep" in message
    message = clfew.refused("distill", "--from", "runs/distill-1", cwd=folder)
    assert "a student itself" in message


def test_what_cannot_be_distilled_is_refused(taught, clfew, tmp_path):
    folder, _ = taught
    assert "is an encoder" in clfew.refused(
        "distill", "--from", "runs/pretrain-1/encoder.safetensors", cwd=folder
    )
    assert "make a classifier first" in clfew.refused("distill", cwd=tmp_path)
    assert "no encoder named" in clfew.refused(
        "distill", "--from", "runs/finetune-1", "--student", "resnet8", cwd=folder
    )
    assert "--adapt" in clfew.refused("distill", "--adapt", "head", cwd=folder, rc=2)
    assert "There is no folder" in clfew.refused(
        "distill", "nowhere", "--from", "runs/finetune-1", cwd=folder
    )


def test_labels_that_went_missing_are_named(taught, clfew, tmp_path):
    import shutil

    folder, _ = taught
    copy = shutil.copytree(folder / "runs/finetune-1", tmp_path / "alone")
    (copy / "labels.csv").unlink()
    assert "labels.csv" in clfew.refused("distill", "--from", str(copy), cwd=folder)
    (copy / "labels.csv").write_text("path,label\nmoved/away.png,ring\n")
    assert "away.png" in clfew.refused("distill", "--from", str(copy), cwd=folder)


@pytest.mark.slow
def test_labelled_copies_of_some_of_the_unlabelled_images(clfew, images, tiny, tmp_path):
    """As in the README, ./labeled holds copies of a few images of ./unlabeled.

    Some of them would be in the test split of ./unlabeled. The classifier was trained on them, so they
    are not tested on.
    """
    images(tmp_path / "unlabeled")
    for name in ("cross", "ring", "stripe"):
        (tmp_path / "labeled" / name).mkdir(parents=True)
        for file in sorted((tmp_path / "unlabeled" / name).iterdir())[:8]:
            shutil.copy(file, tmp_path / "labeled" / name)
    clfew.ok("pretrain", "./unlabeled", *tiny, cwd=tmp_path)
    clfew.ok("finetune", "./labeled", "--labels", "all", "--mode", "linear", cwd=tmp_path)
    clfew.ok("eval", cwd=tmp_path)
    result = clfew.ok("distill", "--epochs", "1", "--keep", cwd=tmp_path)
    assert "saved      runs/distill-1/classifier.safetensors" in result.stderr
