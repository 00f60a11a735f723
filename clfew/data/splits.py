"""Chooses the images that are held out for testing.

The choice depends on a seed and on each image's name, not on the order in which a disk lists files: an
image added later does not move the others.
"""

import numpy as np

from clfew.data.randomness import identity_order
from clfew.data.source import Source
from clfew.errors import UserError

TEST_FRACTION = 0.2


def test_indices(source: Source, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Returns the held-out images: the source's own test split (or val, if it has no test), else 20 %.

    The 20 % are sampled per class from the labelled images, in whole groups (int64 (N,), see
    `groups.groups_of`; None where every image is alone). A class of one group keeps it for training (see
    `require_testable`). In a source with labels, a split without any cannot be tested on; its images are
    held out all the same.
    """
    chosen = split_to_test(source)
    unlabelled = np.array([], dtype=np.int64)
    if source.rule >= 3 and source.is_labelled:
        unlabelled = np.flatnonzero((source.splits == "test") & (source.labels < 0))
    if chosen:
        return np.union1d(np.flatnonzero(source.splits == chosen), unlabelled)
    groups = np.arange(len(source)) if groups is None else groups
    return np.union1d(_sample(source, seed, groups), unlabelled)


def _sample(source: Source, seed: int, groups: np.ndarray) -> np.ndarray:
    """Returns TEST_FRACTION of the labelled images of each class of the train split, in whole groups: in
    a random order each group that fits, then for a class without any its smallest one. Unlabelled
    images of a group are held out with it."""
    train = np.flatnonzero((source.splits == "train") & (source.labels >= 0))
    sizes = np.bincount(source.labels[train], minlength=len(source.classes))
    wanted = np.maximum(1, np.round(TEST_FRACTION * sizes)).astype(int).tolist()
    # The classes of each group's images: [[class, count], …].
    numbers, places = np.unique(groups[train], return_inverse=True)
    (of_group, of_class), counts = np.unique(
        np.stack([places, source.labels[train]]), axis=1, return_counts=True
    )
    classes_of: list[list[tuple[int, int]]] = [[] for _ in numbers]
    for group, label, count in zip(of_group.tolist(), of_class.tolist(), counts.tolist(), strict=True):
        classes_of[group].append((label, count))
    taken, left = [0] * len(sizes), np.bincount(of_class, minlength=len(sizes)).tolist()
    held_out = np.zeros(len(numbers), bool)

    def take(group: int) -> None:
        held_out[group] = True
        for label, count in classes_of[group]:
            taken[label] += count
            left[label] -= 1

    # Every class keeps a group to learn from.
    order = identity_order(seed, [source.identities[i] for i in numbers]).tolist()
    for group in order:
        if all(left[c] > 1 and taken[c] + count <= wanted[c] for c, count in classes_of[group]):
            take(group)
    for group in sorted(order, key=lambda each: sum(count for _, count in classes_of[each])):
        classes = [c for c, _ in classes_of[group]]
        if (
            not held_out[group]
            and any(not taken[c] for c in classes)
            and min(left[c] for c in classes) > 1
        ):
            take(group)
    return np.flatnonzero(np.isin(groups, numbers[held_out]) & (source.splits == "train"))


def split_to_test(source: Source) -> str | None:
    """Returns "test" or "val", the split of the source that is tested on, None where it has none."""
    has_use = np.ones(len(source), dtype=bool)
    if source.rule >= 3 and source.is_labelled:
        has_use = source.labels >= 0
    return next((s for s in ("test", "val") if (has_use & (source.splits == s)).any()), None)


def require_testable(source: Source) -> None:
    """Raises UserError if a class has only one image, which cannot be used to train and to test.

    A source with a test or val split of its own is not checked.
    """
    if split_to_test(source):
        return
    for label, members in indices_by_class(source, np.flatnonzero(source.splits == "train")).items():
        if len(members) == 1:
            raise UserError(
                f"The class '{source.classes[label]}' has one image, which is too few to train and to "
                "test on.",
                "add images to it, leave it out, or put test images in a test/ folder beside train/.",
            )


def require_groups_to_test(source: Source, group_by: str | None) -> None:
    """Raises UserError if no image of a source with labels can be held out for testing because of the
    groups that --group-by makes (`group_by`, None where it is not given)."""
    labelled = np.flatnonzero((source.splits == "train") & (source.labels >= 0))
    if group_by is None or source.groups is None or split_to_test(source) or not len(labelled):
        return
    alone = len(source) + np.arange(len(source))
    groups = np.where(source.groups < 0, alone, source.groups)[labelled]
    of_group, of_class = np.unique(np.stack([groups, source.labels[labelled]]), axis=1)
    is_whole_class = np.bincount(of_class)[of_class] == 1
    # Every class keeps a group to learn from (see `_sample`).
    if len(np.unique(of_group[is_whole_class])) == len(np.unique(of_group)):
        raise UserError(
            f"With --group-by {group_by} no image of {source.spec} can be held out for testing: each "
            "group holds all images of a class.",
            "group by what differs within a class, such as --group-by 2, or leave out --group-by.",
        )


def indices_by_class(source: Source, indices: np.ndarray) -> dict[int, np.ndarray]:
    """Returns the indices of each class, in the order given. One pass serves any number of classes."""
    labels = source.labels[indices]
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    # Without indices there is one empty group but no class: hence strict=False.
    groups = np.split(indices[order], starts[1:])
    return {int(c): group for c, group in zip(classes, groups, strict=False) if c >= 0}


def evenly_spaced(indices: np.ndarray, most: int) -> np.ndarray:
    """Returns at most `most` of the indices, evenly spaced."""
    return indices[np.linspace(0, len(indices) - 1, min(most, len(indices))).astype(int)]
