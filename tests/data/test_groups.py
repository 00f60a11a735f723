from dataclasses import replace

import numpy as np
import pytest

from clfew.data import groups
from clfew.data.cache_folder import ImageCache
from clfew.data.content import content_of
from clfew.data.groups import contradictions, grouped, groups_of
from clfew.data.held_out import split_source
from clfew.data.source import Source
from clfew.data.splits import require_groups_to_test
from clfew.errors import UsageError, UserError


def source_of(names, labels=None, **more):
    """A source without files; the class of an image is its first folder."""
    classes = sorted({name.split("/")[0] for name in names})
    own = np.array([classes.index(name.split("/")[0]) for name in names])
    marks = np.array(["train"] * len(names))
    source = Source("/data", names, own, classes, marks, lambda i: b"", "fingerprint")
    return replace(source, **more)


def cache_of(count, digests=None, seed=0):
    """An image cache of unrelated images."""
    pixels = np.random.default_rng(seed).integers(0, 255, (count, 16, 16, 3)).astype(np.uint8)
    digests = np.arange(count, dtype=np.uint64) if digests is None else np.array(digests, np.uint64)
    return ImageCache(np.arange(count), pixels, np.ones(count, np.float32), digests, [])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLFEW_CACHE", str(tmp_path / "cache"))


NAMES = [f"{c}/burst{b}/{i}.jpg" for c in "ab" for b in range(5) for i in range(4)]


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [("2", 5), ("1", 2), (r"(.*)/\d", 10), (r"burst(\d)", 5), (r"(\d)\.jpg", 4), (r"^(a/.*)/", 5)],
)
def test_group_by(group_by, expected):
    source = grouped(source_of(NAMES), group_by)
    assert len(set(source.groups[source.groups >= 0].tolist())) == expected
    assert f"{expected} groups by {group_by}" in source.reading
    alone = int((source.groups < 0).sum())
    assert alone == (20 if group_by.startswith("^") else 0)
    assert ("20 images alone" in source.reading) == (alone == 20)


@pytest.mark.parametrize(
    ("group_by", "error"),
    [
        ("0", UsageError),
        ("(", UsageError),
        ("burst", UsageError),
        ("(a)(b)", UsageError),
        ("7", UserError),
        ("(nothing)", UserError),
        ("²", UsageError),
        ("9" * 5000, UsageError),
    ],
)
def test_what_groups_nothing_is_refused(group_by, error):
    with pytest.raises(error) as raised:
        grouped(source_of(NAMES), group_by)
    assert raised.value.hint and len(raised.value.message) < 300


def test_a_group_is_on_one_side_of_the_test_split():
    source = grouped(source_of(NAMES), r"(.*)/\d")
    cache = cache_of(len(NAMES))
    for seed in range(20):
        split = split_source(source, cache, seed)
        test, pool = (set(source.groups[side].tolist()) for side in (split.test, split.pool))
        assert not test & pool and len(split.test) + len(split.pool) == len(NAMES)
        assert np.bincount(source.labels[split.test]).tolist() == [4, 4]


def test_groups_of_several_classes_are_held_out_together():
    """A patient has images of both classes."""
    names = [f"{c}/patient{p}/{i}.jpg" for p in range(10) for c in "ab" for i in range(1 + p % 3)]
    source = grouped(source_of(names), "2")
    for seed in range(20):
        split = split_source(source, cache_of(len(names)), seed)
        assert not set(source.groups[split.test].tolist()) & set(source.groups[split.pool].tolist())
        assert (np.bincount(source.labels[split.test], minlength=2) > 0).all()
        assert (np.bincount(source.labels[split.pool], minlength=2) > 0).all()
        assert len(split.test) < 0.35 * len(names)


def test_a_class_of_two_large_groups_is_tested_on_the_smaller():
    names = [f"a/x/{i}.jpg" for i in range(30)] + [f"a/y/{i}.jpg" for i in range(10)]
    names += [f"b/{i}/0.jpg" for i in range(40)]
    source = grouped(source_of(names), "2")
    split = split_source(source, cache_of(len(names)), 0)
    assert {names[i].split("/")[1] for i in split.test if names[i].startswith("a/")} == {"y"}


def test_a_class_of_one_group_is_learned_from():
    names = [f"a/x/{i}.jpg" for i in range(30)] + [f"b/{i}/0.jpg" for i in range(40)]
    source = grouped(source_of(names), "2")
    split = split_source(source, cache_of(len(names)), 0)
    assert len(split.test) == 8 and not (source.labels[split.test] == 0).any()


def test_what_is_in_a_group_with_test_images_is_not_learned_from():
    """Where the source has a test split of its own."""
    marks = np.array(["test" if i % 8 == 0 else "train" for i in range(len(NAMES))])
    source = grouped(source_of(NAMES, splits=marks), r"(.*)/\d")
    split = split_source(source, cache_of(len(NAMES)), 0)
    assert len(split.test) == 5 and len(split.pool) == 20
    assert not set(source.groups[split.test].tolist()) & set(source.groups[split.pool].tolist())


