"""The one function that divides images into those learned from and those tested on."""

from types import SimpleNamespace

import numpy as np
import pytest

from clfew.data.held_out import split_images

# Images 1 and 6 are copies of test image 0; 7 is a copy of 2; 5 cannot be read.
DIGESTS = np.array([10, 10, 20, 30, 40, 50, 10, 20], dtype=np.uint64)
CACHE = SimpleNamespace(good=np.array([0, 1, 2, 3, 4, 6, 7]), digests=DIGESTS)


def split(held_out, rule=2, learned=()):
    result = split_images(
        CACHE, np.array(held_out, dtype=np.int64), rule, np.array(learned, dtype=np.int64)
    )
    return result.pool.tolist(), result.test.tolist()


def test_copies_of_test_images_are_not_learned_from():
    assert split([0, 5]) == ([2, 3, 4, 7], [0])


def test_rule_1_kept_them():
    assert split([0, 5], rule=1) == ([1, 2, 3, 4, 6, 7], [0])


def test_a_copy_of_what_is_learned_from_in_any_case_is_not_tested_on():
    assert split([0, 3], learned=[6]) == ([0, 1, 2, 4, 6, 7], [3])
    assert split([0, 3], rule=1, learned=[6]) == ([1, 2, 4, 6, 7], [0, 3])


@pytest.mark.parametrize("rule", [1, 2])
def test_with_nothing_held_out_all_readable_images_are_learned_from(rule):
    assert split([], rule) == ([0, 1, 2, 3, 4, 6, 7], [])


def test_no_file_is_on_both_sides():
    random = np.random.default_rng(0)
    digests = random.integers(0, 40, 200).astype(np.uint64)
    cache = SimpleNamespace(good=np.arange(200), digests=digests)
    held_out, learned = np.arange(0, 200, 5), np.arange(1, 200, 37)
    found = split_images(cache, held_out, learned=learned)
    assert not set(digests[found.pool]) & set(digests[found.test])
    assert len(found.test) and set(learned) <= set(found.pool)
