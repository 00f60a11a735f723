"""labels.csv: what was decided, as a list that clfew itself and other programs read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from clfew.data.label_lists import read_label_list
from clfew.data.lists import ListFile
from clfew.data.sources import open_source
from clfew.errors import UserError
from clfew.labelling.labels_list import ON_PAGE, rows_of
from clfew.labelling.state import LABEL, NONE_NAME, SKIP, UNSURE, State
from clfew.runs.files import csv_text
from clfew.selection.label_rows import cells_of

NAMES = [f"{letter}.png" for letter in "abcdefghij"]


@pytest.fixture
def source(tmp_path, put):
    for name in NAMES:
        put(tmp_path / "photos" / name)
    return open_source(str(tmp_path / "photos"))


class Events:
    def __init__(self):
        self.state, self.n = State(), 0

    def add(self, do, **more):
        self.n += 1
        self.state.apply({"n": self.n, "do": do, **more})
        return self

    def classes(self, *names):
        for number, name in enumerate(names, 1):
            self.add("class", **{"class": number}, name=name)
        return self

    def label(self, image, number):
        return self.add(LABEL, image=f"{image}.png", **{"class": number})


def decided():
    """Some of everything: i and j are the test sample, a to d were asked for."""
    made = Events().classes("deer", "fox")
    made.add("test", images=["i.png", "j.png"], how="random")
    made.add("asked", images=["a.png", "b.png", "c.png", "d.png"], how="chosen (herding)")
    made.label("b", 1).label("a", 2).add(UNSURE, image="c.png").label("i", 1)
    made.add("page", labels={"e.png": 2, "f.png": 0}, wrong=["g.png"], **{"class": 2})
    made.add(SKIP, image="d.png")
    return made


def cells(source, state):
    rows, lost = rows_of(source, state)
    return [(source.identities[r.index], r.label, r.split, r.order, r.how, r.group) for r in rows], lost


def test_the_list_has_all_that_was_decided_and_the_test_sample_last(source):
    rows, lost = cells(source, decided().state)
    herding, page = "chosen (herding)", ON_PAGE
    assert lost == 0 and rows == [
        ("b.png", "deer", "train", 1, herding, ""),
        ("a.png", "fox", "train", 2, herding, ""),
        ("c.png", "", "train", 3, herding, ""),
        ("e.png", "fox", "train", 4, page, ""),
        ("f.png", NONE_NAME, "train", 5, page, ""),
        ("g.png", "", "train", 6, page, ""),
        ("d.png", "", "train", 7, herding, ""),
        ("i.png", "deer", "test", 8, "random", ""),
        ("j.png", "", "test", 9, "random", ""),
    ]


def test_images_of_which_nothing_was_decided_are_not_in_the_list(source):
    made = Events().classes("deer").add("asked", images=["a.png", "b.png"], how="random").label("b", 1)
    assert [row[0] for row in cells(source, made.state)[0]] == ["b.png"]
    assert rows_of(source, State()) == ([], 0)


def test_names_are_those_that_the_classes_have_now(source):
    made = decided().add("rename", **{"class": 1}, name="roe deer")
    assert cells(source, made.state)[0][0][1] == "roe deer"
    made.add("merge", **{"class": 1, "into": 2})
    assert {row[1] for row in cells(source, made.state)[0]} == {"fox", "", NONE_NAME}
    made.add("delete", **{"class": 2})
    rows, _ = cells(source, made.state)
    assert [row[0] for row in rows if row[2] == "train"] == ["c.png", "f.png", "g.png", "d.png"]
    assert [row[:3] for row in rows[-2:]] == [("i.png", "", "test"), ("j.png", "", "test")]


LISTED = [
    ["e.png", "deer", "train", 7, "listed", "burst 1"],
    ["c.png", "", "train", 3, "chosen (typiclust)", "burst 1"],
    ["h.png", "fox", "test", 9, "random", ""],
    ["gone.png", "fox", "train", 10, "listed", ""],
    ["j.png", "", "train", None, "listed", ""],
]


def test_rows_of_the_list_so_far_stay_with_their_order_and_groups(source):
    made = Events().classes("deer", "fox").add("listed", rows=LISTED)
    made.add("test", images=["h.png"], how="random").label("a", 1).label("c", 2).label("e", 2)
    rows, lost = cells(source, made.state)
    assert lost == 1 and rows == [
        ("e.png", "fox", "train", 7, "listed", "burst 1"),
        ("c.png", "fox", "train", 3, "chosen (typiclust)", "burst 1"),
        ("h.png", "fox", "test", 9, "random", ""),
        ("j.png", "", "train", 10, "listed", ""),
        ("a.png", "deer", "train", 11, ON_PAGE, ""),
    ]


def test_vanished_images_are_left_out_and_those_with_a_label_counted(source):
    made = decided().label("gone 1", 1).label("gone 2", 2).add(SKIP, image="gone 3.png")
    made.add("test", images=["gone 4.png"], how="random")
    rows, lost = cells(source, made.state)
    assert lost == 2 and rows == cells(source, decided().state)[0]


def written(source, state, folder, change=None):
    """Writes the list into the folder of a run, as `clfew label` does."""
    folder.mkdir(exist_ok=True)
    rows, _ = rows_of(source, state)
    header, table = cells_of(source, rows, any(row.group for row in rows))
    if change:
        header, table = change(header, table)
    (folder / "labels.csv").write_text(
        csv_text(header, table), encoding="utf-8", errors="surrogateescape"
    )
    (folder / "config.json").write_text(json.dumps({"command": "label"}))
    (folder / "label.json").write_text(json.dumps({"test": list(state.tests)}))
    return ListFile(folder / "labels.csv", None, None)


@pytest.mark.parametrize("listed", [False, True])
def test_the_list_is_read_back_as_it_was_written(source, tmp_path, listed):
    made = decided()
    if listed:
        made = Events().classes("deer", "fox").add("listed", rows=LISTED[:3])
        made.add("test", images=["h.png"], how="random").label("a", 1)
    rows, _ = rows_of(source, made.state)
    read = read_label_list(source, written(source, made.state, tmp_path / "run"))
    assert read.rows == rows
    assert [source.identities[i] for i in read.held_out] == sorted(made.state.tests)
    labels = {source.identities[row.index]: row.label for row in read.rows if row.label}
    assert labels == {
        name: made.state.name_of(each.label)
        for name, each in made.state.current.items()
        if each.label is not None
    }


def without_splits(header, rows):
    return [header[0], header[1], *header[3:]], [(row[0], row[1], *row[3:]) for row in rows]


def with_one_column_sorted(header, rows):
    names = sorted((row[0] for row in rows), reverse=True)
    return header, [(name, *row[1:]) for name, row in zip(names, rows, strict=True)]


def with_train_for_all(header, rows):
    return header, [(row[0], row[1], "train", *row[3:]) for row in rows]


@pytest.mark.parametrize("change", [without_splits, with_one_column_sorted, with_train_for_all])
def test_a_list_that_would_learn_from_the_test_sample_is_refused(source, tmp_path, change):
    named = written(source, decided().state, tmp_path / "run", change)
    with pytest.raises(UserError, match="to learn from, which is one of") as refused:
        read_label_list(source, named)
    assert "label.json" in refused.value.hint
    elsewhere = tmp_path / "elsewhere.csv"
    shutil.copy(named.file, elsewhere)
    assert read_label_list(source, ListFile(elsewhere, None, None)).rows


def test_a_list_that_lacks_some_of_the_test_sample_is_refused(source, tmp_path):
    named = written(source, decided().state, tmp_path / "run", lambda head, rows: (head, rows[:-1]))
    with pytest.raises(UserError, match=r"lacks j\.png"):
        read_label_list(source, named)


def test_odd_names_of_classes_come_back(source, tmp_path):
    names = ["a,b", 'say "x"', "=1+1", "-", "<b>", "é 鹿", "0", "train"]
    made = Events().classes(*names)
    for letter, number in zip("abcdefgh", range(1, 9), strict=True):
        made.label(letter, number)
    read = read_label_list(source, written(source, made.state, tmp_path / "run"))
    assert [row.label for row in read.rows] == names


@pytest.mark.parametrize("seed", range(5))
def test_any_decisions_come_back(source, tmp_path, seed):
    chance, made = np.random.default_rng(seed), Events().classes("deer", "fox", "hare")
    made.add("test", images=NAMES[7:], how="random").add("asked", images=NAMES[:4], how="chosen (x)")
    for _ in range(30):
        image, do = str(chance.choice(NAMES)), str(chance.choice([LABEL, LABEL, SKIP, UNSURE, "undo"]))
        if do == LABEL:
            made.label(Path(image).stem, int(chance.integers(0, 4)))
        elif do == "undo":
            made.add("undo", of=int(chance.integers(1, made.n)))
        else:
            made.add(do, image=image)
    rows, lost = rows_of(source, made.state)
    assert (
        not lost and read_label_list(source, written(source, made.state, tmp_path / "run")).rows == rows
    )
    assert [row.order for row in rows] == list(range(1, len(rows) + 1))
    assert len({row.index for row in rows}) == len(rows)
