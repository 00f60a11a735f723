import numpy as np

from clfew.finetuning.labelled_data import bounded


def test_a_large_pool_is_bounded_and_its_number_said(capfd):
    pool, always = np.arange(5_000), np.array([1, 3])
    used = bounded(pool, always, "to try", 1_000)
    assert set(always) <= set(used) and 1_000 <= len(used) <= 1_002
    assert np.isin(used, pool).all() and (np.diff(used) > 0).all()
    assert "1,002 of the 5,000 images outside the test split to try" in capfd.readouterr().err


def test_a_small_pool_is_used_whole_without_a_word(capfd):
    assert bounded(np.arange(50), np.array([1]), "to try", 50).tolist() == list(range(50))
    assert capfd.readouterr().err == ""
