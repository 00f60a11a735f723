import shutil

import numpy as np

from clfew.data.content import read_content
from clfew.data.groups import groups_of
from clfew.data.image_cache import cached_images
from clfew.data.labels import LabelSpec
from clfew.data.lists import ListFile
from clfew.data.sources import open_source
from clfew.finetuning.labelled_data import (
    bounded,
    held_out_of,
    labelled_data,
    readable,
    say_test_sample,
    with_labels,
)
from clfew.finetuning.other_sources import bad_in_merged, merged


def test_a_large_pool_is_bounded_and_its_number_said(capfd):
    pool, always = np.arange(5_000), np.array([1, 3])
    used = bounded(pool, always, "to try", 1_000)
    assert set(always) <= set(used) and 1_000 <= len(used) <= 1_002
    assert np.isin(used, pool).all() and (np.diff(used) > 0).all()
    assert "1,002 of the 5,000 images outside the test split to try" in capfd.readouterr().err


def test_a_small_pool_is_used_whole_without_a_word(capfd):
    assert bounded(np.arange(50), np.array([1]), "to try", 50).tolist() == list(range(50))
    assert capfd.readouterr().err == ""


def test_merged_sources_have_the_same_content_wherever_the_second_lies(image_folder):
    first = open_source(str(image_folder({"a": 2, "b": 2})))
    one, other = (
        open_source(str(image_folder({"c": 2}, f"{place}/more"))) for place in ("here", "there")
    )
    assert read_content(merged(first, one)) == read_content(merged(first, other))
    # A bad image is named by its place all the same.
    names = merged(first, one).identities
    bad = [(names[0], "empty"), (names[-1], "empty")]
    paths = [(first.identities[0], "empty"), (f"{one.spec}/{one.identities[-1]}", "empty")]
    assert bad_in_merged(bad, one.spec) == paths


def test_a_test_image_whose_copy_is_learned_from_is_neither_tested_nor_learned_from(image_folder, capfd):
    folder = image_folder({"a": 6, "b": 6})
    shutil.copy(folder / "a/000.png", folder / "a/copy.png")
    file = folder.parent / "list.csv"
    rows = ("a/000.png,a,test", "b/000.png,b,test", "a/copy.png,a,train", "b/001.png,b,train")
    file.write_text("\n".join(["path,label,split", *rows]))
    source, listed = with_labels(open_source(str(folder)), LabelSpec(listed=ListFile(file)), [])
    cache = cached_images(source, 16)
    groups = groups_of(source, cache)
    held_out = held_out_of(source, 0, listed, groups)
    learned = readable(source, listed, np.setdiff1d(cache.good, held_out))
    data = labelled_data(source, cache, held_out, 0, learned=learned, never=listed.held_out)
    names = np.array(source.identities)
    assert set(names[data.test]) == {"b/000.png"}
    assert not {"a/000.png", "b/000.png"} & set(names[data.pool]) and len(data.pool) == 11
    say_test_sample(data, listed)
    assert "1 image of the test sample cannot be tested on" in capfd.readouterr().err
