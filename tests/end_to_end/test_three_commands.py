"""The three commands on the README's first page, in one folder, and alternatives to their parts."""

import csv
import json
import os
import shlex

import pytest
from marks import rest_is_slow
from PIL import Image

CLASSES = ("cross", "ring", "stripe")


def listed(run):
    """The rows of a run's labels.csv."""
    with open(run / "labels.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_three_commands_as_they_are_on_the_first_page(clfew, images, digests, tmp_path):
    images(tmp_path / "unlabeled")
    Image.open(tmp_path / "unlabeled/stripe/003.png").save(tmp_path / "image.jpg")
    originals = digests(tmp_path)
    pretrained = clfew("pretrain", "./unlabeled", cwd=tmp_path, warm=False)
    assert (pretrained.rc, pretrained.stdout) == (0, ""), pretrained.stderr
    assert pretrained.next == ["clfew finetune --labels 1%"]
    finetuned = clfew("finetune", "--labels", "1%", cwd=tmp_path, warm=False)
    assert finetuned.rc == 0, finetuned.stderr
    assert finetuned.next == ["clfew eval", "clfew predict IMAGE"]
    assert "on 12 test images" in finetuned.stdout
    predicted = clfew("predict", "image.jpg", cwd=tmp_path, warm=False)
    assert predicted.rc == 0 and predicted.stderr == "", predicted.stderr
    (row,) = predicted.stdout.splitlines()
    assert row.startswith("image.jpg  ") and all(name in row for name in CLASSES) and row.count("%") == 3
    # It used one label of each class, and did not change the images.
    assert [r["label"] for r in listed(tmp_path / "runs/finetune-1")] == list(CLASSES)
    after = digests(tmp_path)
    assert {name: after[name] for name in originals} == originals


@pytest.mark.parametrize("name", rest_is_slow(["labeled", "labelled"]))
def test_labels_may_be_in_a_folder_of_their_own(clfew, images, tiny, tmp_path, name):
    images(tmp_path / "unlabeled", classes=[""], each=40)
    images(tmp_path / name, seed=1, each=10)
    assert clfew.ok("pretrain", "./unlabeled", *tiny, cwd=tmp_path).next == [
        "clfew finetune --labels 1%"
    ]
    result = clfew.ok("finetune", "--labels", "2/class", "--format", "json", cwd=tmp_path)
    summary = json.loads(result.stdout)
    assert (summary["run"], summary["test_images"]) == ("runs/finetune-1", 6)
    assert len(listed(tmp_path / "runs/finetune-1")) == 6
    clfew.ok("predict", f"{name}/ring", cwd=tmp_path)
    # The pretraining images hold no copy of a labelled one.
    report = json.loads(clfew.ok("eval", "--format", "json", cwd=tmp_path).stdout)
    assert (report["n"], report["seen_in_pretraining"], report["seen_in_finetuning"]) == (6, 0, 0)


def test_finetune_without_labelled_images_names_what_is_missing(clfew, images, tiny, tmp_path):
    images(tmp_path / "unlabeled", classes=[""], each=40)
    clfew.refused("finetune", "--labels", "1%", cwd=tmp_path)
    clfew.ok("pretrain", "./unlabeled", *tiny, cwd=tmp_path)
    message = clfew.refused("finetune", "--labels", "1%", cwd=tmp_path)
    assert (
        "unlabeled" in message and "labelled images" in message and "subfolder for each class" in message
    )


def test_a_test_folder_is_never_learned_from(clfew, images, tiny, tmp_path):
    for seed, split in enumerate(("train", "val", "test")):
        images(tmp_path / "data" / split, each=12, seed=seed)
    started = clfew.ok("pretrain", "data", *tiny, cwd=tmp_path)
    assert "72 of 108" in started.stderr
    clfew.ok("finetune", "--labels", "all", "--mode", "knn", cwd=tmp_path)
    rows = listed(tmp_path / "runs/finetune-1")
    assert rows and not [row for row in rows if row["path"].startswith("test/")]
    assert sorted({row["label"] for row in rows}) == list(CLASSES)
    report = json.loads(clfew.ok("eval", "--format", "json", cwd=tmp_path).stdout)
    assert (report["n"], report["seen_in_pretraining"], report["seen_in_finetuning"]) == (36, 0, 0)


def test_a_csv_of_paths_and_labels_is_a_source(clfew, images, tiny, tmp_path):
    images(tmp_path / "photos", classes=["a", "b"])
    lines = [f"photos/{name}/{i:03d}.png,class {name}" for name in "ab" for i in range(20)]
    (tmp_path / "list.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    clfew.ok("pretrain", "list.csv", *tiny, "--batch", 16, cwd=tmp_path)
    clfew.ok("finetune", "--labels", "4", "--mode", "knn", cwd=tmp_path)
    assert {row["label"] for row in listed(tmp_path / "runs/finetune-1")} == {"class a", "class b"}
    (row,) = clfew.ok("predict", "photos/a/000.png", "--format", "jsonl", cwd=tmp_path).rows()
    assert row["label"] in ("class a", "class b")
    # The CSV file is also a source for eval.
    assert json.loads(clfew.ok("eval", "list.csv", "--format", "json", cwd=tmp_path).stdout)["n"] == 8


@pytest.mark.parametrize("kind", rest_is_slow(["parquet", "imagefolder"]))
def test_data_sets_of_hugging_face_are_sources(clfew, images, tiny, tmp_path, kind):
    images(tmp_path / "pictures")
    if kind == "imagefolder":
        source = "hf:./pictures"
    else:
        datasets = pytest.importorskip("datasets")
        files = sorted((tmp_path / "pictures").rglob("*.png"))
        features = datasets.Features(
            {"picture": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
        )
        table = {
            "picture": [{"bytes": f.read_bytes()} for f in files],
            "label": [f.parent.name for f in files],
        }
        (tmp_path / "local").mkdir()
        datasets.Dataset.from_dict(table, features=features).to_parquet(tmp_path / "local/train.parquet")
        source = "hf:./local"
    clfew.ok("pretrain", source, *tiny, cwd=tmp_path)
    clfew.ok("finetune", "--labels", "2/class", "--mode", "knn", cwd=tmp_path)
    assert [row["label"] for row in listed(tmp_path / "runs/finetune-1")] == [
        c for c in CLASSES for _ in "12"
    ]
    clfew.ok("predict", "pictures/ring/000.png", cwd=tmp_path)
    assert json.loads(clfew.ok("eval", "--format", "json", cwd=tmp_path).stdout)["n"] == 12


def test_a_label_file_can_label_an_unlabelled_folder(clfew, images, tiny, tmp_path):
    images(tmp_path / "unlabeled", classes=[""], each=40)
    lines = [f"unlabeled/{i:03d}.png,{'even' if i % 2 == 0 else 'odd'}" for i in range(12)]
    (tmp_path / "my.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    clfew.ok("pretrain", "./unlabeled", *tiny, cwd=tmp_path)
    result = clfew.ok("finetune", "--labels", "my.csv", "--repeat", 3, cwd=tmp_path)
    assert "no labelled images were left to test on" in result.stdout
    assert "clfew eval" not in result.next and "clfew predict IMAGE" in result.next
    assert len(listed(tmp_path / "runs/finetune-1")) == 12
    assert len(clfew.ok("predict", "unlabeled", cwd=tmp_path).stdout.splitlines()) == 40
    # All labels were used in training, so there are no images left to test on.
    message = clfew.refused("eval", cwd=tmp_path)
    assert "to test on" in message


def test_labels_csv_of_a_run_reproduces_its_label_sample(clfew, project):
    first = json.loads(
        clfew.ok(
            "finetune",
            "--labels",
            "3/class",
            "--mode",
            "linear",
            "--seed",
            5,
            "--format",
            "json",
            cwd=project,
        ).stdout
    )
    again = json.loads(
        clfew.ok(
            "finetune",
            "--labels",
            "runs/finetune-2/labels.csv",
            "--mode",
            "linear",
            "--seed",
            5,
            "--repeat",
            2,
            "--format",
            "json",
            cwd=project,
        ).stdout
    )
    assert listed(project / "runs/finetune-2") == listed(project / "runs/finetune-3")
    assert first["draws"][0] == again["draws"][0] and again["test_images"] == 12
    # A file is one label sample, whatever --repeat is, and is not reported as several.
    table = clfew.ok(
        "finetune", "--labels", "runs/finetune-2/labels.csv", "--repeat", 2, "--mode", "knn", cwd=project
    )
    assert len(again["draws"]) == 1 and "over 2 label samples" not in table.stdout


def test_repeat_reports_mean_and_interval(clfew, project):
    settings = ("finetune", "--labels", "2/class", "--mode", "knn", "--repeat", 3)
    result = json.loads(clfew.ok(*settings, "--format", "json", cwd=project).stdout)
    accuracies = [draw["accuracy"] for draw in result["draws"]]
    assert [draw["seed"] for draw in result["draws"]] == [0, 1, 2]
    assert result["mean"] == pytest.approx(sum(accuracies) / 3)
    low, high = result["ci95"]
    assert 0 <= low <= result["mean"] <= high <= 1
    assert json.loads((project / "runs/finetune-2/result.json").read_text())["draws"] == result["draws"]
    table = clfew.ok(*settings, cwd=project).stdout
    assert "over 3 label samples" in table and table.count("seed ") == 3


@pytest.mark.parametrize("mode", rest_is_slow(["auto", "full", "linear", "knn", "propagate"]))
def test_every_mode_makes_a_classifier_that_predicts_and_is_tested(clfew, project, mode):
    clfew.ok("finetune", "--labels", "4/class", "--mode", mode, "--epochs", 2, cwd=project)
    (row,) = clfew.ok("predict", "image.jpg", "--format", "jsonl", cwd=project).rows()
    assert row["label"] in CLASSES and 0 < row["probability"] <= 1
    report = json.loads(clfew.ok("eval", "--format", "json", cwd=project).stdout)
    assert (
        report["mode"] == mode
        if mode != "auto"
        else report["mode"] in ("full", "linear", "knn", "propagate")
    )
    assert (report["n"], report["seen_in_finetuning"]) == (12, 0)
    # The accuracy that finetune reported is the one that eval finds.
    draw = json.loads((project / "runs/finetune-2/result.json").read_text())["draws"][0]
    assert draw["accuracy"] == pytest.approx(report["accuracy"])


def test_from_scratch_needs_no_pretraining(clfew, images, tmp_path):
    images(tmp_path / "labeled")
    clfew.ok(
        "finetune",
        "--from",
        "scratch",
        "--labels",
        "30",
        "--encoder",
        "resnet8-w8",
        "--epochs",
        1,
        cwd=tmp_path,
    )
    metadata = json.loads(clfew.ok("info", "runs/finetune-1", "--format", "json", cwd=tmp_path).stdout)
    assert (metadata["method"], metadata["encoder"], metadata["mode"]) == ("", "resnet8-w8", "full")
    assert clfew.ok("predict", "labeled/ring/001.png", cwd=tmp_path).stdout.startswith(
        "labeled/ring/001.png  "
    )


def test_the_newest_run_is_used_and_another_can_be_named(clfew, project, tiny):
    clfew.ok("pretrain", "unlabeled", *tiny, "--seed", 1, cwd=project)
    assert sorted(p.name for p in (project / "runs").glob("pretrain-*")) == ["pretrain-1", "pretrain-2"]
    options = ("finetune", "--labels", "1/class", "--mode", "knn")
    for extra, used in (
        ([], "runs/pretrain-2/encoder.safetensors"),
        (["--from", "runs/pretrain-1"], "runs/pretrain-1/encoder.safetensors"),
        (["--from", "runs/pretrain-1/encoder.safetensors"], "runs/pretrain-1/encoder.safetensors"),
        (["--from", "runs/finetune-1"], "runs/finetune-1/classifier.safetensors"),
    ):
        clfew.ok(*options, *extra, cwd=project)
        newest = max((project / "runs").glob("finetune-*"), key=lambda run: int(run.name.split("-")[1]))
        assert json.loads((newest / "config.json").read_text())["from"] == str(project / used)
    for named in ("runs/finetune-1", "runs/finetune-1/classifier.safetensors"):
        clfew.ok("predict", "image.jpg", "--from", named, cwd=project)


def test_the_command_printed_next_can_be_typed_as_it_is(clfew, project, tiny):
    # A run outside ./runs is not found by itself, so --from names it, quoted where a shell needs it.
    made = clfew.ok("pretrain", "unlabeled", *tiny, "--out", "my run", cwd=project)
    assert shlex.split(made.next[0])[-2:] == ["--from", "my run"]
    made = clfew.ok(*shlex.split(made.next[0])[1:], "--out", "my classifier", cwd=project)
    for command in made.next:
        clfew.ok(*shlex.split(command.replace("IMAGE", "image.jpg"))[1:], cwd=project)


@pytest.mark.slow
def test_names_that_are_not_utf_8_are_names_all_the_same(clfew, images, tiny, tmp_path):
    images(tmp_path / "unlabeled", classes=["a", "b"])
    try:
        os.rename(bytes(tmp_path / "unlabeled/a"), bytes(tmp_path / "unlabeled") + b"/caf\xe9")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    os.rename(bytes(tmp_path / "unlabeled/b/001.png"), bytes(tmp_path / "unlabeled/b") + b"/\xff.png")
    clfew.ok("pretrain", "./unlabeled", *tiny, cwd=tmp_path)
    clfew.ok("finetune", "--labels", "all", "--mode", "knn", cwd=tmp_path)
    for output in ("table", "json", "jsonl", "csv"):
        text = clfew.ok("predict", "unlabeled", "--format", output, cwd=tmp_path).stdout
        assert text.count(".png") == 40
    report = json.loads(clfew.ok("eval", "--format", "json", cwd=tmp_path).stdout)
    assert len(report["classes"]) == 2 and report["n"] == 8
    for arguments in (["eval"], ["embed", "unlabeled"], ["info", "runs/finetune-1"], ["cache"]):
        clfew.ok(*arguments, cwd=tmp_path)
    # The list of labels that a run writes can be given to the next.
    clfew.ok("finetune", "--labels", "runs/finetune-1/labels.csv", "--mode", "knn", cwd=tmp_path)
