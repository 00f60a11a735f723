"""What can be known before training is said before training, in one sentence, and nothing is written."""

import csv
import shutil

import pytest

CLASSES = ("cross", "ring")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clfew, images):
    """Sources that a command cannot work with, each by its name, and a classifier of all labels."""
    folder = tmp_path_factory.mktemp("before")
    images(folder / "good", CLASSES, each=12)
    images(folder / "one class", CLASSES[:1], each=12)
    images(folder / "no labels", ("",), each=24)
    images(folder / "one image", CLASSES, each=12)
    images(folder / "one image", ("stripe",), each=1)
    images(folder / "only tested/train", CLASSES, each=8)
    images(folder / "only tested/test", (*CLASSES, "stripe"), each=4, seed=1)
    write(folder / "test without labels.csv", split=lambda n: "test" if n < 4 else "train")
    write(folder / "list of one class.csv", keep=lambda name, n: name == "cross" and n < 4)
    write(folder / "list.csv", keep=lambda name, n: n < 4)
    pretrain = ("pretrain", "good", "--encoder", "resnet8-w8", "--epochs", 1, "--init", "scratch")
    clfew.ok(*pretrain, cwd=folder)
    clfew.ok("finetune", "good", "--labels", "all", "--mode", "linear", cwd=folder)
    return folder


def write(path, split=None, keep=lambda name, n: True):
    """A CSV of the good images; those of the test split have no label."""
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", *(["split"] if split else [])])
        for name in CLASSES:
            for n in range(12):
                part = split(n) if split else ""
                label = "" if part == "test" else name
                if keep(name, n):
                    rows.writerow([f"good/{name}/{n:03d}.png", label, *([part] if split else [])])


FINETUNE, COMPARE = ("finetune", "--labels"), ("compare", "--methods", "simclr", "--labels")


@pytest.mark.parametrize(
    ("command", "budget", "source", "sentence"),
    [
        (FINETUNE, "all", "one class", "has one class only, 'cross'"),
        (COMPARE, "all", "one class", "has one class only, 'cross'"),
        (FINETUNE, "1%", "no labels", "has no labels"),
        (COMPARE, "1%", "no labels", "has no labels"),
        (FINETUNE, "list of one class.csv", "good", "lists images of one class only, 'cross'"),
        (FINETUNE, "all", "one image", "'stripe' has one image, which is too few"),
        (COMPARE, "all", "one image", "'stripe' has one image, which is too few"),
        (FINETUNE, "all", "only tested", "'stripe' has no image outside the test split"),
        (COMPARE, "all", "only tested", "'stripe' has no image outside the test split"),
        (FINETUNE, "11/class", "good", "11/class is more than the class"),
        (COMPARE, "2/class,11/class", "good", "11/class is more than the class"),
        (FINETUNE, "1", "good", "1 is fewer than one for each of the 2 classes"),
        (COMPARE, "1", "good", "1 is fewer than one for each of the 2 classes"),
        (FINETUNE, "100", "good", "100 is more than the"),
        (COMPARE, "1%,100", "good", "100 is more than the"),
        (COMPARE, "list.csv", "good", "--labels list.csv is a file"),
        (("eval",), None, "no labels", "has no labels to test against"),
        (("distill", "--epochs", "1"), None, None, "are labelled: a student has nothing to learn from"),
        (("distill", "--keep"), None, None, "are labelled: a student has nothing to learn from"),
    ],
)
def test_what_cannot_be_is_said_first(clfew, folder, tmp_path, command, budget, source, sentence):
    shutil.copytree(folder, tmp_path / "project")
    words = [*command, *([budget] if budget else []), *([source] if source else [])]
    rc = 2 if "is a file" in sentence else 1
    assert sentence in clfew.refused(*words, cwd=tmp_path / "project", rc=rc)


def test_where_a_test_split_has_no_labels_a_fifth_of_the_others_is_tested_on(clfew, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "project")
    done = clfew.ok(
        "finetune",
        "test without labels.csv",
        "--labels",
        "all",
        "--mode",
        "linear",
        cwd=tmp_path / "project",
    )
    assert "on 4 test images" in done.stdout
    assert "test 8; test has no labels: a fifth of train is held out" in done.stderr
