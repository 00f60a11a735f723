"""Copies, contradictions and images that cannot be used, in decoded images of a folder."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clfew.data import splits
from clfew.data.groups import groups_of
from clfew.data.image_cache import open_image_cache
from clfew.data.sources import open_source
from clfew.errors import UserError
from clfew.quality.finding import Finding, joined
from clfew.quality.fix import fixed
from clfew.quality.pixels import copies_of, findings_in_pixels, say_check
from clfew.runs.files import write_csv


def picture(seed):
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """60 pictures in two splits and two classes, named so that none follows its like."""
    for i in range(60):
        place = tmp_path / f"photos/{'test' if i % 5 == 0 else 'train'}/{'ab'[i % 2]}"
        place.mkdir(parents=True, exist_ok=True)
        picture(i).save(place / f"{i * 37 % 61}.png")
    return tmp_path / "photos"


def name_of(i):
    return f"{'test' if i % 5 == 0 else 'train'}/{'ab'[i % 2]}/{i * 37 % 61}.png"


def look(folder):
    source = open_source(str(folder))
    cache = open_image_cache(source, 48)
    found = {each.name: each for each in findings_in_pixels(source, cache)}
    names = {n: [[source.identities[i] for i in s] for s in f.sets] for n, f in found.items()}
    return source, cache, found, names


def test_pictures_that_differ_are_no_finding(folder, capsys):
    source, cache, found, _ = look(folder)
    assert found == {}
    say_check(source, cache, "photos")
    assert "nothing was found" in capsys.readouterr().err


def copy_of(folder, i, name, how="bytes"):
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if how == "bytes":
        shutil.copy(folder / name_of(i), target)
    elif how == "small":
        picture(i).resize((40, 40)).save(target, quality=60)
    else:
        picture(i).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(target)
    return sorted([name_of(i), name])


@pytest.mark.parametrize("how", ["bytes", "small", "mirrored"])
def test_each_kind_of_copy_is_told_by_where_it_lies(folder, how):
    ending = "jpg" if how == "small" else "png"
    within = copy_of(folder, 1, f"train/b/x.{ending}", how)
    other_class = copy_of(folder, 2, f"train/b/y.{ending}", how)
    across = copy_of(folder, 3, f"test/b/z.{ending}", how)
    both = copy_of(folder, 4, f"test/b/w.{ending}", how)
    _, _, found, names = look(folder)
    is_exact = how == "bytes"
    assert names["copies" if is_exact else "near_copies"] == [within]
    classes = names["contradictions" if is_exact else "near_contradictions"]
    assert sorted(map(sorted, classes)) == sorted([other_class, both])
    assert sorted(map(sorted, names["across_splits"])) == sorted([across, both])
    assert len(found) == 3 and found["across_splits"].needs_person
    assert not found["copies" if is_exact else "near_copies"].needs_person


def test_unlabelled_images_contradict_nothing(folder):
    copy_of(folder, 2, "train/b/y.png")
    source = open_source(str(folder))
    bare = replace(source, labels=np.full(len(source), -1), classes=[])
    names = {each.name for each in findings_in_pixels(bare, open_image_cache(bare, 48))}
    assert names == {"copies"}


def test_what_cannot_be_used_is_found(folder):
    (folder / "train/a/broken.png").write_bytes((folder / name_of(2)).read_bytes()[:400])
    for name in ("flat.png", "flat again.png"):
        Image.new("RGB", (30, 30), (9, 9, 9)).save(folder / "train/a" / name)
    _, _, found, names = look(folder)
    assert (
        names["unreadable"] == [["train/a/broken.png"]] and "truncated" in found["unreadable"].notes[0]
    )
    assert names["flat"] == [["train/a/flat again.png"], ["train/a/flat.png"]]


def test_a_burst_on_both_sides_is_torn(folder):
    large = np.asarray(picture(99).resize((220, 220)))
    for i in range(8):
        split = "test" if i == 3 else "train"
        Image.fromarray(large[i : i + 160, i : i + 160]).save(folder / f"{split}/a/zz_{i}.png")
    source, cache, found, names = look(folder)
    frames = {f"{'test' if i == 3 else 'train'}/a/zz_{i}.png" for i in range(8)}
    assert {name for each in names["bursts"] for name in each} >= frames - {"test/a/zz_3.png"}
    assert not found["bursts"].needs_person
    # The frame in another folder does not follow the others by its name, and is much like two of them.
    assert [set(each) <= frames for each in names["across_splits"]] == [True]
    pairs = {tuple(source.identities[i] for i in pair) for pair in copies_of(source, cache)}
    assert ("train/a/zz_0.png", "train/a/zz_1.png") in pairs


def test_the_list_without_problems_is_read_as_what_is_left(folder, tmp_path):
    copy_of(folder, 1, "train/b/x.png")
    copy_of(folder, 2, "train/b/y.png")
    copy_of(folder, 3, "test/b/z.jpg", "small")
    copy_of(folder, 7, "train/b/near.jpg", "small")
    (folder / "train/a/broken.png").write_bytes((folder / name_of(2)).read_bytes()[:400])
    Image.new("RGB", (30, 30), (9, 9, 9)).save(folder / "train/a/flat.png")
    source, cache, found, _ = look(folder)
    groups = groups_of(source, cache)
    result = fixed(source, cache, list(found.values()), groups, 0)
    rows = {row[0].removeprefix(f"{folder}/"): row[1:] for row in result.rows}
    assert result.header == ["path", "label", "split", "group"]
    assert not {"train/a/broken.png", "train/a/flat.png"} & set(rows)
    assert name_of(3) not in rows and rows["test/b/z.jpg"][:2] == ["b", "test"]
    assert (name_of(1) in rows) + ("train/b/x.png" in rows) == 1
    # Which label is right is not known; one of the two files stays, without.
    (kept,) = [name for name in (name_of(2), "train/b/y.png") if name in rows]
    assert rows[kept][0] == ""
    assert rows[name_of(7)][2] == rows["train/b/near.jpg"][2] != ""
    assert len(rows) == 60 + 6 - 2 - 1 - 1 - 1
    assert sum(result.left_out.values()) == 5 and sum(result.unlabelled.values()) == 2
    listed = tmp_path / "mended.csv"
    write_csv(listed, result.header, result.rows)
    again = open_source(str(listed))
    assert len(again) == len(rows) and (again.labels < 0).sum() == 1
    assert {s: int((again.splits == s).sum()) for s in ("train", "test")} == {"train": 48, "test": 13}
    assert {each.name for each in findings_in_pixels(again, open_image_cache(again, 48))} == {
        "near_copies"
    }


def test_images_that_are_no_files_are_in_no_list(folder):
    source, cache, _, _ = look(folder)
    with pytest.raises(UserError, match="not files"):
        fixed(replace(source, path_of=None), cache, [], groups_of(source, cache), 0)


def test_a_chain_of_slow_changes_is_named_where_it_crosses_only(tmp_path):
    """The first and the last picture of a film are different ones."""
    first, last = (np.asarray(picture(seed), float) for seed in (500, 501))
    for i in range(40):
        place = tmp_path / f"film/{'train' if i < 30 else 'test'}/{'ab'[i // 10 % 2]}"
        place.mkdir(parents=True, exist_ok=True)
        mixed = first + (last - first) * i / 39
        Image.fromarray(mixed.astype(np.uint8)).save(place / f"{i:03}.png")
    for i in range(60):
        picture(i).save(tmp_path / f"film/train/{'ab'[i % 2]}/x{i}.png")
    source, cache, found, _ = look(tmp_path / "film")
    names = [name for name in ("across_splits", "torn_bursts") if name in found]
    crossing = {i for name in names for each in found[name].sets for i in each}
    numbers = sorted(int(source.identities[i].split("/")[-1][:3]) for i in crossing)
    assert len(numbers) > 1 and min(numbers) > 20 and max(numbers) < 39
    result = fixed(source, cache, list(found.values()), groups_of(source, cache), 0)
    rows = [dict(zip(result.header, row, strict=True)) for row in result.rows]
    assert sum(row["split"] == "test" for row in rows) == 10
    assert len(rows) >= 88


def test_of_copies_the_labelled_one_stays(tmp_path):
    for name in ("a", "b", "unlabeled"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    for i in range(40):
        picture(i).save(tmp_path / f"photos/{'ab'[i % 2]}/{i}.png")
    for i in (20, 22):
        shutil.copy(tmp_path / f"photos/a/{i}.png", tmp_path / f"photos/unlabeled/{i}.png")
        shutil.move(tmp_path / f"photos/a/{i}.png", tmp_path / f"photos/a/z{i}.png")
    source, cache, found, _ = look(tmp_path / "photos")
    result = fixed(source, cache, list(found.values()), groups_of(source, cache), 0)
    assert [row[1] for row in result.rows].count("a") == 20 and len(result.rows) == 40
    assert result.header == ["path", "label"]


def suspicious(indices):
    sets = [[i] for i in indices]
    return Finding("suspicious_labels", "labels that look suspicious", "", True, len(sets), sets)


def test_the_test_is_not_chosen_by_what_looks_suspicious(folder):
    source, cache, _, _ = look(folder)
    groups = groups_of(source, cache)
    result = fixed(source, cache, [suspicious(range(10))], groups, 0)
    labels = {row[0]: row[1] for row in result.rows}
    expected = [
        "" if source.splits[i] == "train" else source.classes[source.labels[i]] for i in range(10)
    ]
    assert [labels[str(source.path_of(i))] for i in range(10)] == expected
    assert "suspicious labels of test images" in result.remaining[0]


def test_without_a_test_split_a_fifth_is_held_out_first(folder):
    shutil.move(folder / "train/a", folder / "a")
    shutil.move(folder / "train/b", folder / "b")
    shutil.rmtree(folder / "train")
    shutil.rmtree(folder / "test")
    source, cache, _, _ = look(folder)
    groups, some = groups_of(source, cache), range(20)
    held_out = set(splits.test_indices(source, 0, groups).tolist())
    result = fixed(source, cache, [suspicious(some)], groups, 0)
    rows = {row[0]: row[1:] for row in result.rows}
    for i in range(len(source)):
        label, split = rows[str(source.path_of(i))]
        assert split == ("test" if i in held_out else "train")
        assert (label == "") == (i in some and i not in held_out)
    # Where no label is left out, the list has no split of its own.
    assert fixed(source, cache, [], groups, 0).header == ["path", "label"]


def test_a_list_of_nothing_is_refused(folder):
    source, cache, _, _ = look(folder)
    all_flat = Finding("flat", "images of one flat colour", "", True, 60, [[i] for i in range(60)])
    with pytest.raises(UserError, match="No image is left"):
        fixed(source, cache, [all_flat], groups_of(source, cache), 0)


def test_names_that_a_list_cannot_tell_apart_are_refused(folder):
    source, cache, _, _ = look(folder)
    source = replace(source, classes=["a", "a "])
    with pytest.raises(UserError, match="two classes are called 'a'"):
        fixed(source, cache, [], groups_of(source, cache), 0)


def test_pairs_are_joined_to_sets():
    assert joined(np.array([[4, 1], [1, 7], [2, 3]]), 9) == [[1, 4, 7], [2, 3]]
    assert joined(np.empty((0, 2), np.int64), 9) == []
