from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clfew.data import splits
from clfew.data.image_files import walk_images
from clfew.data.label_lists import apply_label_csv
from clfew.data.labels import LabelSpec, parse_labels, sample_labels
from clfew.data.lists import ListFile
from clfew.data.randomness import identity_order
from clfew.data.source import Source
from clfew.data.sources import open_source
from clfew.errors import UsageError, UserError
from clfew.runs.files import write_csv


def source_of(sizes, order=None):
    """A source without files: `sizes` images of each class, listed in `order`."""
    names = [(f"{c}/{i}.png", c) for c, size in sizes.items() for i in range(size)]
    names = [names[i] for i in (range(len(names)) if order is None else order)]
    classes = sorted(sizes)
    labels = np.array([classes.index(c) if c else -1 for _, c in names])
    splits_ = np.array(["train"] * len(names))
    identities = [name for name, _ in names]
    return Source("/data", identities, labels, classes, splits_, lambda i: b"", "fingerprint")


def in_split(source, indices, split):
    marks = source.splits.astype(object)
    marks[list(indices)] = split
    return replace(source, splits=marks.astype(str))


def names(source, indices):
    return {source.identities[i] for i in indices}


def per_class(source, indices):
    return np.bincount(source.labels[indices], minlength=len(source.classes)).tolist()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all", LabelSpec()),
        ("1%", LabelSpec(fraction=0.01)),
        ("100%", LabelSpec(fraction=1.0)),
        ("0.5 %", LabelSpec(fraction=0.005)),
        ("40", LabelSpec(total=40)),
        (" 4/class ", LabelSpec(per_class=4)),
    ],
)
def test_labels_are_parsed(text, expected):
    assert parse_labels(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0%",
        "0/class",
        "101%",
        "-1",
        "-1%",
        "1.5",
        "4/classes",
        "1e3",
        "some",
        "%",
        "nan%",
        "9" * 5000,
        "9" * 5000 + "/class",
        "9" * 5000 + "%",
    ],
)
def test_labels_that_cannot_be_understood_are_wrong_usage(text):
    with pytest.raises(UsageError, match="--labels") as error:
        parse_labels(text)
    assert error.value.exit_code == 2 and "4/class" in error.value.hint


def test_a_csv_of_labels_must_exist(tmp_path):
    for missing in ("missing.csv", "long" * 100 + ".csv", "null\0.csv"):
        with pytest.raises(UserError, match="no file") as error:
            parse_labels(missing)
        assert error.value.exit_code == 1
    (tmp_path / "mine.CSV").write_text("path,label\n")
    assert parse_labels(str(tmp_path / "mine.CSV")) == LabelSpec(listed=ListFile(tmp_path / "mine.CSV"))


def test_a_fraction_of_each_class_is_sampled_and_at_least_one():
    source = source_of({"a": 100, "b": 40, "c": 3})
    sampled = sample_labels(source, np.arange(143), LabelSpec(fraction=0.05), 0)
    assert per_class(source, sampled) == [5, 2, 1]
    assert per_class(source, sample_labels(source, np.arange(143), LabelSpec(fraction=0.001), 0)) == [
        1,
        1,
        1,
    ]
    assert len(sample_labels(source, np.arange(143), LabelSpec(fraction=1.0), 0)) == 143


def test_a_number_for_each_class_is_sampled_and_all_is_all():
    source = source_of({"a": 10, "b": 4})
    sampled = sample_labels(source, np.arange(14), LabelSpec(per_class=3), 0)
    assert per_class(source, sampled) == [3, 3] and len(set(sampled)) == 6
    assert np.array_equal(sampled, np.sort(sampled))
    assert sample_labels(source, np.arange(14), LabelSpec(), 0).tolist() == list(range(14))


@pytest.mark.parametrize(
    ("total", "expected"),
    [(3, [1, 1, 1]), (6, [2, 2, 2]), (9, [2, 3, 4]), (20, [2, 9, 9]), (22, [2, 10, 10])],
)
def test_a_total_is_distributed_as_evenly_as_the_classes_allow(total, expected):
    source = source_of({"a": 10, "b": 10, "c": 2})
    counts = per_class(source, sample_labels(source, np.arange(22), LabelSpec(total=total), 0))
    assert sorted(counts) == expected and counts[2] == expected[0]


def test_larger_classes_get_more_labels_when_small_ones_are_used_up():
    source = source_of({"a": 5000, "b": 7, "c": 3})
    for total, expected in ((9, [3, 3, 3]), (11, [4, 4, 3]), (30, [20, 7, 3]), (5010, [5000, 7, 3])):
        sampled = sample_labels(source, np.arange(5010), LabelSpec(total=total), 0)
        assert per_class(source, sampled) == expected


