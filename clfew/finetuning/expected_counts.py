"""How many images of each class there are, with an interval: in all images, or in those learned from."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clfew.data.label_lists import RANDOM
from clfew.finetuning.estimated_shares import ENDS, drawn_shares, predicted_in_folds
from clfew.finetuning.expected_shares import ExpectedShares
from clfew.finetuning.fit import Task
from clfew.finetuning.random_sample import share_intervals

Counts = dict[str, Any]


def expected_counts(
    task: Task,
    labelled: np.ndarray,
    hows: Sequence[str],
    classes: list[str],
    test: np.ndarray,
    of_test: list[dict[str, Any]] | None,
) -> Counts | None:
    """Returns `images`, the number of those counted; `origin`, in words; and for each class, in
    `classes`, its `class`, `count`, `low` and `high`. None where nothing is known.

    The best that there is: a random test sample (`of_test`, the rows of `class_shares`); the labels, if
    some were drawn at random, with what classifiers say of the other images; what is expected of the
    shares because each class gave the same part of its labels; or else what classifiers say alone.
    Classes without a label are only counted where labels were drawn at random.
    """
    images = len(task.pool)
    if of_test is not None:
        images = len(np.union1d(task.pool, test))
        share, low, high = (np.array([row[end] for row in of_test]) for end in ("share", "low", "high"))
        origin = f"from {len(test):,} test images drawn at random"
        return _rows(images, origin, classes, share, low, high)
    is_random = np.array([how == RANDOM for how in hows], bool)
    if is_random.any():
        origin = f"from {int(is_random.sum()):,} images labelled at random"
        found = _of_random_labels(task, labelled, is_random)
        return _rows(images, origin, classes, *found, _counts(task, labelled))
    if task.shares is not None and task.shares.is_in_labels:
        each: ExpectedShares = task.shares
        return _rows(images, each.origin, classes, each.share, each.low, each.high)
    if task.features is None:
        return None
    drawn = drawn_shares(task, labelled, 0)
    if drawn is None:
        return None
    present = np.unique(task.labels[labelled])
    share, low, high = np.quantile(drawn, [0.5, *ENDS], axis=0)
    names = [classes[c] for c in present]
    origin = "estimated from the classifier's answers"
    return _rows(images, origin, names, share, low, high, _counts(task, labelled)[present])


def _of_random_labels(
    task: Task, labelled: np.ndarray, is_random_L: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the shares and the ends of their intervals from labels that were drawn at random, with
    what classifiers say of the rest where labels can be held out."""
    labels = task.labels[labelled]
    if task.groups is not None:
        # Images of a group are alike, and one of them counts.
        firsts = np.unique(task.groups[labelled], return_index=True)[1]
        is_random_L = is_random_L & np.isin(np.arange(len(labelled)), firsts)
    present, places = np.unique(labels, return_inverse=True)
    predicted = None
    if task.features is not None and len(present) > 1:
        predicted = predicted_in_folds(task, labelled, places, 0)
    of_sample, of_pool = None, None
    if predicted is not None:
        of_sample = np.zeros((int(is_random_L.sum()), task.classes))
        of_sample[:, present] = predicted[0][is_random_L]
        of_pool = np.zeros(task.classes)
        of_pool[present] = predicted[1]
    sample = labels[is_random_L]
    found = share_intervals(sample, task.classes, of_sample, of_pool, len(task.pool))
    share, low, high = np.array(found).T
    return share, low, high


def _counts(task: Task, labelled: np.ndarray) -> np.ndarray:
    counts: np.ndarray = np.bincount(task.labels[labelled], minlength=task.classes)
    return counts


def _rows(
    images: int,
    origin: str,
    classes: list[str],
    share_C: np.ndarray,
    low_C: np.ndarray,
    high_C: np.ndarray,
    counted: np.ndarray | None = None,
) -> Counts:
    """Returns shares as numbers of images. counted: how many of each class are known, which are the
    least."""
    low, count, high = (
        np.maximum(np.round(images * each), 0 if counted is None else counted).astype(int)
        for each in (low_C, share_C, high_C)
    )
    rows = [
        {"class": name, "count": int(count[c]), "low": int(low[c]), "high": int(high[c])}
        for c, name in enumerate(classes)
    ]
    return {"images": images, "origin": origin, "classes": rows}
