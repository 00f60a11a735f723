"""The images that may be asked for: one of each picture, and no group twice before all have had their
turn."""

from dataclasses import dataclass

import numpy as np

from clfew.data.randomness import identity_order

MOST_TO_COVER = 5_000
"""The most images that are to be covered (see `herding`): a sample stands for the others."""

MOST_CANDIDATES = 100_000
"""The most images that are compared with each other, a sample of larger pools. An image that is one of
few of its kind among more may not be in it."""

_TEST_SALT, _ORDER_SALT = 0x7E57, 0x5E1EC7
"""They make two orders under one seed independent of each other."""


@dataclass(frozen=True)
class Pool:
    """The images to choose from.

    images: int64 (P,), indices in the source of one image of each picture, in an order that depends on
    their names alone. groups: int64 (P,), the group of each; images that belong together have one.
    identities: the names of all images of the source.
    """

    images: np.ndarray
    groups: np.ndarray
    identities: list[str]

    def __len__(self) -> int:
        return len(self.images)

    def part(self, rows: np.ndarray) -> "Pool":
        """Returns the pool of some of the rows."""
        return Pool(self.images[rows], self.groups[rows], self.identities)

    def order(self, seed: int) -> np.ndarray:
        """Returns the rows of the pool in a random order, int64 (P,)."""
        names = [self.identities[i] for i in self.images]
        return identity_order(seed ^ _ORDER_SALT, names)


def pool_of(
    images: np.ndarray, pictures_N: np.ndarray, groups_N: np.ndarray, identities: list[str]
) -> Pool:
    """Returns the pool of some images of a source of N. pictures, groups: see `groups.pictures_of` and
    `groups.groups_of`."""
    ordered = images[identity_order(0, [identities[i] for i in images])]
    firsts = np.sort(np.unique(pictures_N[ordered], return_index=True)[1])
    some = ordered[firsts]
    return Pool(some, groups_N[some], identities)


def random_sample(pool: Pool, free: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns the rows of a random sample of groups, one image of each, int64 (count,) or fewer, in a
    random order. free: bool (P,), which rows may be drawn."""
    rows = np.flatnonzero(free)
    names = [pool.identities[i] for i in pool.images[rows]]
    # Of each group the first row, whose order tells nothing of the image.
    firsts = np.sort(np.unique(pool.groups[rows], return_index=True)[1])
    order = identity_order(seed ^ _TEST_SALT, [names[i] for i in firsts])
    return rows[firsts[order[:count]]]


def to_cover(groups_N: np.ndarray, most: int = MOST_TO_COVER) -> np.ndarray:
    """Returns which of N images stand for all, int64, at most `most`, where each group counts once as
    far as there are enough of them: the first of each group, then the second of each, and so on."""
    order = np.argsort(groups_N, kind="stable")
    _, starts, sizes = np.unique(groups_N[order], return_index=True, return_counts=True)
    rank = np.empty(len(groups_N), np.int64)
    rank[order] = np.arange(len(groups_N)) - np.repeat(starts, sizes)
    stand: np.ndarray = np.argsort(rank, kind="stable")[:most]
    return stand


class Turns:
    """Which candidates may be taken next: none of a group that has had its turn, until all have.

    open: bool (N,). groups: int64 (N,), of each candidate. asked: groups that had their turn before.
    """

    def __init__(self, groups: np.ndarray, asked: np.ndarray) -> None:
        self._groups, self._left = groups, np.ones(len(groups), bool)
        self.open = ~np.isin(groups, asked)
        self._begin_anew()

    def take(self, row: int) -> None:
        self._left[row] = False
        self.open[self._groups == self._groups[row]] = False
        self._begin_anew()

    def _begin_anew(self) -> None:
        if not self.open.any():
            self.open = self._left.copy()


def taken_in_order(order: np.ndarray, budget: int, turns: Turns) -> list[int]:
    """Returns the first rows in an order, at most `budget`, group after group."""
    chosen: list[int] = []
    left = order.tolist()
    while left and len(chosen) < budget:
        later = []
        for row in left:
            if len(chosen) == budget:
                return chosen
            if turns.open[row]:
                chosen.append(row)
                turns.take(row)
            else:
                later.append(row)
        if len(later) == len(left):
            break
        left = later
    return chosen