def test_copies_and_groups_are_joined():
    source = source_of(["a/0.jpg", "a/1.jpg", "a/2.jpg", "b/3.jpg"], groups=np.array([0, 0, -1, -1]))
    cache = cache_of(4, digests=[5, 6, 6, 7])
    assert groups_of(source, cache).tolist() == [0, 0, 0, 3]


def test_older_rules_know_no_groups():
    source = replace(grouped(source_of(NAMES), "2"), rule=4)
    assert groups_of(source, cache_of(len(NAMES))) is None


def test_groups_are_found_once_for_a_source(monkeypatch):
    """Also from a cache of another side, in which other images might be nearly the same."""
    source = source_of(NAMES)
    first = groups_of(source, cache_of(len(NAMES)))
    monkeypatch.setattr(groups, "near_pairs", lambda *_: pytest.fail("found again"))
    assert np.array_equal(groups_of(source, cache_of(len(NAMES), seed=1)), first)


def test_damaged_groups_are_found_again(tmp_path):
    source, cache = source_of(NAMES), cache_of(len(NAMES))
    first = groups_of(source, cache)
    (file,) = (tmp_path / "cache").glob("near-*.safetensors")
    whole = file.read_bytes()
    for content in (b"", whole[:20], whole[:-8], whole.replace(b"kinds", b"kings"), b"\xff" * 200):
        file.write_bytes(content)
        assert np.array_equal(groups_of(source, cache), first)
    file.write_bytes(whole[:-8] + b"\xff" * 7 + b"\x7f")
    assert np.array_equal(groups_of(source, cache), first)


def test_one_file_in_two_classes_is_a_contradiction():
    source = source_of(["a/0.jpg", "a/1.jpg", "b/2.jpg", "b/3.jpg"])
    cache = cache_of(4, digests=[5, 6, 6, 7])
    assert contradictions(source, cache).tolist() == [1, 2]
    assert contradictions(source, cache_of(4, digests=[5, 5, 7, 7])).tolist() == []


def test_groups_of_two_kinds_are_joined():
    source = grouped(source_of(NAMES), r"burst(\d)")
    both = groups.with_groups(source, ["x" if i < 5 else "" for i in range(len(NAMES))], "from a list")
    assert len(set(source.groups.tolist())) == 5 and len(set(both.groups.tolist())) == 4
    assert "from a list" in both.reading and "by burst" in both.reading


def test_digits_of_other_scripts_are_no_numbers():
    names = ["a/²x.png", "a/1.png", "a/٣.png", "b/5².png"]
    assert groups_of(source_of(names), cache_of(4)).tolist() == [0, 1, 2, 3]


def test_changed_groups_change_the_source():
    source = source_of(NAMES)
    first, second = (grouped(source, by) for by in ("2", r"(.*)/\d"))
    cache = cache_of(len(NAMES))
    assert len({each.digest() for each in (source, first, second)}) == 3
    assert len({content_of(each, cache) for each in (source, first, second)}) == 3


@pytest.mark.parametrize(
    ("names", "group_by", "can_be_tested"),
    [
        (NAMES, "1", False),
        (NAMES, "2", True),
        (NAMES, "(burst)", False),  # One group holds everything.
        # Each of two groups holds all images of one class and some of another.
        (["a/x1.png", "a/y1.png", "b/x2.png", "b/x3.png", "c/y2.png", "c/y3.png"], "/(.)", False),
        (["a/x1.png", "a/y1.png", "b/x2.png", "b/x3.png", "c/y2.png", "c/z3.png"], "/(.)", True),
        (["a/x1.png", "a/y1.png", "a/z1.png", "b/x2.png", "b/x3.png", "c/y2.png"], "/(.)", True),
        (["a/x1.png", "a/x2.png", "b/1.png", "b/2.png"], "(x)", True),  # Those of b are alone.
    ],
)
def test_groups_that_leave_nothing_to_test_are_refused(names, group_by, can_be_tested):
    source = grouped(source_of(names), group_by)
    # It agrees with what is held out, so that nothing else is refused.
    assert bool(len(split_source(source, cache_of(len(names)), 0).test)) == can_be_tested
    if can_be_tested:
        require_groups_to_test(source, group_by)
        return
    with pytest.raises(UserError, match="holds all images of a class"):
        require_groups_to_test(source, group_by)


def test_groups_are_not_refused_where_nothing_needs_to_be_held_out():
    source = grouped(source_of(NAMES), "1")
    require_groups_to_test(source, None)  # A column of the data made the groups.
    require_groups_to_test(source.relabelled(np.full(len(NAMES), -1), []), "1")
    marks = np.array(["test" if i % 8 == 0 else "train" for i in range(len(NAMES))])
    require_groups_to_test(replace(source, splits=marks), "1")