def test_labels_that_do_not_divide_evenly_go_to_random_classes():
    source = source_of({"a": 9, "b": 9, "c": 9})
    lucky = {
        tuple(per_class(source, sample_labels(source, np.arange(27), LabelSpec(total=7), seed)))
        for seed in range(20)
    }
    assert lucky == {(3, 2, 2), (2, 3, 2), (2, 2, 3)}


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        (LabelSpec(per_class=5), "5/class is more than the class 'b' has .*4", "4/class"),
        (LabelSpec(total=15), "more than the 14", "all"),
        (LabelSpec(total=1), "fewer than one for each of the 2 classes", "2 or more"),
    ],
)
def test_more_labels_than_there_are_is_a_user_error(spec, message, hint):
    source = source_of({"a": 10, "b": 4})
    with pytest.raises(UserError, match=message) as error:
        sample_labels(source, np.arange(14), spec, 0)
    assert hint in error.value.hint and error.value.exit_code == 1


def test_a_class_without_a_training_image_is_a_user_error():
    source = source_of({"a": 3, "b": 3})
    with pytest.raises(UserError, match="'b' has no image outside the test split"):
        sample_labels(source, np.arange(3), LabelSpec(per_class=1), 0)


def test_label_samples_depend_on_names_not_on_the_order_of_the_listing():
    sizes = {"a": 20, "b": 20}
    straight, shuffled = source_of(sizes), source_of(sizes, np.random.default_rng(0).permutation(40))
    for spec in (LabelSpec(per_class=3), LabelSpec(fraction=0.1), LabelSpec(total=5)):
        samples = [names(s, sample_labels(s, np.arange(40), spec, 4)) for s in (straight, shuffled)]
        assert samples[0] == samples[1]
    held_out = [names(s, splits.test_indices(s, 4)) for s in (straight, shuffled)]
    assert held_out[0] == held_out[1]


def test_label_samples_differ_by_seed_and_larger_ones_contain_smaller_ones():
    source = source_of({"a": 50, "b": 50})
    few, more, other = (
        names(source, sample_labels(source, np.arange(100), LabelSpec(per_class=n), seed))
        for n, seed in ((5, 0), (9, 0), (5, 1))
    )
    assert few < more and few != other


def test_label_samples_come_from_the_pool_alone():
    source = source_of({"a": 30, "b": 30})
    held_out = splits.test_indices(source, 0)
    pool = np.setdiff1d(np.arange(60), held_out)
    for seed in range(10):
        sampled = sample_labels(source, pool, LabelSpec(fraction=0.5), seed)
        assert len(np.intersect1d(sampled, held_out)) == 0 and set(sampled) <= set(pool)


def test_the_label_sample_is_not_in_the_order_of_the_test_split():
    # Both order the same names by one seed. In an equal order the test images would be sampled first.
    source = source_of({"a": 100, "b": 100})
    held_out = splits.test_indices(source, 0)
    sampled = sample_labels(source, np.arange(200), LabelSpec(fraction=0.2), 0)
    assert 0 < len(np.intersect1d(sampled, held_out)) < 30


def test_a_test_split_of_the_data_is_used_and_val_where_there_is_none():
    source = in_split(source_of({"a": 10, "b": 10}), [1, 12], "test")
    assert splits.test_indices(in_split(source, [3], "val"), 0).tolist() == [1, 12]
    only_val = in_split(source_of({"a": 10, "b": 10}), [3, 4], "val")
    assert splits.test_indices(only_val, 0).tolist() == [3, 4]


def test_without_a_split_a_fifth_of_each_class_is_held_out():
    source = source_of({"a": 50, "b": 10, "c": 2})
    held_out = splits.test_indices(source, 0)
    assert per_class(source, held_out) == [10, 2, 1]
    assert np.array_equal(held_out, np.unique(held_out))
    assert held_out.tolist() != splits.test_indices(source, 1).tolist()


def test_an_image_more_leaves_the_other_classes_test_images_alone():
    before, after = source_of({"a": 50, "b": 50}), source_of({"a": 50, "b": 51})
    kept = [names(s, splits.test_indices(s, 0)) for s in (before, after)]
    assert len(kept[0] ^ kept[1]) <= 2
    assert {n for n in kept[0] if n[0] == "a"} == {n for n in kept[1] if n[0] == "a"}


def test_unlabelled_images_are_not_held_out():
    source = source_of({"a": 10, "": 10})
    source = replace(source, classes=["a"], labels=np.where(source.labels > 0, 0, -1))
    assert names(source, splits.test_indices(source, 0)) < {f"a/{i}.png" for i in range(10)}
    assert len(splits.test_indices(replace(source, labels=np.full(20, -1)), 0)) == 0


