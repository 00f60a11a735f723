"""The classifier of the labels so far: label propagation, fitted anew after each page.

It says which class it takes each image for, how sure it is, which labels contradict their neighbours,
and whether more labels change anything. Labels spread as in `finetuning.label_propagation`, but without
the assumption that classes are equally frequent, and in fewer steps.

Shape suffixes: N images, A axes, C classes, K neighbours, L labelled images, T images of the test
sample.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from clfew.finetuning.label_propagation import ALPHA, NEIGHBOURS, TEMPERATURE, neighbour_graph
from clfew.finetuning.probes import mean_and_std
from clfew.selection.codes import SCALE

STEPS = 30
"""After so many steps the labels have settled: what is left of the error of the beginning is 10^-4."""

FOLDS = 5
RIGHT = 0.95
FEWEST_SURE = 20
"""It is sure of an image where of those images that were labelled one by one, at least FEWEST_SURE, of
which it was as sure without their own label, RIGHT were right."""

CONTRADICTED, OWN = 0.6, 0.05
"""A label contradicts its neighbours where without it another class has at least this probability, and
its own class at most that. Of slips among 200 and 500 labels of aerial photographs and clothes it finds
half, of those among CIFAR-10 and hand signs hardly one; of ten that it asks, nine are slips."""

ENOUGH = 0.02
FEWEST_ENOUGH = 40
"""More labels will hardly help where the second half of at least FEWEST_ENOUGH labels changed what is
said of less than this fraction of the images: by so much at most has the accuracy risen."""


@dataclass(frozen=True)
class Labels:
    """The labels so far, in the order in which they were given.

    rows: int64 (L,), rows of the N images. classes: int64 (L,), places in `numbers`. numbers: of the
    classes. by_one: bool (L,), which labels were given one by one: of how many images a class has, those
    of pages, which come class by class, say nothing.
    """

    rows: np.ndarray
    classes: np.ndarray
    numbers: Sequence[int]
    by_one: np.ndarray

    def some(self, which: Any) -> "Labels":
        """Returns some of the labels, all classes kept."""
        return Labels(self.rows[which], self.classes[which], self.numbers, self.by_one[which])


@dataclass(frozen=True)
class Fit:
    """What the classifier says.

    labels: those it was fitted to. probabilities: float32 (N, C), 0 where no label reaches. tested:
    int64 (T,), the class that it takes each image of the test sample for, a place in `labels.numbers`.
    """

    labels: Labels
    probabilities: np.ndarray
    tested: np.ndarray

    @cached_property
    def predicted(self) -> np.ndarray:
        """The likeliest class of each image, int64 (N,), a place in `labels.numbers`."""
        found: np.ndarray = self.probabilities.argmax(1)
        return found

    @cached_property
    def margin(self) -> np.ndarray:
        """How far the likeliest class is ahead of the second, float32 (N,), from 0 to 1."""
        if self.probabilities.shape[1] < 2:
            return self.probabilities[:, 0]
        two = np.partition(self.probabilities, -2, axis=1)[:, -2:]
        margin: np.ndarray = two[:, 1] - two[:, 0]
        return margin


@dataclass(frozen=True)
class Verdict:
    """How good the classifier is.

    sure: bool (N,), of which images it is sure. contradicted: rows of labelled images and the class, a
    place in `labels.numbers`, that their neighbours have instead. before: the number of labels in the
    first half. changed: the fraction of the images of which the classifier of these said something else.
    """

    sure: np.ndarray
    contradicted: list[tuple[int, int]]
    before: int
    changed: float

    @property
    def can_be_sure(self) -> bool:
        """Whether there are enough labels to tell."""
        return bool(self.sure.any()) or self.before >= FEWEST_SURE

    @property
    def is_enough(self) -> bool:
        return self.before >= FEWEST_ENOUGH and self.changed < ENOUGH


class Assistant:
    """Propagates labels over N images.

    codes: int16 (N, A), see `selection.codes`. groups: int64 (N,), the group of each. tested: int16
    (T, A), the codes of the test sample, to which no label spreads and from which none does.
    """

    def __init__(self, codes_NxA: np.ndarray, groups_N: np.ndarray, tested_TxA: np.ndarray) -> None:
        features_NxA = codes_NxA.astype(np.float32) / SCALE
        self.groups = groups_N
        self._graph = neighbour_graph(features_NxA, is_scaled=True).astype(np.float32)
        self._mean, self._std = mean_and_std(features_NxA, is_scaled=True)
        self._unit_NxA = _unit((features_NxA - self._mean) / self._std)
        self._tested = self._neighbours_of(tested_TxA)

    def fit(self, labels: Labels) -> Fit:
        """Fits the classifier to the labels so far, of one class at least."""
        probabilities_NxC = self._spread(_masses(len(self.groups), labels))
        probabilities_NxC[labels.rows] = np.eye(len(labels.numbers), dtype=np.float32)[labels.classes]
        tested = _votes(self._tested, probabilities_NxC).argmax(1)
        return Fit(labels, probabilities_NxC, tested)

    def probabilities_of(self, codes_MxA: np.ndarray, fit: Fit) -> np.ndarray:
        """Returns the probabilities of other images, float32 (M, C), from their nearest neighbours."""
        votes = _votes(self._neighbours_of(codes_MxA), fit.probabilities)
        found: np.ndarray = votes / votes.sum(1, keepdims=True).clip(1e-30)
        return found

    def judge(self, fit: Fit, is_wanted: Callable[[], bool] = lambda: True) -> Verdict | None:
        """Says how good a classifier is; None if meanwhile `is_wanted` says no."""
        labels = fit.labels
        own_LxC = self._held_out(labels, is_wanted)
        if own_LxC is None:
            return None
        likeliest, probability = own_LxC.argmax(1), own_LxC.max(1)
        own = own_LxC[np.arange(len(likeliest)), labels.classes]
        wrong = (probability >= CONTRADICTED) & (own <= OWN)
        right = (likeliest == labels.classes) & (probability > 0)
        least = _least_sure(probability[labels.by_one], right[labels.by_one])
        half = len(labels.rows) // 2
        first = labels.some(slice(half))
        changed = 1.0
        if half:
            before = self._spread(_masses(len(self.groups), first)).argmax(1)
            is_same = (before == fit.predicted) & fit.probabilities.any(1)
            changed = float(1 - is_same.mean())
        return Verdict(
            fit.probabilities.max(1) >= least,
            [(int(labels.rows[i]), int(likeliest[i])) for i in np.flatnonzero(wrong)],
            half,
            changed,
        )

    def _spread(self, masses_NxC: np.ndarray) -> np.ndarray:
        """Returns the probabilities that masses of the classes spread to, float32 (N, C)."""
        settled = settle(self._graph, masses_NxC)
        probabilities: np.ndarray = settled / settled.sum(1, keepdims=True).clip(1e-30)
        return probabilities

    def _held_out(self, labels: Labels, is_wanted: Callable[[], bool]) -> np.ndarray | None:
        """Returns the probabilities of the labelled images, (L, C), each without its own label and those
        of its group. is_wanted: see `judge`."""
        groups = np.unique(self.groups[labels.rows], return_inverse=True)[1]
        # By turns, in an order that has nothing to do with that of the labels.
        fold_of_group = np.random.default_rng(0).permutation(groups.max() + 1) % FOLDS
        fold_L = fold_of_group[groups]
        found = np.zeros((len(labels.rows), len(labels.numbers)), np.float32)
        for fold in range(FOLDS):
            if not is_wanted():
                return None
            out = fold_L == fold
            rest = _masses(len(self.groups), labels.some(~out))
            found[out] = self._spread(rest)[labels.rows[out]]
        return found

    def _neighbours_of(self, codes_MxA: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the nearest of the N images to each of M others, int64 (M, K), and their weights."""
        unit = _unit((codes_MxA.astype(np.float32) / SCALE - self._mean) / self._std)
        count = min(NEIGHBOURS, len(self._unit_NxA))
        indices, weights = (
            np.empty((len(unit), count), np.int64),
            np.empty((len(unit), count), np.float32),
        )
        for start in range(0, len(unit), 1024):
            cosine = unit[start : start + 1024] @ self._unit_NxA.T
            nearest = np.argpartition(-cosine, count - 1, axis=1)[:, :count]
            indices[start : start + 1024] = nearest
            near = np.take_along_axis(cosine, nearest, axis=1)
            weights[start : start + 1024] = np.exp((near - 1) / TEMPERATURE)
        return indices, weights


