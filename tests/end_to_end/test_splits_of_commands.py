"""Every command holds out the same images: copies of test images are learned from nowhere, and a source
that a label CSV relabels is tested on the split that it was trained beside.
"""

import csv
import json
import shutil

import pytest
import safetensors.numpy

from clfew.data.groups import groups_of
from clfew.data.image_cache import open_image_cache
from clfew.data.label_lists import apply_label_csv
from clfew.data.lists import ListFile
from clfew.data.sources import open_source
from clfew.data.splits import test_indices as held_out_indices
from clfew.data.workers import content_digest

CLASSES = ("cross", "ring")
TRAIN = "--encoder resnet8-w8 --epochs 1 --init scratch"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clfew, images):
    """Images with a test split, of which the training images hold two copies under other names."""
    folder = tmp_path_factory.mktemp("copies")
    images(folder / "data/train", CLASSES, each=12)
    images(folder / "data/test", CLASSES, each=5, seed=1)
    for name in CLASSES:
        shutil.copy(folder / f"data/test/{name}/000.png", folder / f"data/train/{name}/copy.png")
    run(clfew, folder, f"pretrain data {TRAIN} --out pretrained")
    return folder


def run(clfew, folder, words):
    return clfew.ok(*words.split(), cwd=folder)


def digests_in(artifact, step):
    return set(safetensors.numpy.load_file(artifact)[f"seen.{step}"].view("u8").tolist())


def copies(folder):
    files = [folder / f"data/train/{name}/copy.png" for name in CLASSES]
    return {content_digest(file.read_bytes()) for file in files}


def test_pretraining_learns_from_no_copy_of_a_test_image(folder):
    seen = digests_in(folder / "pretrained/encoder.safetensors", "pretraining")
    assert len(seen) == 24 and not seen & copies(folder)


def test_finetuning_learns_from_none(clfew, folder):
    run(clfew, folder, "finetune data --from pretrained --labels all --mode propagate --out tuned")
    assert not digests_in(folder / "tuned/classifier.safetensors", "finetuning") & copies(folder)
    with open(folder / "tuned/pool_labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and not [row for row in rows if "copy" in row["path"]]


def test_the_normalisation_of_a_network_from_scratch_counts_none(clfew, folder):
    shutil.copytree(folder / "data", folder / "without")
    for name in CLASSES:
        (folder / f"without/train/{name}/copy.png").unlink()
    means = []
    for source in ("data", "without"):
        options = "--from scratch --encoder resnet8-w8 --labels 2/class --epochs 1"
        run(clfew, folder, f"finetune {source} {options} --out scratch-{source}")
        means.append(json.loads((folder / f"scratch-{source}/config.json").read_text())["about"]["mean"])
    assert means[0] == means[1]


def test_a_comparison_learns_from_none(clfew, folder):
    options = "--methods simclr --labels all --draws 1 --epochs 1 --encoder resnet8-w8"
    result = json.loads(run(clfew, folder, f"compare data {options} --format json").stdout)
    assert {row["labels"] for row in result["rows"]} == {24} and result["images"] == 24


def test_distillation_learns_from_none(clfew, folder):
    run(clfew, folder, "finetune data --from pretrained --labels 4/class --mode linear --out few")
    run(clfew, folder, "distill --from few --epochs 1 --keep --out student")
    seen = digests_in(folder / "student/classifier.safetensors", "pretraining")
    assert len(seen) == 24 and not seen & copies(folder)


def test_relabelled_images_are_tested_on_the_split_that_was_held_out(
    clfew, images, tmp_path, monkeypatch
):
    monkeypatch.setenv("CLFEW_CACHE", str(tmp_path / "own-cache"))
    # By the labels of the folders another fifth would be held out than by those of the list.
    images(tmp_path / "data", CLASSES, each=30)
    names = sorted(path.relative_to(tmp_path) for path in (tmp_path / "data").rglob("*.png"))
    by_folders, labels = held_out(tmp_path, {}), {}
    for name in map(str, names):
        other = CLASSES[1 - CLASSES.index(name.split("/")[1])]
        more = labels | {name: other}
        if len(labels) < 12 and not more.keys() & held_out(tmp_path, more):
            labels = more
    tested = held_out(tmp_path, labels)
    others = [str(name) for name in names if str(name) not in {*tested, *labels}]
    labels |= {name: CLASSES[0] for name in others if name.startswith("data/cross")}
    assert by_folders != held_out(tmp_path, labels)
    assert not labels.keys() & held_out(tmp_path, labels)
    run(clfew, tmp_path, f"pretrain data {TRAIN}")
    words = "finetune data --labels labels.csv --mode linear --format json"
    result = json.loads(run(clfew, tmp_path, words).stdout)
    report = json.loads(run(clfew, tmp_path, "eval --format json").stdout)
    assert report["n"] == result["test_images"] > 0
    assert report["seen_in_finetuning"] == 0
    assert report["accuracy"] == pytest.approx(result["mean"])


def held_out(folder, labels):
    """Writes a list of labels, and returns the images that are held out beside it."""
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *labels.items()])
    source = open_source(str(folder / "data"))
    if labels:
        source, _ = apply_label_csv(source, ListFile(folder / "labels.csv"))
    groups = groups_of(source, open_image_cache(source, 16))
    return {f"data/{source.identities[i]}" for i in held_out_indices(source, 0, groups)}
