"""Selects the images whose labels are used: a random sample, or those that a CSV lists."""

import os
import re
from dataclasses import dataclass

import numpy as np

from clfew import console
from clfew.data.lists import ListFile, is_list, parse
from clfew.data.randomness import identity_order
from clfew.data.source import Source
from clfew.data.splits import indices_by_class
from clfew.errors import UsageError, UserError

_SAMPLE_SALT = 0x1ABE1
"""Makes the order of the label sample another one than that of the test split under the same seed."""


SHARE_OF_EACH, ALL = "a share of each class", "all"
"""How labels came about of which the same fraction of each class was drawn, or all."""


@dataclass(frozen=True)
class LabelSpec:
    """How many labels to use. At most one of the first four fields is set; if none is, all labels are
    used.

    fraction: of each class's images. total: number over all classes. per_class: number in each class.
    listed: a list of the labelled images. at_random: whether `fraction` or `total` is drawn without
    looking at classes, as by a person who labels images at random.
    """

    fraction: float | None = None
    total: int | None = None
    per_class: int | None = None
    listed: ListFile | None = None
    at_random: bool = False

    @property
    def drawn(self) -> str:
        """How labels that are no list's came about, in words that are kept with each of them."""
        if self.at_random:
            return "random"
        if self.fraction is not None:
            return SHARE_OF_EACH
        return ALL if self.total is None and self.per_class is None else "drawn per class"

    @property
    def list_name(self) -> str:
        return str(self.listed.file) if self.listed else ""


def parse_labels(spec: str) -> LabelSpec:
    """Parses `1%`, `40`, `4/class`, `1%/random`, `40/random`, `all` or the name of a CSV file.

    Raises UsageError, or UserError if there is no such file.
    """
    text = spec.strip()
    hint = (
        "write --labels 1%, 40, 4/class, 40/random, all, or the name of a CSV with the columns "
        "path,label."
    )
    if text == "all":
        return LabelSpec()
    if is_list(text):
        named = parse(text)
        if not os.path.isfile(named.file):  # pathlib raises if a name is too long.
            raise UserError(f"There is no file {named.file} to read labels from.", hint)
        return LabelSpec(listed=named)
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%(/random)?", text):
        fraction = float(match[1]) / 100
        if not 0 < fraction <= 1:
            raise UsageError(f"--labels {spec} is not between 0% and 100%.", hint)
        return LabelSpec(fraction=fraction, at_random=bool(match[2]))
    # No more digits than an int64 has: Python itself refuses to read thousands of them.
    if match := re.fullmatch(r"(\d{1,18})(/class|/random)?", text):
        count = int(match[1])
        if count < 1:
            raise UsageError(f"--labels {spec} selects no labels at all.", hint)
        if match[2] == "/class":
            return LabelSpec(per_class=count)
        return LabelSpec(total=count, at_random=bool(match[2]))
    raise UsageError(f"--labels {spec} cannot be understood.", hint)


def sample_labels(source: Source, pool: np.ndarray, spec: LabelSpec, seed: int) -> np.ndarray:
    """Returns the images of `pool` whose labels are used: a random sample, at least one of each class
    unless `spec.at_random` is set.

    `pool` holds indices of labelled images outside the test split. Raises UserError if a class has no
    image there, or if `spec` asks for more labels than there are or for fewer than one a class; for a
    sample that does not look at classes, if it has images of one class only.
    """
    if spec.at_random:
        return _sample_at_random(source, pool, spec, seed)
    members = indices_by_class(source, pool)
    missing = [source.classes[c] for c in range(len(source.classes)) if c not in members]
    if missing:
        raise UserError(
            f"The class '{missing[0]}' has no image outside the test split that is readable and no copy "
            "of a test image.",
            "add training images of it, or remove it from the test images.",
        )
    counts = _counts_per_class(source, members, spec, seed)
    sampled = []
    for label, indices in members.items():
        order = identity_order(seed ^ _SAMPLE_SALT, [source.identities[i] for i in indices])
        sampled.append(indices[order[: counts[label]]])
    return np.sort(np.concatenate(sampled))