def settle(graph: Any, start_NxC: np.ndarray) -> np.ndarray:
    """Returns the F that F ← α S F + (1 - α) Y comes to (see `label_propagation.propagate`), by the
    Chebyshev semi-iterative method (Golub and Varga, Numerische Mathematik 3, 1961), which needs a fifth
    of the steps. graph: S, whose eigenvalues lie between -1 and 1. start: Y, float32 (N, C)."""
    alpha, constant = np.float32(ALPHA), np.float32(1 - ALPHA) * start_NxC
    before, now = np.zeros_like(constant), constant
    weight = 1 / (1 - ALPHA**2 / 2)
    for _ in range(STEPS):
        step = alpha * (graph @ now) + constant - before
        before, now = now, np.float32(weight) * step + before
        weight = 1 / (1 - ALPHA**2 * weight / 4)
    settled: np.ndarray = now.clip(0)  # Rounding may leave a little less than nothing.
    return settled


def _masses(count: int, labels: Labels) -> np.ndarray:
    """Returns what each label begins with, float32 (N, C): a class begins with the root of the number of
    labels that it was given one by one, shared out among all of its labels. That is between as much for
    each class, which is better where they are equally frequent (by .005 in the mean of three sets with
    40 labels), and as much for each label, which is better with a tail of rare classes: there the root
    was better than both (.78 against .73 and .76 of the pool)."""
    masses = np.zeros((count, len(labels.numbers)), np.float32)
    masses[labels.rows, labels.classes] = 1
    weights = np.bincount(labels.classes[labels.by_one], minlength=len(labels.numbers)).clip(1)
    scaled: np.ndarray = masses * np.float32(np.sqrt(weights)) / masses.sum(0).clip(1)
    return scaled


def _votes(neighbours: tuple[np.ndarray, np.ndarray], probabilities_NxC: np.ndarray) -> np.ndarray:
    indices, weights = neighbours
    votes: np.ndarray = (weights[:, :, None] * probabilities_NxC[indices]).sum(1)
    return votes


def _least_sure(probability_L: np.ndarray, is_right_L: np.ndarray) -> float:
    """Returns the least probability from which on RIGHT of the labelled images are right; more than 1
    where there is none."""
    order = np.argsort(-probability_L, kind="stable")
    counts = np.arange(1, len(order) + 1)
    is_good = (is_right_L[order].cumsum() >= RIGHT * counts) & (counts >= FEWEST_SURE)
    good = np.flatnonzero(is_good & (probability_L[order] > 0))
    return float(probability_L[order][good[-1]]) if len(good) else 2.0


def _unit(vectors: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    return scaled
