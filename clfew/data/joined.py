"""Joins images by pairs of them: groups of what belongs together."""

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


def pairs_of_same(values: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Returns pairs, int64 (P, 2), that join those of the images `indices` that have the same value."""
    ordered = indices[np.argsort(values[indices], kind="stable")]
    same = values[ordered[1:]] == values[ordered[:-1]]
    return np.stack([ordered[:-1][same], ordered[1:][same]], 1)


def components(pairs: np.ndarray, count: int) -> np.ndarray:
    """Returns the number of the set that each of `count` images is in. pairs: (P, 2), they join sets."""
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (count, count))
    numbers: np.ndarray = connected_components(graph, directed=False)[1]
    return numbers


def first_of_set(numbers: np.ndarray) -> np.ndarray:
    """Returns for each image the index of the first one in its set (see `components`): int64 (N,)."""
    count = len(numbers)
    firsts = np.full(count, count)
    np.minimum.at(firsts, numbers, np.arange(count))
    return firsts[numbers]