def _sample_at_random(source: Source, pool: np.ndarray, spec: LabelSpec, seed: int) -> np.ndarray:
    """Returns a random sample of `pool`, whatever the classes."""
    count = spec.total or max(1, round((spec.fraction or 0) * len(pool)))
    if count > len(pool):
        raise UserError(
            f"--labels {count}/random is more than the {len(pool)} labelled images outside the test "
            "split, without unreadable ones and copies of test images.",
            "use --labels all.",
        )
    order = identity_order(seed ^ _SAMPLE_SALT, [source.identities[i] for i in pool])
    sample = np.sort(pool[order[:count]])
    classes = np.unique(source.labels[sample])
    if len(classes) < 2:
        raise UserError(
            f"The random sample of {count} of {len(pool)} labels, seed {seed}, is of one class only, "
            f"'{source.classes[classes[0]]}'.",
            "a classifier needs two: draw more labels, or some of each class, such as --labels 4/class.",
        )
    return sample


def say_classes_without_label(source: Source, label_samples: list[np.ndarray]) -> None:
    """Reports how many classes the label samples have no label of: nothing is learned of these."""
    missing = [len(source.classes) - len(np.unique(source.labels[s])) for s in label_samples]
    if not any(missing):
        return
    least, most = min(missing), max(missing)
    several = f" ({least} to {most} in the {len(missing)} label samples)" if least < most else ""
    console.say(
        f"note       {missing[0]} of {len(source.classes)} classes "
        f"{'has' if missing[0] == 1 else 'have'} no label and "
        f"{'is' if missing[0] == 1 else 'are'} never predicted{several}"
    )


def _counts_per_class(
    source: Source, members: dict[int, np.ndarray], spec: LabelSpec, seed: int
) -> dict[int, int]:
    sizes = {label: len(indices) for label, indices in members.items()}
    if spec.fraction is not None:
        return {label: max(1, round(spec.fraction * size)) for label, size in sizes.items()}
    if spec.per_class is not None:
        smallest = min(sizes, key=lambda label: sizes[label])
        if spec.per_class > sizes[smallest]:
            raise UserError(
                f"--labels {spec.per_class}/class is more than the class "
                f"'{source.classes[smallest]}' has outside the test split ({sizes[smallest]}, without "
                "unreadable images and copies of test images).",
                f"use --labels {sizes[smallest]}/class, or --labels all.",
            )
        return dict.fromkeys(sizes, spec.per_class)
    if spec.total is not None:
        return _distribute(source, sizes, spec.total, seed)
    return sizes


def _distribute(source: Source, sizes: dict[int, int], total: int, seed: int) -> dict[int, int]:
    """Returns how many of `total` labels each class gets: as evenly as the classes' sizes allow."""
    if total < len(sizes) or total > sum(sizes.values()):
        few = total < len(sizes)
        raise UserError(
            f"--labels {total} is {'fewer than one for each of' if few else 'more than'} the "
            + (
                f"{len(sizes)} classes."
                if few
                else f"{sum(sizes.values())} labelled images outside the test split, without unreadable "
                "ones and copies of test images."
            ),
            f"use --labels {len(sizes)} or more." if few else "use --labels all.",
        )
    # Which classes get the labels that do not divide evenly is random too.
    order = identity_order(seed, [source.classes[label] for label in sizes])
    classes = [list(sizes)[i] for i in order]
    counts = dict.fromkeys(sizes, 0)
    while total:
        left = [label for label in classes if counts[label] < sizes[label]]
        # Each class gets several labels at once, as long as none is used up: one at a time is slow.
        # If fewer labels than classes are left, the first of these get them.
        rounds = min(total // len(left), *(sizes[label] - counts[label] for label in left))
        for label in left if rounds else left[:total]:
            counts[label] += max(1, rounds)
            total -= max(1, rounds)
    return counts
