from collections import Counter

import numpy as np

from clfew.data.image_files import LeftOut
from clfew.data.source import Source, encode_labels
from clfew.quality.listing import classes_in_words, classes_of, findings_in_listing


def source_of(rows, **more):
    """rows: (class, split) of each image."""
    labels, classes = encode_labels([name for name, _ in rows])
    names = [f"{i}.png" for i in range(len(rows))]
    splits = np.array([split for _, split in rows])
    return Source("/photos", names, labels, classes, splits, lambda i: b"", "", **more)


def found_in(rows, **more):
    return {each.name: each for each in findings_in_listing(source_of(rows, **more))}


PLAIN = [(name, "train") for name in ("ant", "bee") for _ in range(6)]


def test_nothing_is_found_in_a_tidy_source():
    assert found_in(PLAIN) == {}
    assert found_in([("", "train")] * 5) == {}
    assert found_in([*PLAIN, ("ant", "test"), ("bee", "test")]) == {}


def test_classes_are_counted_by_split():
    rows = [*PLAIN, ("ant", "test"), ("ant", "val"), ("", "train")]
    assert classes_of(source_of(rows)) == [
        {"class": "ant", "images": 8, "train": 6, "val": 1, "test": 1},
        {"class": "bee", "images": 6, "train": 6, "val": 0, "test": 0},
    ]


def test_small_classes_are_found():
    found = found_in([*PLAIN, ("cat", "train"), ("dog", "train"), ("dog", "train")])
    assert found["single"].notes == ["cat"] and found["single"].needs_person
    assert found["few"].notes == ["dog 2"] and not found["few"].needs_person
    assert found_in([("cat", "train")] * 9)["one_class"].needs_person


def test_classes_of_one_side_of_the_test_split_are_found():
    found = found_in([*PLAIN, ("ant", "test"), ("cat", "test"), ("cat", "test"), ("bee", "val")])
    assert found["untaught"].notes == ["cat"] and found["untested"].notes == ["bee"]
    # A single image of a class that is in test is told by the split.
    assert "single" not in found
    # Where val is tested on, train alone teaches.
    found = found_in([*PLAIN, ("ant", "val"), ("cat", "val")])
    assert found["untaught"].notes == ["cat"] and "val lacks" in found["untested"].title


def test_torn_groups_are_found():
    rows = [*PLAIN, ("ant", "test"), ("bee", "test")]
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, -1, -1, 1, -1])
    found = found_in(rows, groups=groups)
    assert found["torn_groups"].sets == [[2, 3, 12]] and found["torn_groups"].needs_person
    assert "torn_groups" not in found_in(rows, groups=np.where(groups == 1, -1, groups))


def test_files_that_may_be_images_are_found_and_others_are_not():
    left_out = LeftOut(Counter({("a", ".cr2"): 3, ("b", ".cr2"): 1, ("", ".txt"): 9}), empty=["c"])
    found = found_in(PLAIN, left_out=left_out)
    assert found["not_read"].count == 4 and found["not_read"].notes == ["4 .cr2"]
    assert found["empty"].notes == ["c/"] and not found["empty"].needs_person
    assert found_in(PLAIN, left_out=LeftOut(Counter({("", ".txt"): 9, ("", ""): 1}))) == {}


def test_an_image_is_described_by_class_and_split():
    source = source_of([*PLAIN, ("ant", "test"), ("", "train")])
    assert [classes_in_words(source, i) for i in (0, 12, 13)] == ["ant, train", "ant, test", "train"]
    assert classes_in_words(source_of(PLAIN), 7) == "bee"
