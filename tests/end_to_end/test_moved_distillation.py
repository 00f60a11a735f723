"""Images that lie elsewhere, or have new times, are the same for what starts from earlier runs."""

import contextlib
import json
import os
import shutil
import time

import numpy as np
import pytest
import safetensors.numpy

from clfew.data.workers import content_digest

TRAIN = "--encoder resnet8-w8 --epochs 1 --init scratch --size 16"
CLASSES = ("cross", "ring")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clfew, images):
    """Below `a`: classes of images, pretraining images, and classes of other images."""
    folder = tmp_path_factory.mktemp("moved")
    images(folder / "a/classes", CLASSES, each=15)
    images(folder / "a/unlabeled", [f"{c}/{i}" for c in "xy" for i in range(4)], each=5, seed=1)
    images(folder / "a/labeled", CLASSES, each=15, seed=2)
    run(clfew, folder, f"pretrain a/classes {TRAIN} --out one-p")
    run(clfew, folder, "finetune a/classes --labels 4/class --mode linear --from one-p --out one-f")
    run(clfew, folder, "distill --from one-f --epochs 1 --keep --out one-d")
    run(clfew, folder, f"pretrain a/unlabeled {TRAIN} --group-by 2 --out two-p")
    run(clfew, folder, "finetune a/labeled --labels 4/class --mode linear --from two-p --out two-f")
    run(clfew, folder, "distill --from two-f --epochs 1 --keep --out two-d")
    return folder


def run(clfew, folder, words):
    return clfew.ok(*words.split(), cwd=folder)


@contextlib.contextmanager
def moved(folder, to, keeps_times):
    """Moves everything in `a`, as a disk that is mounted elsewhere, or as a clone with other times."""
    if keeps_times:
        os.rename(folder / "a", folder / to)
    else:
        for file in sorted((folder / "a").rglob("*.png"), reverse=True):
            target = folder / to / file.relative_to(folder / "a")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            os.utime(target, (time.time() + 1000, time.time() + 1000))
        os.rename(folder / "a", folder / "away")
    try:
        yield
    finally:
        os.rename(folder / (to if keeps_times else "away"), folder / "a")
        shutil.rmtree(folder / to, ignore_errors=True)


def seen_in(artifact):
    return set(safetensors.numpy.load_file(artifact)["seen.pretraining"].view("u8").tolist())


def unfinished(folder, name, number):
    """Copies a run as it is before anything is trained."""
    again = shutil.copytree(folder / name, folder / f"{name}-{number}")
    for each in ("classifier.safetensors", "result.json"):
        (again / each).unlink()
    return again.name


def weights(folder):
    arrays = safetensors.numpy.load_file(folder / "classifier.safetensors")
    return {name: array for name, array in arrays.items() if not name.startswith("seen.")}


def assert_same_student(one, other):
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_distillation_is_resumed_with_other_times(clfew, folder):
    with moved(folder, "copy", keeps_times=False):
        shutil.copytree(folder / "copy", folder / "a")
        found = run(clfew, folder, f"distill --resume {unfinished(folder, 'two-d', 'times')}")
        shutil.rmtree(folder / "a")
    assert "elsewhere or with other times" in found.stderr
    assert_same_student(folder / "two-d", folder / "two-d-times")


@pytest.mark.slow
@pytest.mark.parametrize("keeps_times", [True, False])
@pytest.mark.parametrize(
    ("name", "place"), [("one", "b/classes"), ("two", "b/unlabeled"), ("two", "b/labeled")]
)
def test_a_distillation_is_resumed_elsewhere(clfew, folder, name, place, keeps_times):
    """Of two sources, the other one is found beside that which is named."""
    again = unfinished(folder, f"{name}-d", f"{os.path.basename(place)}-{keeps_times}")
    with moved(folder, "b", keeps_times):
        refused = clfew("distill", "--resume", again, cwd=folder)
        assert refused.rc == 1 and "any more." in refused.stderr
        assert f"hint: name where they are now: clfew distill --resume {again}" in refused.stderr
        found = run(clfew, folder, f"distill --resume {again} {place}")
        assert found.next[0] == f"clfew eval --from {again}"
        assert ("elsewhere or with other times" in found.stderr) == (not keeps_times)
        # What it says to type next finds the images.
        report = json.loads(run(clfew, folder, f"eval --from {again} --format json").stdout)
        assert report["n"] == 6 and report["seen_in_finetuning"] == report["seen_in_pretraining"] == 0
        assert json.loads((folder / again / "config.json").read_text())["parts"][-1]["spec"] == str(
            folder / ("b/classes" if name == "one" else "b/unlabeled")
        )
    assert_same_student(folder / f"{name}-d", folder / again)


