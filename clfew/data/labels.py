"""Which few images keep their labels: a number of them, drawn, or a list."""

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clfew.data.csv_source import read_label_csv
from clfew.data.randomness import identity_order
from clfew.data.source import Source
from clfew.data.splits import indices_by_class
from clfew.errors import UsageError, UserError

_DRAW = 0x1ABE1
"""Keeps the order of the label draw apart from the order of the test split under the same seed."""


@dataclass(frozen=True)
class LabelSpec:
    """How many labels to use: exactly one of the four is set, none of them means all.

    share: of each class's images. total: over all classes. per_class: in each class.
    file: a CSV that lists them.
    """

    share: float | None = None
    total: int | None = None
    per_class: int | None = None
    file: Path | None = None


def parse_labels(spec: str) -> LabelSpec:
    """`1%`, `40`, `4/class`, `all` or a CSV file. Raises UsageError (or UserError: no such file)."""
    text = spec.strip()
    hint = "write --labels 1%, 40, 4/class, all, or the name of a CSV with the columns path,label."
    if text == "all":
        return LabelSpec()
    if text.lower().endswith(".csv"):
        if not os.path.isfile(text):  # Unlike pathlib, it answers no to a name that is too long.
            raise UserError(f"There is no file {text} to read labels from.", hint)
        return LabelSpec(file=Path(text))
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text):
        share = float(match[1]) / 100
        if not 0 < share <= 1:
            raise UsageError(f"--labels {spec} is not between 0% and 100%.", hint)
        return LabelSpec(share=share)
    # No more digits than an int64 has: Python itself refuses to read thousands of them.
    if match := re.fullmatch(r"(\d{1,18})(/class)?", text):
        count = int(match[1])
        if count < 1:
            raise UsageError(f"--labels {spec} asks for no labels at all.", hint)
        return LabelSpec(per_class=count) if match[2] else LabelSpec(total=count)
    raise UsageError(f"--labels {spec} is not understood.", hint)


def sample_labels(source: Source, pool: np.ndarray, spec: LabelSpec, seed: int) -> np.ndarray:
    """The images of `pool` whose labels are used: drawn per class, at least one of each class.

    `pool` holds indices of labelled images outside the test split. Raises UserError when the
    classes have fewer images than asked for.
    """
    members = indices_by_class(source, pool)
    missing = [source.classes[c] for c in range(len(source.classes)) if c not in members]
    if missing:
        raise UserError(
            f"The class '{missing[0]}' has no image outside the test split.",
            "add training images of it, or remove it from the test images.",
        )
    wanted = _counts_per_class(source, members, spec, seed)
    drawn = []
    for label, indices in members.items():
        order = identity_order(seed ^ _DRAW, [source.identities[i] for i in indices])
        drawn.append(indices[order[: wanted[label]]])
    return np.sort(np.concatenate(drawn))


def _counts_per_class(
    source: Source, members: dict[int, np.ndarray], spec: LabelSpec, seed: int
) -> dict[int, int]:
    sizes = {label: len(indices) for label, indices in members.items()}
    if spec.share is not None:
        return {label: max(1, round(spec.share * size)) for label, size in sizes.items()}
    if spec.per_class is not None:
        smallest = min(sizes, key=lambda label: sizes[label])
        if spec.per_class > sizes[smallest]:
            raise UserError(
                f"--labels {spec.per_class}/class is more than the class "
                f"'{source.classes[smallest]}' has outside the test split ({sizes[smallest]}).",
                f"use --labels {sizes[smallest]}/class, or --labels all.",
            )
        return dict.fromkeys(sizes, spec.per_class)
    if spec.total is not None:
        return _distribute(source, sizes, spec.total, seed)
    return sizes


def _distribute(source: Source, sizes: dict[int, int], total: int, seed: int) -> dict[int, int]:
    """`total` labels over the classes as evenly as their sizes allow."""
    if total < len(sizes) or total > sum(sizes.values()):
        few = total < len(sizes)
        raise UserError(
            f"--labels {total} is {'fewer than one for each of' if few else 'more than'} the "
            + (f"{len(sizes)} classes." if few else f"{sum(sizes.values())} there are to draw from."),
            f"use --labels {len(sizes)} or more." if few else "use --labels all.",
        )
    # Who gets the labels that do not divide evenly is drawn too.
    order = identity_order(seed, [source.classes[label] for label in sizes])
    classes = [list(sizes)[i] for i in order]
    counts = dict.fromkeys(sizes, 0)
    while total:
        left = [label for label in classes if counts[label] < sizes[label]]
        # As many rounds at once as everybody can take part in: a large class would need one a label.
        rounds = min(total // len(left), *(sizes[label] - counts[label] for label in left))
        for label in left if rounds else left[:total]:
            counts[label] += max(1, rounds)
            total -= max(1, rounds)
    return counts


def apply_label_csv(source: Source, path: Path) -> tuple[Source, np.ndarray]:
    """Gives images of `source` the labels a CSV lists: the relabelled source, and their indices.

    A path in the CSV is an image's name within the source, or a file (relative to the CSV or to the
    working folder) that the source holds. The source keeps the labels it has for other images where
    the CSV's classes are among its own, and loses them otherwise. Raises UserError.
    """
    rows = read_label_csv(path)
    if "label" not in rows[0]:
        raise UserError(f"{path} has no column 'label'.", "the first line must be path,label.")
    empty = [row["path"] for row in rows if not row["label"].strip()]
    if empty:
        raise UserError(f"{path} gives {empty[0]} an empty label.", "remove the line or fill it in.")
    by_name = {name: i for i, name in enumerate(source.identities)}
    root = Path(source.spec) if not source.spec.endswith(".csv") else Path(source.spec).parent
    indices = []
    for row in rows:
        index = by_name.get(row["path"])
        for base in (path.parent, Path.cwd()):
            if index is None:
                index = by_name.get(_relative(base / row["path"], root))
        if index is None:
            raise UserError(
                f"{path} names {row['path']}, which is not among the images of {source.spec}.",
                "paths are relative to that folder (or to the CSV); is it the right source?",
            )
        indices.append(index)
    commonest, times = Counter(indices).most_common(1)[0]
    if times > 1:
        raise UserError(
            f"{path} names {source.identities[commonest]} more than once, in several spellings.",
            "give each image one line: an image has one label.",
        )
    # As it stands where there is such a class: a folder's name may begin or end with a space.
    existing = set(source.classes)
    names = [row["label"] if row["label"] in existing else row["label"].strip() for row in rows]
    known = source.classes if set(names) <= set(source.classes) else sorted(set(names))
    labels = source.labels.copy() if known is source.classes else np.full(len(source), -1)
    number_of = {name: number for number, name in enumerate(known)}
    labels[indices] = [number_of[name] for name in names]
    return source.relabelled(labels, list(known)), np.array(indices)


def _relative(file: Path, root: Path) -> str:
    """The file's name within `root`, links followed; "" where it is not there or cannot be a name."""
    try:
        place = Path(os.path.realpath(file))  # Unlike pathlib, it takes a link that leads to itself.
    except ValueError:  # A null byte in the name.
        return ""
    return place.relative_to(root).as_posix() if place.is_relative_to(root) else ""
