import csv
import os
from pathlib import Path

import numpy as np
import pytest

from clfew.data import image_files
from clfew.data.image_files import walk_images
from clfew.data.lists import ListFile, read_list
from clfew.data.sources import open_source
from clfew.errors import UserError


@pytest.fixture
def tree(tmp_path, put):
    """tree("a/1.png", …) makes a folder with these files: images if they end in .png, else text."""

    def make(*names, root="root"):
        for name in names:
            path = tmp_path / root / name
            if path.suffix.lower() == ".png":
                put(path)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("text")
        return tmp_path / root

    return make


def named(source):
    """{identity: (class name or "", split)}"""
    classes = [source.classes[c] if c >= 0 else "" for c in source.labels]
    return dict(zip(source.identities, zip(classes, source.splits.tolist(), strict=True), strict=True))


def test_a_flat_folder_has_no_labels(tree):
    source = open_source(str(tree("b.png", "a.png")))
    assert named(source) == {"a.png": ("", "train"), "b.png": ("", "train")}
    assert source.classes == [] and not source.is_labelled and len(source) == 2


def test_subfolders_are_classes(tree):
    source = open_source(str(tree("dog/1.png", "cat/1.png", "cat/2.png")))
    assert source.classes == ["cat", "dog"] and source.labels.tolist() == [0, 0, 1]
    assert source.labels.dtype == np.int64 and set(source.splits) == {"train"}


def test_images_deeper_than_a_class_folder_are_of_that_class(tree):
    source = open_source(str(tree("cat/1.png", "cat/2020/may/2.png", "dog/1.png")))
    assert named(source)["cat/2020/may/2.png"] == ("cat", "train")
    assert source.classes == ["cat", "dog"]


def test_a_folder_of_folders_is_not_a_class(tree):
    # 2020/ and 2021/ hold albums, not images: naming them classes would be a guess.
    source = open_source(str(tree("2020/may/1.png", "2021/june/1.png")))
    assert not source.is_labelled


def test_images_beside_class_folders_have_no_label(tree):
    source = open_source(str(tree("loose.png", "cat/1.png", "dog/1.png")))
    assert named(source)["loose.png"] == ("", "train")
    assert named(source)["cat/1.png"] == ("cat", "train")


def test_train_val_and_test_folders_are_splits(tree):
    root = tree("train/cat/1.png", "train/dog/1.png", "valid/cat/2.png", "test/dog/sub/3.png")
    source = open_source(str(root))
    assert named(source) == {
        "test/dog/sub/3.png": ("dog", "test"),
        "train/cat/1.png": ("cat", "train"),
        "train/dog/1.png": ("dog", "train"),
        "valid/cat/2.png": ("cat", "val"),
    }
    assert source.classes == ["cat", "dog"]


def test_unlabelled_images_beside_splits_are_for_training_and_of_no_class(tree):
    root = tree("train/cat/1.png", "test/cat/2.png", "unlabeled/x.png", "extra.png", "train/loose.png")
    source = open_source(str(root))
    assert named(source)["unlabeled/x.png"] == named(source)["extra.png"] == ("", "train")
    assert named(source)["train/loose.png"] == ("", "train")
    assert source.classes == ["cat"]


def test_a_class_may_be_called_validation_where_there_are_no_splits(tree):
    source = open_source(str(tree("val/1.png", "other/1.png")))
    assert source.classes == ["other", "val"] and set(source.splits) == {"train"}


def test_hidden_files_are_skipped_and_others_counted(tree):
    root = tree("cat/1.png", "cat/.2.png", ".git/3.png", "__MACOSX/4.png", "notes.txt", "cat/README")
    (root / "UPPER.PNG").write_bytes((root / "cat/1.png").read_bytes())
    images, left_out = walk_images(root)
    assert images == ["UPPER.PNG", "cat/1.png"]
    assert left_out.words() == "1 without an ending in cat/, 1 .txt, 1 file in __MACOSX/"
    assert open_source(str(root)).summary().endswith(f"; left out: {left_out.words()}")


