"""Chooses typical images of clusters: TypiClust.

Hacohen, Dekel, Weinshall, Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets,
ICML 2022, algorithm 1: as many clusters as there are labels, so far and to come; of each cluster without
a label, the largest first, the image that is nearest to its neighbours.

Shape suffixes: N candidates, S images of a sample, K clusters, L labelled images, A axes.
"""

import numpy as np
import torch

from clfew.selection.codes import SCALE, as_numbers
from clfew.selection.pool import Turns

MOST_CLUSTERS = 500
SMALLEST = 5
"""Clusters of so few images or fewer are passed over, while there are others."""

NEIGHBOURS = 20
"""How many neighbours say how typical an image is; half of a cluster at most."""

_ROUNDS = 30
_FINE = 16
_CHUNK = 8192
_MOST_IN_CLUSTER = 4000
"""Of larger clusters, the first so many candidates are compared with each other."""


def typical(
    codes_NxA: np.ndarray,
    sample_S: np.ndarray,
    labelled_LxA: np.ndarray,
    budget: int,
    seed: int,
    turns: Turns,
) -> list[int]:
    """Returns the rows of the candidates to label, at most `budget`, the first one first.

    sample: rows of the candidates by which clusters are found. labelled: codes of the images that have
    labels. seed: of the first centres. turns: which candidates may be taken; it is changed.
    """
    count = min(len(labelled_LxA) + budget, MOST_CLUSTERS, len(sample_S))
    if not count:
        return []
    seen = np.concatenate([codes_NxA[sample_S], labelled_LxA])
    centres = _centres(seen, count, np.random.default_rng(seed))
    cluster_N = _nearest(codes_NxA, centres)
    labels_K = np.bincount(_nearest(labelled_LxA, centres), minlength=count)
    sizes_K = np.bincount(cluster_N, minlength=count)
    members = np.split(np.argsort(cluster_N, kind="stable"), np.cumsum(sizes_K)[:-1])
    order_of: dict[int, list[int]] = {}
    chosen: list[int] = []
    while len(chosen) < min(budget, len(codes_NxA)):
        open_K = np.bincount(cluster_N[turns.open], minlength=count)
        cluster = min(
            np.flatnonzero(open_K).tolist(),
            key=lambda k: (sizes_K[k] <= SMALLEST, labels_K[k], -sizes_K[k], k),
        )
        if cluster not in order_of:
            order_of[cluster] = _most_typical(codes_NxA, members[cluster])
        row = next(row for row in order_of[cluster] if turns.open[row])
        chosen.append(row)
        labels_K[cluster] += 1
        turns.take(row)
    return chosen


def _centres(codes_SxA: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Returns the centres of clusters as codes, int64 (K, A): spherical k-means, from images that are
    chosen one after the other, each the best of a few that are drawn by their distance to those before
    (greedy k-means++, Arthur and Vassilvitskii, 2007)."""
    codes = as_numbers(codes_SxA)

    def apart_from(some: list[int]) -> np.ndarray:
        near = (codes[some] @ codes.T).numpy().astype(np.int64)
        distance: np.ndarray = (SCALE**2 - near).clip(min=0)
        distance[range(len(some)), some] = 0
        return distance

    rows = [int(random.integers(len(codes)))]
    apart, trials = apart_from(rows)[0], 2 + int(np.log(count))
    while len(rows) < count and apart.any():
        total = np.cumsum(apart)
        drawn = np.searchsorted(total, random.integers(total[-1], size=trials), side="right").tolist()
        nearest = np.minimum(apart_from(drawn), apart)
        best = int(nearest.sum(1).argmin())
        rows.append(drawn[best])
        apart = nearest[best]
    centres = codes_SxA[rows].astype(np.int64)
    cluster = None
    for _ in range(_ROUNDS):
        before, cluster = cluster, _nearest(codes_SxA, centres)
        if before is not None and (before == cluster).all():
            break
        sums = np.zeros(centres.shape, np.int64)
        np.add.at(sums, cluster, codes_SxA)
        sizes = np.bincount(cluster, minlength=len(centres))
        mean = np.round(_FINE * sums / sizes.clip(1)[:, None]).astype(np.int64)
        length = np.sqrt((mean**2).sum(1).astype(np.float64)).clip(1)[:, None]
        moved = np.round(SCALE * mean / length).astype(np.int64)
        centres = np.where(sizes[:, None] > 0, moved, centres)
    return centres


def _nearest(codes_NxA: np.ndarray, centres_KxA: np.ndarray) -> np.ndarray:
    """Returns the nearest centre of each image, int64 (N,), the first of several."""
    centres = as_numbers(centres_KxA)
    parts = [
        (as_numbers(codes_NxA[start : start + _CHUNK]) @ centres.T).numpy().argmax(1)
        for start in range(0, len(codes_NxA), _CHUNK)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _most_typical(codes_NxA: np.ndarray, rows: np.ndarray) -> list[int]:
    """Returns the given rows of candidates, the most typical one first."""
    compared, others = rows[:_MOST_IN_CLUSTER], rows[_MOST_IN_CLUSTER:]
    count = min(NEIGHBOURS, len(compared) // 2)
    if count < 1:
        return rows.tolist()
    numbers = as_numbers(codes_NxA[compared])
    near = numbers @ numbers.T
    near.fill_diagonal_(-np.inf)
    cosine = near.topk(count, dim=1).values.double() / SCALE**2
    # In 1024ths, so that sums do not depend on their order.
    distance = torch.sqrt((2 - 2 * cosine).clamp(min=0)).mul_(1024).round_().sum(1).numpy()
    order: list[int] = [*compared[np.argsort(distance, kind="stable")].tolist(), *others.tolist()]
    return order
