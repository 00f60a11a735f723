"""Pages of images that the classifier takes for one class."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from clfew.labelling.assistant import Fit
from clfew.selection.pool import Turns, taken_in_order

SIZE = 24

MIXED, SUREST, DOUBTFUL = "mixed", "surest", "doubtful"
ORDERS = (MIXED, SUREST, DOUBTFUL)

FEWEST = 6
"""A class with so many images comes before one with fewer, whatever their labels."""

WORTH = 0.5
"""A page of which less is expected to be right comes after all others: to name each image one by one is
as fast where half of a page has to be corrected and then named."""

TOO_LOW, DOUBT = 1.3, 12
"""Probabilities of images that no label is near are too low, by about so much (.63 where .84 of aerial
photographs were right with 40 labels, .30 where .38 of hand signs were). What is expected by them counts
as so many images that were seen."""

FEW_LABELS, LEAST = 5, 0.2
"""A page of a rare class, with fewer labels than FEW_LABELS and a third of what classes have on average,
is filled up with images of other classes that may be of it, with a probability of at least LEAST."""


@dataclass(frozen=True)
class Page:
    """Images to accept or to correct. label: the number of the class. rows: of the images, in their
    order. found: how many images it takes for the class."""

    label: int
    order: str
    rows: list[int]
    found: int


@dataclass(frozen=True)
class Choice:
    """A class of which there is a page. found: how many images it takes for the class. right: the
    fraction of them that is expected to be of it."""

    label: int
    found: int
    right: float

    @property
    def is_worth(self) -> bool:
        return self.right >= WORTH and self.found >= FEWEST


def choices(
    fit: Fit,
    is_open_N: np.ndarray,
    labelled: Mapping[int | None, int],
    seen: Mapping[int, tuple[int, int]],
) -> list[Choice]:
    """Returns the classes of which there is a page, in the order in which they come: of those that are
    worth a page, the one with the fewest labels first, and where several have as few, the one of which
    most is expected to be right. labelled: labels of each class. seen: of the last
    pages of a class, how many images were right, and how many there were."""
    rows = np.flatnonzero(is_open_N & fit.probabilities.any(1))
    predicted, probability = fit.predicted[rows], fit.probabilities[rows].max(1)
    counts = np.bincount(predicted, minlength=len(fit.labels.numbers))
    means = np.bincount(predicted, probability, minlength=len(counts)) / counts.clip(1)
    found = []
    for label, count, mean in zip(fit.labels.numbers, counts.tolist(), means.tolist(), strict=True):
        right, shown = seen.get(label, (0, 0))
        expected = (DOUBT * min(1.0, TOO_LOW * mean) + right) / (DOUBT + shown)
        found += [Choice(label, count, expected)] if count else []
    return sorted(found, key=lambda each: (not each.is_worth, labelled.get(each.label, 0), -each.right))


def page_of(
    fit: Fit, label: int, order: str, is_open_N: np.ndarray, groups_N: np.ndarray, few: bool, most: int
) -> Page:
    """Returns a page of a class. order: the surest first, the most doubtful first, or some from each
    part between them. few: whether the class has few labels. Images of one group come one after the
    other has been labelled, as far as there are others."""
    place = list(fit.labels.numbers).index(label)
    probability_N = fit.probabilities[:, place]
    is_of = is_open_N & (fit.predicted == place) & (probability_N > 0)
    rows = np.flatnonzero(is_of)
    rows = rows[np.argsort(-fit.margin[rows], kind="stable")]
    if order == DOUBTFUL:
        rows = rows[::-1]
    elif order == MIXED and len(rows) > most:
        picked = np.unique(np.linspace(0, len(rows) - 1, most).astype(int))
        rows = np.concatenate([rows[picked], np.delete(rows, picked)])
    if few and len(rows) < most:
        others = np.flatnonzero(is_open_N & ~is_of & (probability_N >= LEAST))
        rows = np.concatenate([rows, others[np.argsort(-probability_N[others], kind="stable")]])
    turns = Turns(groups_N[rows], np.array([], np.int64))
    taken = taken_in_order(np.arange(len(rows)), most, turns)
    return Page(label, order, rows[taken].tolist(), int(is_of.sum()))
