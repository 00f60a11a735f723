"""Very many files, folders and classes, and very long names.

A test that is marked as long runs at a reduced size; CLFEW_THOROUGH=1 runs it at full size and also
limits its time.
"""

import csv
import gc
import json
import os
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from fuzzing import THOROUGH

from clfew.data import splits
from clfew.data.image_cache import open_image_cache
from clfew.data.image_files import expand
from clfew.data.label_lists import apply_label_csv
from clfew.data.labels import parse_labels, sample_labels
from clfew.data.lists import ListFile
from clfew.data.source import Source
from clfew.data.sources import open_source
from clfew.data.splits import require_testable
from clfew.errors import UserError
from clfew.runs.files import write_csv

SECONDS = 20
"""Processor time for work of a few seconds: enough for a slow processor."""
LONG_CLASS = "ß" * 126 + "xyz"
LONG_FILE = "é" * 125 + "x.png"
assert len(LONG_CLASS.encode()) == len(LONG_FILE.encode()) == 255


def make_files(root: Path, names: list[str]) -> Path:
    """Creates empty files, because listing a folder does not read them."""
    for folder in {os.path.dirname(name) for name in names}:
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        os.close(os.open(root / name, os.O_CREAT | os.O_WRONLY))
    return root


def one_folder():
    return [f"image-{i:09d}.jpg" for i in range(200_000 if THOROUGH else 2_000)]


def three_levels():
    """Returns names of one image in each of many folders, and of more images two folders deeper."""
    folders = range(1_000 if THOROUGH else 100)
    deep = [f"{a:04d}/deep/deeper/image-{i:09d}.jpg" for a in folders for i in range(20)]
    return [f"{a:04d}/1.jpg" for a in folders] + deep


def traced(root: Path) -> tuple[int, int]:
    """Returns how many bytes a listing keeps, and how many it needs at most."""
    gc.collect()
    tracemalloc.start()
    source = open_source(str(root))
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source)
    return kept, most


@pytest.mark.long
@pytest.mark.parametrize("layout", [one_folder, three_levels])
def test_a_listing_keeps_the_names_and_little_else(tmp_path, layout):
    names = layout()
    root = make_files(tmp_path / "root", names)
    open_source(str(root))  # The first call imports modules, whose time and memory must not count.
    started = time.monotonic()
    source = open_source(str(root))
    seconds = time.monotonic() - started
    assert source.identities == sorted(names)
    folders = {name.split("/")[0] for name in names if "/" in name}
    assert source.classes == sorted(folders)

    # Whatever else is cached meanwhile, such as a regular expression, is not needed each time.
    kept, most = map(min, zip(*(traced(root) for _ in range(3)), strict=True))
    # For each image, its name, a place in the list, a label, and a split of five letters.
    needed = sum(map(sys.getsizeof, source.identities)) + len(names) * (8 + 8 + 4 * 5)
    # While a folder is read, its directory entries and their whole paths are in memory.
    largest = len(names) if not folders else len(names) // len(folders)
    entries = largest * (150 + len(str(root)))
    print(f"{len(names):,} files: {seconds:.2f} s; {kept:,} bytes for {needed:,}, at most {most:,}")
    assert kept < 1.1 * needed + 10_000
    assert most < 1.3 * needed + entries + 10_000
    if THOROUGH:
        assert seconds < SECONDS


