import numpy as np

from clfew.data.content import read_content
from clfew.data.sources import open_source
from clfew.finetuning.labelled_data import bounded
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