@pytest.mark.parametrize("change", ["labeled", "unlabeled"])
def test_a_distillation_is_not_resumed_with_other_images(clfew, folder, change):
    again = unfinished(folder, "two-d", f"changed-{change}")
    with moved(folder, "b", keeps_times=False):
        file = next((folder / "b" / change).rglob("*.png"))
        file.write_bytes(file.read_bytes() + b"\0")
        found = clfew("distill", "--resume", again, "b/unlabeled", cwd=folder)
        assert found.rc == 1 and "have changed" in found.stderr and "hint: " in found.stderr


@pytest.mark.parametrize("is_there", [True, False])
def test_a_new_distillation_knows_what_was_held_out(clfew, folder, is_there):
    with moved(folder, "b", keeps_times=False):
        if is_there:
            os.rename(folder / "away", folder / "a")
        words = f"distill b/classes --from one-f --epochs 1 --keep --out one-new-{is_there}"
        found = run(clfew, folder, words)
        if is_there:
            os.rename(folder / "a", folder / "away")
    assert "24 to learn from, 6 held out" in found.stderr
    assert f"the images of {folder / 'a/classes'}, elsewhere" in found.stderr
    assert_same_student(folder / "one-d", folder / f"one-new-{is_there}")


def test_a_new_distillation_finds_both_sources_elsewhere(clfew, folder):
    with moved(folder, "b", keeps_times=False):
        run(clfew, folder, "distill b/unlabeled --from two-f --epochs 1 --keep --out two-new")
        run(clfew, folder, "eval --from two-new")
    assert_same_student(folder / "two-d", folder / "two-new")


def test_pretraining_images_are_grouped_as_in_pretraining(folder):
    """Otherwise the student would learn from some of those that were held out with their group."""
    learned = seen_in(folder / "two-p/encoder.safetensors")
    images = {content_digest(file.read_bytes()) for file in (folder / "a/unlabeled").rglob("*.png")}
    assert len(learned & images) == 30  # Three groups of four in each class.
    assert seen_in(folder / "two-d/classifier.safetensors") & images == learned


def test_images_that_are_gone_are_named_with_what_to_do(clfew, folder, images):
    images(folder / "others", ("",), each=20, seed=3)
    with moved(folder, "b", keeps_times=True):
        message = clfew.refused("distill", "--from", "one-f", cwd=folder)
        assert "was fitted to are not in" in message and "clfew distill FOLDER" in message
        message = clfew.refused("distill", "--from", "two-f", cwd=folder)
        assert "pretrained on are not in" in message and "clfew distill FOLDER" in message
        message = clfew.refused("distill", "others", "--from", "two-f", cwd=folder)
        assert f"not in {folder / 'a/labeled'} any more" in message and "fine-tune again" in message


@pytest.mark.slow
def test_finetune_elsewhere_groups_and_splits_as_pretraining_did(clfew, folder, images):
    images(folder / "grouped", [f"{c}/{i}" for c in CLASSES for i in range(6)], each=4, seed=4)
    run(clfew, folder, f"pretrain grouped {TRAIN} --group-by 2 --seed 3 --out g-p")
    words = "finetune {} --labels 4/class --mode linear --from g-p --out {} --format json"
    first = json.loads(run(clfew, folder, words.format("grouped", "g-f")).stdout)
    shutil.copytree(folder / "grouped", folder / "g-copy", copy_function=shutil.copyfile)
    shutil.rmtree(folder / "grouped")
    found = run(clfew, folder, words.format("g-copy", "g-moved"))
    second = json.loads(found.stdout)
    assert "groups by 2" in found.stderr and f"images of {folder / 'grouped'}, else" in found.stderr
    assert "pretraining images in" not in found.stderr  # They are no others.
    assert second["draws"] == first["draws"] and second["test_images"] == first["test_images"]
    labels = [(folder / name / "labels.csv").read_bytes() for name in ("g-f", "g-moved")]
    assert labels[0] == labels[1]
    report = json.loads(run(clfew, folder, "eval --from g-moved --format json").stdout)
    assert report["seen_in_pretraining"] == report["seen_in_finetuning"] == 0
    assert "holds out other images" in clfew.refused(
        "finetune", "g-copy", "--group-by", "1", "--labels", "4/class", "--from", "g-p", cwd=folder, rc=2
    )
    again = unfinished(folder, "g-moved", "again")
    os.rename(folder / "g-copy", folder / "g-third")
    found = run(clfew, folder, f"finetune --resume {again} g-third --format json")
    assert json.loads(found.stdout)["draws"] == first["draws"]
    assert "pretraining images in" not in found.stderr
    run(clfew, folder, f"distill --from {again} --epochs 1 --keep --out g-d")
