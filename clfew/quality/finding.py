"""A finding: one kind of thing in a source that somebody should know of."""

from dataclasses import dataclass, field

import numpy as np

from clfew.data.joined import components


@dataclass(frozen=True)
class Finding:
    """Things of one kind that were found in a source.

    name: its key in JSON. title: what was found. says: what that means and what to do, in a sentence or
    two. needs_person: whether somebody has to decide what is right; else clfew copes with it by itself.
    count: the number of things. sets: the indices of images that belong together, such as the copies of
    one picture, the worst sets first; empty where it is not about single images. notes: in words, what
    there is to say of each set, or the things themselves where there are no sets.
    """

    name: str
    title: str
    says: str
    needs_person: bool
    count: int
    sets: list[list[int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def joined(pairs: np.ndarray, count: int) -> list[list[int]]:
    """Returns the sets of images that pairs, int64 (P, 2), join, each sorted, by their first image.
    count: the number of all images."""
    if not len(pairs):
        return []
    members = np.unique(pairs)
    numbers = components(pairs, count)[members]
    order = np.argsort(numbers, kind="stable")
    starts = np.unique(numbers[order], return_index=True)[1][1:]
    return sorted(each.tolist() for each in np.split(members[order], starts))