def test_links_to_folders_are_followed_each_folder_once(tree):
    root, elsewhere = tree("cat/1.png"), tree("2.png", root="elsewhere")
    (root / "dog").symlink_to(elsewhere)
    (root / "cat" / "loop").symlink_to(root)
    assert walk_images(root)[0] == ["cat/1.png", "dog/2.png"]


def test_names_do_not_depend_on_the_order_in_which_the_disk_lists_them(tree, monkeypatch):
    root = tree("cat/1.png")
    (root / "link").symlink_to(root / "cat")
    forward, listings = image_files._scan, []
    for turn in (1, -1):

        def scan(*arguments, turn=turn):
            found = forward(*arguments)
            return found and sorted(found, key=lambda entry: entry.name)[::turn]

        monkeypatch.setattr(image_files, "_scan", scan)
        listings.append(walk_images(root)[0])
    assert listings[0] == listings[1] == ["cat/1.png"]


def test_links_that_point_nowhere_do_not_stop_the_listing(tree):
    root = tree("cat/1.png")
    (root / "gone").symlink_to(root / "nowhere")
    (root / "self").symlink_to("self")
    assert walk_images(root)[0] == ["cat/1.png"]


@pytest.mark.parametrize("files", [(), ("notes.txt",)])
def test_a_folder_without_images_is_a_user_error(tree, tmp_path, files):
    (tmp_path / "root").mkdir()
    tree(*files)
    with pytest.raises(UserError, match="no images"):
        open_source(str(tmp_path / "root"))


def test_a_spec_that_is_not_a_source_is_a_user_error(tree, tmp_path):
    root = tree("1.png")
    with pytest.raises(UserError, match="There is no folder or file"):
        open_source(str(tmp_path / "missing"))
    with pytest.raises(UserError, match="a folder of images is needed"):
        open_source(str(root / "1.png"))


def test_content_is_the_bytes_of_the_file(tree):
    root = tree("b/1.png", "a/2.png")
    source = open_source(str(root))
    for i, name in enumerate(source.identities):
        assert source.content(i) == (root / name).read_bytes()


def test_the_spec_is_absolute(tree, monkeypatch):
    root = tree("1.png")
    monkeypatch.chdir(root.parent)
    assert open_source("root").spec == str(root.resolve())


