"""Chooses the images that are held out for testing.

The choice depends on a seed and on each image's name, not on the order in which a disk lists files: an
image added later does not move the others.
"""

import numpy as np

from clfew.data.randomness import identity_order
from clfew.data.source import Source
from clfew.errors import UserError

TEST_FRACTION = 0.2


def test_indices(source: Source, seed: int) -> np.ndarray:
    """Returns the held-out images: the source's own test split (or val, if it has no test), else 20 %.

    The 20 % are sampled per class from the labelled images. A class of one image keeps it for training
    (see `require_testable`). In a source with labels, a split without any cannot be tested on; its
    images are held out all the same.
    """
    chosen = split_to_test(source)
    unlabelled = np.array([], dtype=np.int64)
    if source.rule >= 3 and source.is_labelled:
        unlabelled = np.flatnonzero((source.splits == "test") & (source.labels < 0))
    if chosen:
        return np.union1d(np.flatnonzero(source.splits == chosen), unlabelled)
    held_out = [unlabelled]
    for members in indices_by_class(source, np.flatnonzero(source.splits == "train")).values():
        if len(members) == 1:
            continue
        order = identity_order(seed, [source.identities[i] for i in members])
        held_out.append(members[order[: max(1, round(TEST_FRACTION * len(members)))]])
    return np.sort(np.concatenate(held_out))


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
