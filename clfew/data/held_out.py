"""What is learned from and what is tested on: the one place that decides it, for every command."""

from dataclasses import dataclass

import numpy as np

from clfew.data.cache_folder import ImageCache
from clfew.data.groups import groups_of
from clfew.data.source import RULE, Source
from clfew.data.splits import test_indices

SPLIT_RULE = RULE

NONE = np.array([], dtype=np.int64)


@dataclass(frozen=True)
class Split:
    """Indices of readable images, sorted. pool: to learn from, labelled or not. test: to test on."""

    pool: np.ndarray
    test: np.ndarray


def split_source(source: Source, cache: ImageCache, seed: int, rule: int = SPLIT_RULE) -> Split:
    """Splits the readable images of a source by its test split. Labels are used only to draw that."""
    groups = groups_of(source, cache)
    return split_images(cache, test_indices(source, seed, groups), rule, groups=groups)


def split_images(
    cache: ImageCache,
    held_out: np.ndarray,
    rule: int = SPLIT_RULE,
    learned: np.ndarray = NONE,
    groups: np.ndarray | None = None,
) -> Split:
    """Splits the readable images of a source.

    held_out: indices of the images that are not learned from (see `splits.test_indices`). rule: see
    SPLIT_RULE; from 2 on, files with the same bytes are on one side: copies of test images are not
    learned from. learned: indices of images that are learned from in any case; their copies are not
    tested on.
    groups: of each image of the source; those of test images are not learned from. None where every
    image is alone.
    """
    test = np.intersect1d(held_out, cache.good)
    if rule >= 2:
        test = test[~np.isin(cache.digests[test], cache.digests[learned])]
    pool = np.setdiff1d(cache.good, test if rule >= 2 else held_out)
    if rule >= 2:
        pool = pool[~np.isin(cache.digests[pool], cache.digests[test])]
    if groups is not None:
        test = test[~np.isin(groups[test], groups[learned])]
        pool = np.setdiff1d(cache.good, test)
        pool = pool[~np.isin(groups[pool], groups[test])]
    return Split(pool, test)
