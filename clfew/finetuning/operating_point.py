"""The threshold on the probability of a class with which its precision, or its recall, is what is asked
for, from the probabilities of labels that were held out in turn.

Shape suffixes: L labelled images.
"""

from typing import NamedTuple

import numpy as np

from clfew.finetuning.metrics import interval_of_mean


class OperatingPoint(NamedTuple):
    """Images with at least the probability `threshold` are taken to be of the class.

    precision, recall: those to expect, and their 95 % intervals. images: the number of held-out labels
    of the class. called: of how many held-out labels the probability is as large.
    """

    threshold: float
    precision: float
    precision_interval: tuple[float, float]
    recall: float
    recall_interval: tuple[float, float]
    images: int
    called: int


def operating_point(
    probability_L: np.ndarray,
    is_class_L: np.ndarray,
    weights_L: np.ndarray,
    precision: float | None = None,
    recall: float | None = None,
) -> OperatingPoint | None:
    """Returns the threshold with the largest recall at which the precision is at least as asked for, or
    the largest one at which the recall is; None where no threshold reaches that.

    precision, recall: the one that is asked for, between 0 and 1. weights: how many images each label
    stands for.
    """
    assert (precision is None) != (recall is None)
    order = np.argsort(-probability_L, kind="stable")
    sorted_L, weights_L, found_L = probability_L[order], weights_L[order], is_class_L[order]
    called_L, right_L = weights_L.cumsum(), (weights_L * found_L).cumsum()
    if not right_L[-1]:
        return None
    # Between this image and the next, which is less probable.
    ends = np.flatnonzero(np.append(sorted_L[1:] < sorted_L[:-1], True))
    precision_E, recall_E = right_L[ends] / called_L[ends], right_L[ends] / right_L[-1]
    if precision is not None:
        good = np.flatnonzero((precision_E >= precision - 1e-9) & (right_L[ends] > 0))
        if not len(good):
            return None
        # Of those with the same recall, the first calls the fewest.
        place = good[recall_E[good] >= recall_E[good].max() - 1e-12][0]
    else:
        assert recall is not None
        place = np.flatnonzero(recall_E >= recall - 1e-9)[0]
    last = int(ends[place])
    next_probability = float(sorted_L[last + 1]) if last + 1 < len(sorted_L) else 0.0
    return OperatingPoint(
        (float(sorted_L[last]) + next_probability) / 2,
        float(precision_E[place]),
        _interval(float(precision_E[place]), weights_L[: last + 1]),
        float(recall_E[place]),
        _interval(float(recall_E[place]), weights_L[found_L]),
        int(found_L.sum()),
        last + 1,
    )


def _interval(fraction: float, weights: np.ndarray) -> tuple[float, float]:
    """Returns the Wilson interval of a weighted fraction of as many images as its weights are worth
    (Kish): fewer, the more they differ."""
    independent = float(weights.sum() ** 2 / (weights**2).sum())
    low, high = interval_of_mean(fraction, independent, np.inf)
    return min(low, fraction), max(high, fraction)  # But for rounding they are.
