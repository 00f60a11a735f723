"""Lists of labels: what is learned from, what is tested on, and what a list may leave open."""

import json
from dataclasses import replace

import numpy as np
import pytest

from clfew.data import splits
from clfew.data.label_lists import (
    LISTED,
    apply_label_csv,
    counts_of,
    labelled_by,
    read_label_list,
    say_list,
)
from clfew.data.labels import parse_labels, sample_labels, say_classes_without_label
from clfew.data.lists import ListFile
from clfew.data.sources import open_source
from clfew.errors import UsageError, UserError

HEADER = "path,label,split,order,how\n"


@pytest.fixture
def listed(image_folder):
    """`listed(text)` writes a list beside a folder of images; returns the source and the list."""

    def write(text, counts=None, rule=None, place="list.csv", encoding="utf-8"):
        source = open_source(str(image_folder(counts or {"cat": 4, "dog": 4})))
        file = image_folder({}).parent / place
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(text.encode(encoding))
        return (source if rule is None else replace(source, rule=rule)), ListFile(file)

    return write


def test_a_list_from_a_spreadsheet_is_read_whatever_its_form(listed):
    text = (
        "order;how;notes;split;label;path\r\n"
        "2.0;chosen (find fox);a, b;;Cat ;cat/001.png\r\n"
        "1;random;;Test;dog;dog/000.png\r\n"
        "x;;;train; ;cat/000.png\r\n"
        ";;;;;\r\n"
    )
    source, named = listed(text, encoding="utf-8-sig")
    rows = read_label_list(source, named).rows
    assert [(r.label, r.split, r.order, r.how) for r in rows] == [
        ("Cat", "train", 2, "chosen (find fox)"),
        ("dog", "test", 1, "random"),
        ("", "train", None, LISTED),
    ]
    assert [source.identities[r.index] for r in rows] == ["cat/001.png", "dog/000.png", "cat/000.png"]


def test_rows_of_the_test_sample_are_the_test_split(listed, capfd):
    text = (
        f"{HEADER}cat/000.png,cat,train,1,random\ndog/000.png,dog,test,2,random\n"
        "cat/001.png,,test,3,random\ndog/001.png,,train,4,chosen (herding)\n"
        "dog/002.png,dog,train,5,chosen (herding)\n"
    )
    source, named = listed(text)
    found = read_label_list(source, named)
    names = np.array(source.identities)
    assert names[found.learned].tolist() == ["cat/000.png", "dog/002.png"]
    assert names[found.held_out].tolist() == ["cat/001.png", "dog/000.png"]
    labelled = labelled_by(source, found)
    assert names[labelled.splits == "test"].tolist() == ["cat/001.png", "dog/000.png"]
    # The folder's label of an image that nobody has labelled in the list is not tested on.
    assert labelled.labels[found.held_out].tolist() == [-1, 1]
    assert splits.test_indices(labelled, 0).tolist() == found.held_out.tolist()
    assert "2 labels from list.csv and 1 to test on" in labelled.reading
    say_list(found)
    said = capfd.readouterr().err
    assert "2 of the 3 rows of list.csv to learn from have a label" in said
    assert "1 of the 2 images of the test sample have a label" in said


def test_val_is_tested_on_where_no_row_has_test(listed, capfd):
    rows = "cat/000.png,cat,train\ndog/000.png,dog,valid\n"
    source, named = listed(f"path,label,split\n{rows}")
    found = read_label_list(source, named)
    assert found.tested_split == "val" and len(found.held_out) == 1
    assert splits.split_to_test(labelled_by(source, found)) == "test"
    source, named = listed(f"path,label,split\n{rows}dog/001.png,dog,test\n")
    found = read_label_list(source, named)
    assert found.tested_split == "test" and len(found.learned) == 2
    say_list(found)
    assert "the 1 rows of the split val are learned from" in capfd.readouterr().err


