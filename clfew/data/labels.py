"""Selects the images whose labels are used: a random sample, or those that a CSV lists."""

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from clfew.data.groups import with_groups
from clfew.data.layout import class_words
from clfew.data.lists import ListFile, is_list, parse, read_list
from clfew.data.randomness import identity_order
from clfew.data.source import Source
from clfew.data.splits import indices_by_class
from clfew.errors import UsageError, UserError

_SAMPLE_SALT = 0x1ABE1
"""Makes the order of the label sample another one than that of the test split under the same seed."""


@dataclass(frozen=True)
class LabelSpec:
    """How many labels to use. At most one of the four fields is set; if none is, all labels are used.

    fraction: of each class's images. total: number over all classes. per_class: number in each class.
    listed: a list of the labelled images.
    """

    fraction: float | None = None
    total: int | None = None
    per_class: int | None = None
    listed: ListFile | None = None

    @property
    def list_name(self) -> str:
        return str(self.listed.file) if self.listed else ""


def parse_labels(spec: str) -> LabelSpec:
    """Parses `1%`, `40`, `4/class`, `all` or the name of a CSV file.

    Raises UsageError, or UserError if there is no such file.
    """
    text = spec.strip()
    hint = "write --labels 1%, 40, 4/class, all, or the name of a CSV with the columns path,label."
    if text == "all":
        return LabelSpec()
    if is_list(text):
        named = parse(text)
        if not os.path.isfile(named.file):  # pathlib raises if a name is too long.
            raise UserError(f"There is no file {named.file} to read labels from.", hint)
        return LabelSpec(listed=named)
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text):
        fraction = float(match[1]) / 100
        if not 0 < fraction <= 1:
            raise UsageError(f"--labels {spec} is not between 0% and 100%.", hint)
        return LabelSpec(fraction=fraction)
    # No more digits than an int64 has: Python itself refuses to read thousands of them.
    if match := re.fullmatch(r"(\d{1,18})(/class)?", text):
        count = int(match[1])
        if count < 1:
            raise UsageError(f"--labels {spec} selects no labels at all.", hint)
        return LabelSpec(per_class=count) if match[2] else LabelSpec(total=count)
    raise UsageError(f"--labels {spec} cannot be understood.", hint)


def sample_labels(source: Source, pool: np.ndarray, spec: LabelSpec, seed: int) -> np.ndarray:
    """Returns the images of `pool` whose labels are used: a random sample, at least one of each class.

    `pool` holds indices of labelled images outside the test split. Raises UserError if a class has no
    image there, or if `spec` asks for more labels than there are or for fewer than one a class.
    """
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


def label_list_of(finetuned: dict[str, Any]) -> ListFile:
    """Returns the list of labels that an artifact's metadata name."""
    return ListFile(Path(finetuned["label_file"] or ""), *finetuned.get("label_columns", (None, None)))


def apply_label_csv(source: Source, named: ListFile) -> tuple[Source, np.ndarray]:
    """Gives images of `source` the labels in a list. Returns the new source and the images' indices.

    A path in the list is an image's name within the source, or a file (relative to the list or to the
    working folder) that the source holds. The source keeps its labels of other images if all classes in
    the list are among its own, and loses them otherwise. Raises UserError.
    """
    path, read = named.file, read_list(named)
    rows = read.rows
    if "label" not in rows[0]:
        raise UserError(
            f"{path} has no column 'label'.",
            "the first line must be path,label, or name the column: --label-column NAME",
        )
    empty = [row["path"] for row in rows if not row["label"].strip()]
    if empty:
        raise UserError(f"{path} has an empty label for {empty[0]}.", "remove the line or fill it in.")
    find = _finder(source, path)
    indices = []
    for row in rows:
        index = find(row["path"])
        if index is None:
            raise UserError(
                f"{path} names {row['path']}, which is not among the images of {source.spec}.",
                "paths are relative to that folder (or to the CSV); is it the right source?",
            )
        indices.append(index)
    commonest, times = Counter(indices).most_common(1)[0]
    if times > 1:
        raise UserError(
            f"{path} names {source.identities[commonest]} more than once, by different paths.",
            "give each image one line: an image has one label.",
        )
    # Spaces are only removed from a name that is no class yet, as a folder's name may begin or end with
    # one.
    existing = set(source.classes)
    names = [row["label"] if row["label"] in existing else row["label"].strip() for row in rows]
    known = source.classes if set(names) <= set(source.classes) else sorted(set(names))
    labels = source.labels.copy() if known is source.classes else np.full(len(source), -1)
    class_index = {name: index for index, name in enumerate(known)}
    labels[indices] = [class_index[name] for name in names]
    columns = f" ({read.reading})" if read.reading else ""
    listed = f"{len(rows):,} label{'s' if len(rows) != 1 else ''} from {path.name}{columns}"
    if known is source.classes:
        reading = f"{source.reading}; {listed}"
    else:  # The labels that the source had are not used.
        reading = f"{len(source):,} images; {listed}: {class_words(Counter(names))}"
    relabelled = replace(source.relabelled(labels, list(known)), reading=reading)
    groups = {index: row.get("group", "").strip() for index, row in zip(indices, rows, strict=True)}
    if any(groups.values()):
        of_each = [groups.get(index, "") for index in range(len(source))]
        relabelled = with_groups(relabelled, of_each, f"from {path.name}")
    return relabelled, np.array(indices)


def _finder(source: Source, path: Path) -> Callable[[str], int | None]:
    """Returns a function from a path in the list `path` to the image's index, None for no image."""
    by_name = {name: i for i, name in enumerate(source.identities)}
    by_stem = {os.path.splitext(name)[0]: i for name, i in by_name.items()}
    root = parse(source.spec).file.parent if is_list(source.spec) else Path(source.spec)

    @cache
    def by_target() -> dict[str, int]:
        return {os.path.realpath(root / name): i for name, i in by_name.items() if "\0" not in name}

    def find(listed: str) -> int | None:
        name = listed if listed in by_name else listed.replace("\\", "/")
        if name in by_name:
            return by_name[name]
        places = [base / name for base in (path.parent, Path.cwd())]
        for place in places:
            # First without following links: an image that is one is known by its own name.
            for resolves, each in ((False, Path(os.path.abspath(place))), (True, place)):
                if (found := _relative(each, root, resolves)) in by_name:
                    return by_name[found]
        if name in by_stem or "\0" in name or not root.is_dir():
            return by_stem.get(name)
        # The list may name what the source's links point to.
        targets = [by_target().get(os.path.realpath(place)) for place in places]
        return next((target for target in targets if target is not None), None)

    return find


def _relative(file: Path, root: Path, resolves: bool) -> str:
    """Returns the file's name within `root`, if `resolves` is set with links resolved. Returns "" if the
    file is not below `root` or its name is not possible."""
    try:
        # pathlib raises if a link points to itself.
        place = Path(os.path.realpath(file)) if resolves else file
    except ValueError:  # A null byte in the name.
        return ""
    return place.relative_to(root).as_posix() if place.is_relative_to(root) else ""