def source_of(sizes: list[int]) -> Source:
    """Returns a source without files. sizes: the number of images of each class."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    names = [f"{label}/{i}.png" for i, label in enumerate(labels)]
    train = np.full(len(labels), "train")
    return Source("/data", names, labels, [f"c{c}" for c in range(len(sizes))], train, bytes, "")


def counts_of(source: Source, indices: np.ndarray) -> list[int]:
    return np.bincount(source.labels[indices], minlength=len(source.classes)).tolist()


def test_a_class_of_100_000_images_beside_one_of_2():
    source = source_of([100_000, 2])
    require_testable(source)
    held_out = splits.test_indices(source, 0)
    assert counts_of(source, held_out) == [20_000, 1]
    pool = np.setdiff1d(np.arange(len(source)), held_out)
    expected = {
        "1%": [800, 1],
        "1/class": [1, 1],
        "2": [1, 1],
        "10": [9, 1],
        "50000": [49_999, 1],
        "all": [80_000, 1],
    }
    for spec, counts in expected.items():
        assert counts_of(source, sample_labels(source, pool, parse_labels(spec), 0)) == counts, spec
    with pytest.raises(UserError, match="'c1' has outside the test split"):
        sample_labels(source, pool, parse_labels("2/class"), 0)


def test_labels_of_2000_classes_beside_a_large_one():
    source = source_of([100_000] + [4] * 1_999)
    started = time.process_time()
    held_out = splits.test_indices(source, 0)
    assert counts_of(source, held_out) == [20_000] + [1] * 1_999
    pool = np.setdiff1d(np.arange(len(source)), held_out)
    for spec, large, small in [("1%", 800, 1), ("1/class", 1, 1), ("4000", 2, 2), ("60000", 54_003, 3)]:
        counts = counts_of(source, sample_labels(source, pool, parse_labels(spec), 0))
        assert sum(counts) == large + 1_999 * small and counts[0] == large, spec
        assert set(counts[1:]) == {small}, spec
    if THOROUGH:
        assert time.process_time() - started < SECONDS


@pytest.mark.long
def test_2000_class_folders_are_2000_classes(tmp_path):
    count = 2_000 if THOROUGH else 300
    root = make_files(
        tmp_path / "root", [f"class-{c:05d}/{i}.png" for c in range(count) for i in range(3)]
    )
    source = open_source(str(root))
    assert len(source.classes) == count and counts_of(source, np.arange(3 * count)) == [3] * count
    held_out = splits.test_indices(source, 0)
    pool = np.setdiff1d(np.arange(3 * count), held_out)
    sampled = sample_labels(source, pool, parse_labels("1/class"), 0)
    assert counts_of(source, held_out) == counts_of(source, sampled) == [1] * count
    file = tmp_path / "labels.csv"
    rows = [(source.identities[i], source.classes[source.labels[i]]) for i in sampled]
    write_csv(file, ["path", "label"], rows)
    labelled, named = apply_label_csv(source, ListFile(file))
    assert np.array_equal(named, sampled) and np.array_equal(labelled.labels, source.labels)


@pytest.fixture
def long_names(tmp_path, put):
    """Two classes, one with a name of 255 bytes. Each has an image with a name of 255 bytes."""
    for label, name in enumerate((LONG_CLASS, "short")):
        put(tmp_path / "images" / name / LONG_FILE, label)
        put(tmp_path / "images" / name / "1.png", label)
    return tmp_path / "images"


def test_names_of_255_bytes_are_read_everywhere(long_names, monkeypatch):
    source = open_source(str(long_names))
    assert source.classes == ["short", LONG_CLASS]
    name = f"{LONG_CLASS}/{LONG_FILE}"
    index = source.identities.index(name)
    assert source.content(index) == (long_names / name).read_bytes()
    assert open_image_cache(source, 16).good.tolist() == [0, 1, 2, 3]
    monkeypatch.chdir(long_names)
    for arguments in (["."], [name], [f"{LONG_CLASS}/*"], ["**/*.png"]):
        assert os.path.normpath(name) in map(os.path.normpath, expand(arguments)), arguments
    file = long_names.parent / "list.csv"
    write_csv(file, ["path", "label"], [[f"images/{name}", LONG_CLASS], ["images/short/1.png", "short"]])
    assert open_source(str(file)).classes == ["short", LONG_CLASS]
    labelled, chosen = apply_label_csv(source, ListFile(file))
    assert chosen.tolist()[0] == index and labelled.classes == source.classes


@pytest.mark.parametrize("name", [LONG_FILE + "x", "n" * 5000 + ".png"])
def test_a_name_longer_than_a_system_takes_is_not_there(long_names, name):
    file = long_names / "list.csv"
    write_csv(file, ["path", "label"], [[name, "a"]])
    with pytest.raises(UserError, match="do not exist"):
        open_source(str(file))
    with pytest.raises(UserError, match="not among"):
        apply_label_csv(open_source(str(long_names)), ListFile(file))
    with pytest.raises(UserError, match="There is no file"):
        parse_labels(name + ".csv")


@pytest.mark.long
def test_every_step_works_with_2000_classes_and_names_of_255_bytes(tmp_path, clfew, images):
    count = 2_000 if THOROUGH else 12
    names = [f"class-{number:05d}" for number in range(count - 1)] + [LONG_CLASS]
    images(tmp_path / "many", names, each=3, size=8)
    file = tmp_path / "many" / LONG_CLASS / "000.png"
    file = file.rename(file.with_name(LONG_FILE))
    tiny = ("--encoder", "resnet8-w8", "--size", "8", "--epochs", "1", "--init", "scratch")
    clfew.ok("pretrain", "many", *tiny, cwd=tmp_path)
    clfew.ok("finetune", "many", "--labels", "1/class", "--mode", "knn", cwd=tmp_path)
    clfew.ok("eval", cwd=tmp_path)
    report = json.loads((tmp_path / "runs/eval-1/report.json").read_text())
    assert report["classes"] == names and np.sum(report["confusion"]) == report["n"] == count
    assert LONG_CLASS in (tmp_path / "runs/eval-1/report.html").read_text()
    shown = clfew.ok("predict", file.parent, "--format", "csv", "--top", count, cwd=tmp_path)
    rows = list(csv.DictReader(shown.stdout.splitlines()))
    assert [Path(row["path"]) for row in rows] == sorted(file.parent.iterdir())
    assert {row["label"] for row in rows} <= set(names)
    embedded = clfew.ok("embed", "many", "--from", "runs/finetune-1", cwd=tmp_path)
    assert f"{3 * count:,} × " in embedded.stdout