def test_the_own_test_split_of_a_source_stays_held_out(listed):
    counts = {"train/cat": 3, "train/dog": 3, "test/cat": 2, "test/dog": 2}
    rows = "train/cat/000.png,cat,train\ntrain/dog/000.png,dog,test\ntest/cat/000.png,cat,test\n"
    source, named = listed(f"path,label,split\n{rows}", counts)
    labelled, learned = apply_label_csv(source, named)
    names = np.array(source.identities)
    assert names[learned].tolist() == ["train/cat/000.png"]
    tested = {"test/cat/000.png", "train/dog/000.png"}
    others = {"test/cat/001.png", "test/dog/000.png", "test/dog/001.png"}
    assert set(names[labelled.splits == "test"]) == tested | others
    assert set(names[(labelled.splits == "test") & (labelled.labels >= 0)]) == tested


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER}cat/000.png,cat,tset,1,\n", "the split 'tset'"),
        (
            f"{HEADER}cat/000.png,,train,1,\ndog/000.png,dog,test,2,\n",
            "None of the 1 row .* has a label",
        ),
        (f"{HEADER}cat/000.png,cat,train,1,\ncat/000.png,cat,test,2,\n", "two splits"),
    ],
)
def test_a_list_that_cannot_be_meant(listed, text, message):
    source, named = listed(text)
    with pytest.raises(UserError, match=message):
        apply_label_csv(source, named)


def test_before_rule_7_all_rows_are_learned_from_and_labelled(listed):
    source, named = listed(f"{HEADER}cat/000.png,cat,test,1,random\ndog/000.png,dog,oops,2,\n", rule=6)
    labelled, learned = apply_label_csv(source, named)
    assert len(learned) == 2 and set(labelled.splits) == {"train"}
    source, named = listed(f"{HEADER}cat/000.png,cat,test,1,random\ndog/000.png,,train,2,\n", rule=6)
    with pytest.raises(UserError, match=r"empty label for dog/000.png"):
        apply_label_csv(source, named)


@pytest.mark.parametrize(
    "text", [f"{HEADER}dog/000.png,dog,train,1,random\n", "path,label\ndog/000.png,dog\n"]
)
def test_a_list_that_was_mixed_up_does_not_learn_from_the_test_sample(listed, text):
    source, named = listed(f"{text}", place="run/to_label.csv")
    (named.file.parent / "select.json").write_text(json.dumps({"test": ["dog/000.png"]}))
    read_label_list(source, named)  # No folder of a run.
    (named.file.parent / "config.json").write_text(json.dumps({"command": "select"}))
    with pytest.raises(UserError, match=r"dog/000.png to learn from") as error:
        read_label_list(source, named)
    assert ("column split has been lost" in error.value.hint) == ("split" not in text)


def test_ways_in_which_labels_came_about_are_counted_by_their_kind():
    hows = ["random", "chosen (herding)", "chosen (find fox)", "drawn per class", LISTED]
    assert counts_of(hows) == {"chosen": 2, "drawn per class": 1, "listed": 1, "random": 1}
    words = {"40": "drawn per class", "4/class": "drawn per class", "1%": "a share of each class"}
    words |= {"all": "all", "40/random": "random", "1%/random": "random"}
    assert {spec: parse_labels(spec).drawn for spec in words} == words


@pytest.mark.parametrize(
    "spec", ["40/randm", "0/random", "40/random/class", "/random", "0%/random", "4%/class"]
)
def test_wrong_forms_of_labels_name_the_right_ones(spec):
    with pytest.raises(UsageError) as error:
        parse_labels(spec)
    assert "40/random" in error.value.hint


def test_labels_at_random_do_not_look_at_classes(image_folder, capfd):
    source = open_source(str(image_folder({"cat": 30, "dog": 14, "fox": 1})))
    pool = np.arange(45)
    samples = [sample_labels(source, pool, parse_labels("12/random"), seed) for seed in range(4)]
    assert {len(np.unique(sample)) for sample in samples} == {12}
    assert len({tuple(sample) for sample in samples}) == 4
    again = sample_labels(source, pool[::-1], parse_labels("12/random"), 0)
    assert np.array_equal(again, samples[0])
    assert np.mean([(source.labels[sample] == 0).mean() for sample in samples]) > 0.5
    say_classes_without_label(source, samples)
    assert "of 3 classes" in capfd.readouterr().err
    assert len(sample_labels(source, pool, parse_labels("20%/random"), 0)) == 9
    with pytest.raises(UserError, match="is of one class only"):
        sample_labels(source, pool, parse_labels("1/random"), 0)
    with pytest.raises(UserError, match="46/random is more than the 45"):
        sample_labels(source, pool, parse_labels("46/random"), 0)
