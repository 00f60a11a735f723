"""Finds the expected class shares of a label sample: as asked for, or from what is known of it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from clfew.data.label_lists import RANDOM
from clfew.data.labels import ALL, SHARE_OF_EACH
from clfew.finetuning.asked import AUTO, EQUAL, LABELS, share_of_each
from clfew.finetuning.estimated_shares import estimated_shares
from clfew.finetuning.expected_shares import (
    ExpectedShares,
    are_unequal,
    contradict_equal,
    given_shares,
    shares_of_each_class,
    shares_of_labels,
)
from clfew.finetuning.fit import Task

NOTHING = "nothing is known of them"


def with_shares(
    task: Task,
    asked: str | dict[str, float],
    classes: list[str],
    labelled: np.ndarray,
    hows: Sequence[str],
) -> tuple[Task, str]:
    """Returns the task with the expected shares of the classes, None where they are taken to be equal,
    and them in words.

    asked: see `parse_shares`. hows: how each label came about. By themselves, shares follow from labels
    that were drawn at random or as a share of each class, as far as these contradict equal ones; where
    nothing is known, from the classifier's answers on the pool, as far as these rule out equal ones.
    """
    shares, why = _found(task, asked, classes, labelled, list(hows))
    words = f"equal, {why}" if shares is None else shares.words(classes)
    return replace(task, shares=shares), words


def _found(
    task: Task, asked: str | dict[str, float], classes: list[str], labelled: np.ndarray, hows: list[str]
) -> tuple[ExpectedShares | None, str]:
    """Returns the shares, or None and why they are taken to be equal."""
    if isinstance(asked, dict):
        return given_shares(share_of_each(asked, classes)), ""
    if asked == EQUAL:
        return None, "as asked for"
    labels = task.labels[labelled]
    counts = np.bincount(labels, minlength=task.classes)
    if asked == LABELS:
        return shares_of_labels(counts, f"as among the {len(labels):,} labels, as asked for"), ""
    assert asked == AUTO
    present = np.flatnonzero(counts)
    is_random = np.array([how == RANDOM for how in hows], bool)
    if drawn := int(is_random.sum()):
        counts = np.bincount(labels[is_random], minlength=task.classes)
        origin = f"from {drawn:,} images labelled at random"
        if contradict_equal(counts):
            return replace(shares_of_labels(counts, origin), is_in_labels=bool(is_random.all())), ""
        if is_random.all():
            return None, f"which {drawn:,} images labelled at random do not contradict"
    if set(hows) == {SHARE_OF_EACH}:
        found = shares_of_each_class(counts, f"from {len(labels):,} labels, a share of each class")
    elif set(hows) == {ALL} and len(labelled) == len(task.pool):
        found = shares_of_labels(counts, f"those of all {len(labels):,} labels", len(labels))
        # All classes have exactly as many images in no real folder.
        if not contradict_equal(counts):
            return None, f"which {len(labels):,} labels do not contradict"
    else:
        if task.features is None or task.smallest_class(labelled) < 2:
            return None, NOTHING
        estimated = estimated_shares(task, labelled, seed=0)
        return estimated, "which the classifier's answers do not rule out"
    if not are_unequal(found, present):
        return None, f"which {len(labels):,} labels do not contradict"
    return found, ""