def test_the_fingerprint_changes_with_every_change_of_the_images(tree, put):
    root = tree("a.png", "b.png")
    fingerprints = [open_source(str(root)).fingerprint]
    assert open_source(str(root)).fingerprint == fingerprints[0]

    def changed():
        fingerprints.append(open_source(str(root)).fingerprint)

    put(root / "c.png")
    changed()
    (root / "c.png").unlink()
    assert open_source(str(root)).fingerprint == fingerprints[0]
    (root / "b.png").rename(root / "d.png")
    changed()
    (root / "a.png").write_bytes(b"other")
    changed()
    # Same size, another time.
    status = os.stat(root / "a.png")
    os.utime(root / "a.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    changed()
    (root / "a.png").unlink()
    changed()
    assert len(set(fingerprints)) == len(fingerprints)


def write_csv(path: Path, rows, encoding="utf-8"):
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows(rows)
    return path


def test_a_csv_lists_images_relative_to_its_own_folder(tree, tmp_path, monkeypatch):
    root, other = tree("x/1.png", "2.png", "3.png"), tree("4.png", root="elsewhere")
    rows = [
        ["path", "label", "split"],
        ["x/1.png", "dog", ""],
        ["2.png", " cat ", "Test"],
        ["3.png", "", "validation"],
        [str(other / "4.png"), "dog", "train"],
    ]
    file = write_csv(root / "list.csv", rows)
    monkeypatch.chdir(tmp_path)
    source = open_source("root/list.csv")
    assert source.identities == [row[0] for row in rows[1:]]
    assert [source.classes[c] if c >= 0 else "" for c in source.labels] == ["dog", "cat", "", "dog"]
    assert source.splits.tolist() == ["train", "test", "val", "train"]
    assert source.spec == str(file.resolve())
    assert source.content(0) == (root / "x/1.png").read_bytes()
    assert source.content(3) == (other / "4.png").read_bytes()


def test_a_csv_of_paths_alone_has_no_labels(tree):
    root = tree("1.png")
    source = open_source(str(write_csv(root / "list.csv", [["path"], ["1.png"]])))
    assert not source.is_labelled and source.splits.tolist() == ["train"]


def test_a_csv_saved_by_excel_with_a_byte_order_mark_is_read(tree):
    root = tree("ä.png")
    file = write_csv(root / "list.csv", [["path", "label"], ["ä.png", "Bär"]], "utf-8-sig")
    source = open_source(str(file))
    assert source.identities == ["ä.png"] and source.classes == ["Bär"]


def test_the_fingerprint_of_a_csv_follows_its_images(tree):
    root = tree("1.png", "2.png")
    file = write_csv(root / "list.csv", [["path"], ["1.png"]])
    before = open_source(str(file)).fingerprint
    (root / "1.png").write_bytes(b"changed")
    changed = open_source(str(file)).fingerprint
    write_csv(file, [["path"], ["1.png"], ["2.png"]])
    assert len({before, changed, open_source(str(file)).fingerprint}) == 3


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["path", "label"], ["1.png", "a"], ["gone.png", "a"]], r"1 of 2 images .*\(first: gone.png\)"),
        ([["path", "class", "species"], ["1.png", "a", "b"]], "may be the label: class, species"),
        ([["filename", "filepath"], ["1.png", "a"]], "may be the path: filename, filepath"),
        ([["label"], ["a"]], "no column 'path'"),
        ([], "no column 'path'"),
        ([["path", "label"]], "no rows"),
        ([["path", "label"], ["1.png", "a"], ["1.png", "b"]], "gives 1.png two labels, 'a' and 'b'"),
        ([["path", "label"], ["1.png"]], "Line 2 .* not have as many fields"),
        ([["path", "label"], ["1.png", "a", "b"]], "Line 2 .* not have as many fields"),
        ([["path", "split"], ["1.png", "holdout"]], "split 'holdout'"),
        ([["path", "label"], ["", "a"]], "Line 2 .* names no image"),
        ([["path", "label"], [" ", "a"]], "Line 2 .* names no image"),
        ([["path", "label"], [], ["1.png", "a\nb"], [], ["2.png"]], "Line 6 .* not have as many fields"),
        ([["path", "label", "label"], ["1.png", "a", "b"]], "the column 'label' more than once"),
    ],
)
def test_a_csv_that_is_not_clear_is_a_user_error(tree, rows, message):
    file = write_csv(tree("1.png") / "list.csv", rows)
    with pytest.raises(UserError, match=message):
        open_source(str(file))


def test_a_csv_with_latin_1_names_finds_its_files(tree):
    root = tree("1.png")
    (root / "1.png").rename(root / os.fsdecode(b"caf\xe9.png"))
    (root / "list.csv").write_bytes(b"path,label\ncaf\xe9.png,a\n")
    source = open_source(str(root / "list.csv"))
    assert len(source.content(0)) > 0
    assert open_source(str(root)).identities == source.identities


def test_reading_a_csv_keeps_quoted_commas(tmp_path):
    file = write_csv(tmp_path / "list.csv", [["path", "label"], ["a, b.png", "x, y"]])
    assert read_list(ListFile(file)).rows == [{"path": "a, b.png", "label": "x, y"}]


@pytest.mark.parametrize(
    ("rows", "groups"),
    [
        ([("1", "x"), ("1", "y"), ("2", "y"), ("3", "z")], [0, 0, 1]),
        ([("1", "x"), ("2", "y"), ("2", "z"), ("2", "x"), ("3", "z")], [0, 0, 0]),
        ([("1", ""), ("1", "x"), ("2", "x"), ("3", "")], [0, 0, -1]),
        ([("1", "x"), ("1", ""), ("2", " x "), ("3", "")], [0, 0, -1]),
        ([("1", "x"), ("2", "y"), ("3", "")], [0, 1, -1]),
        ([("1", "c"), ("1", "b"), ("2", "b"), ("2", "a"), ("3", "a"), ("3", "c")], [0, 0, 0]),
    ],
)
def test_groups_that_share_an_image_are_one(tree, rows, groups):
    root = tree("1.png", "2.png", "3.png")
    lines = [[f"{name}.png", "a", group] for name, group in rows]
    source = open_source(str(write_csv(root / "list.csv", [["path", "label", "group"], *lines])))
    assert source.groups.tolist() == groups
    joined = len({group.strip() for _, group in rows} - {""}) - (max(groups) + 1)
    assert (f"{joined} groups joined" in source.reading) == (joined > 0)