def test_a_class_of_one_image_cannot_be_learned_and_tested():
    source = source_of({"a": 10, "b": 1})
    with pytest.raises(UserError, match="'b' has one image"):
        splits.require_testable(source)
    # Pretraining, which needs no labels, keeps it for training.
    assert set(source.labels[splits.test_indices(source, 0)]) == {0}


def test_a_label_sample_written_to_labels_csv_is_read_back_unchanged(image_folder):
    folder = image_folder({"cat": 5, "dog": 5})
    source = open_source(str(folder))
    sampled = sample_labels(source, np.arange(10), LabelSpec(per_class=2), 0)
    rows = [(source.identities[i], source.classes[source.labels[i]]) for i in sampled]
    file = folder.parent / "labels.csv"
    write_csv(file, ["path", "label"], rows)
    labelled, indices = apply_label_csv(source, ListFile(file))
    assert np.array_equal(indices, sampled)
    assert labelled.classes == source.classes and np.array_equal(labelled.labels, source.labels)


@pytest.mark.parametrize("where", ["name", "beside the csv", "working folder", "absolute"])
def test_a_csv_names_images_in_any_of_the_usual_ways(image_folder, monkeypatch, where):
    folder = image_folder({"x": 3})
    monkeypatch.chdir(folder.parent)
    path = {
        "name": "x/001.png",
        "beside the csv": "../images/x/001.png",
        "working folder": "images/x/001.png",
        "absolute": str(folder / "x" / "001.png"),
    }[where]
    file = folder.parent / "lists" / "mine.csv"
    file.parent.mkdir()
    file.write_text(f"path,label\n{path}, fresh \n")
    source = open_source(str(folder))
    labelled, indices = apply_label_csv(source, ListFile(file))
    assert indices.tolist() == [1] and labelled.classes == ["fresh"]
    # The CSV's class is not one of the folders', so other images lose their labels.
    assert labelled.labels.tolist() == [-1, 0, -1]
    assert source.labels.tolist() == [0, 0, 0]
    assert labelled.summary() == "3 images; 1 label from mine.csv: 1 class (fresh 1)"


def test_a_csv_of_the_sources_own_classes_corrects_a_label(image_folder):
    source = open_source(str(image_folder({"cat": 2, "dog": 2})))
    file = Path(source.spec).parent / "fix.csv"
    file.write_text("path,label\ncat/001.png,dog\n")
    labelled, _ = apply_label_csv(source, ListFile(file))
    assert labelled.labels.tolist() == [0, 1, 1, 1] and labelled.classes == ["cat", "dog"]
    assert labelled.summary() == f"{source.summary()}; 1 label from fix.csv"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\ncat/000.png\n", "no column 'label'"),
        ("path,label\ncat/000.png,\n", "None of the 1 row of .* has a label"),
        ("path,label\ncat/009.png,cat\n", "cat/009.png, which is not among"),
        ("path,label\n,cat\n", "Line 2 of .* names no image"),
        ("path,label\ncat/000.png,cat\nimages/cat/000.png,dog\n", "cat/000.png more than once"),
        ("path,label\ncat/\0.png,cat\n", "cat/\0.png, which is not among|line contains NUL"),
        ("path,label\nloop,cat\n", "loop, which is not among"),
    ],
)
def test_a_label_csv_that_is_not_clear_is_a_user_error(image_folder, text, message):
    folder = image_folder({"cat": 2, "dog": 2})
    (folder.parent / "loop").symlink_to("loop")
    file = folder.parent / "labels.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        apply_label_csv(open_source(str(folder)), ListFile(file))
    assert walk_images(folder)[1].words() == ""


def drawn_alone(source, seed):
    """The split of images that are alone, class by class, as rules before 5 drew it."""
    held_out = [np.array([], dtype=np.int64)]
    for members in splits.indices_by_class(source, np.flatnonzero(source.splits == "train")).values():
        order = identity_order(seed, [source.identities[i] for i in members])
        held_out.append(members[order[: max(1, round(0.2 * len(members))) if len(members) > 1 else 0]])
    return np.sort(np.concatenate(held_out))


def test_images_that_are_alone_are_drawn_as_before_there_were_groups():
    for number in range(100):
        random = np.random.default_rng(number)
        count, classes = int(random.integers(2, 80)), int(random.integers(1, 5))
        labels = random.integers(-1, classes, count)
        names = [f"{random.integers(1e9)}.png" for _ in range(count)]
        marks = np.array(["train"] * count)
        source = Source("/d", names, labels, list("abcd")[:classes], marks, lambda i: b"", "f")
        for groups in (None, np.arange(count)):
            assert np.array_equal(
                splits.test_indices(source, number, groups), drawn_alone(source, number)
            )