@pytest.mark.parametrize("columns", ["file_name,group", "file_name,label,group"])
def test_groups_in_the_metadata_of_a_folder(tree, columns):
    root = tree("train/cat/1.png", "train/dog/2.png", "test/cat/3.png", "test/dog/4.png")
    label = ",{}" if "label" in columns else ""
    for split, rows in (("train", ["cat/1.png", "dog/2.png"]), ("test", ["./cat/3.png", "dog/4.png"])):
        lines = [f"{name}{label.format(['a', 'b'][i])},p{i}" for i, name in enumerate(rows)]
        (root / split / "metadata.csv").write_text("\n".join([columns, *lines]))
    source = open_source(str(root))
    by_name = dict(zip(source.identities, source.groups.tolist(), strict=True))
    # A patient has images in both splits.
    assert by_name["train/cat/1.png"] == by_name["test/cat/3.png"] != by_name["test/dog/4.png"]
    assert "2 groups from train/metadata.csv and test/metadata.csv" in source.reading or (
        "2 groups from test/metadata.csv and train/metadata.csv" in source.reading
    )
    assert source.classes == (["a", "b"] if label else ["cat", "dog"])
    assert open_source(str(root), 4).groups is None


def test_a_long_chain_of_groups_is_read_in_a_moment(tmp_path):
    many = 30_000
    lines = [[i, group] for i in range(many, 0, -1) for group in (i + 1, i)]
    file = write_csv(tmp_path / "list.csv", [["path", "group"], *lines])
    rows = read_list(ListFile(file)).rows
    assert len(rows) == many and len({row["group"] for row in rows}) == 1


@pytest.mark.parametrize(
    ("name", "rows", "classes", "groups"),
    [
        ("group", ["1,0,0", "0,1,0", "0,0,1"], ["cat", "dog", "group"], None),
        ("group", ["1,0,0", "0,1,0", "0,0,0"], ["cat", "dog"], None),
        ("set", ["1,0,0", "0,1,0", "0,0,1"], ["cat", "dog", "set"], None),
        # Whether a patient belongs to the group, and what its picture shows.
        ("group", ["1,0,0", "0,1,1", "1,0,1"], ["cat", "dog"], [0, 1, 1]),
        ("group", ["1,0,p1", "0,1,p1", "1,0,p2"], ["cat", "dog"], [0, 0, 1]),
    ],
)
def test_one_of_the_columns_of_0_and_1_may_be_called_group(tree, name, rows, classes, groups):
    file = tree("1.png", "2.png", "3.png") / "list.csv"
    lines = [f"{number}.png,{row}" for number, row in enumerate(rows, 1)]
    file.write_text("\n".join([f"path,cat,dog,{name}", *lines]))
    source = open_source(str(file))
    assert source.classes == classes and set(source.splits) == {"train"}
    found = None if source.groups is None else source.groups.tolist()
    assert found == groups


def test_the_home_of_an_unknown_user_is_a_folder_that_does_not_exist():
    with pytest.raises(UserError, match="no folder or file ~nobody-has-this-name"):
        open_source("~nobody-has-this-name/photos")


def test_the_digest_of_a_source_changes_with_its_labels_and_splits_too(tree):
    file = tree("a/1.png", "b/2.png", "b/3.png") / "list.csv"
    found = []
    for rows in ("a/1.png,a,train", "a/1.png,b,train", "a/1.png,,train", "a/1.png,a,test"):
        file.write_text(f"path,label,split\n{rows}\nb/2.png,a,train\nb/3.png,b,train\n")
        found.append(open_source(str(file)).digest())
        assert open_source(str(file)).digest() == found[-1]
    assert len(set(found)) == len(found)
