"""Reads lists of labels: which image each row means, its label, whether it is learned from or tested on,
and how it came to be labelled.
"""

import json
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from clfew import console
from clfew.data.groups import with_groups
from clfew.data.layout import class_words, splits_in
from clfew.data.lists import ListFile, read_list
from clfew.data.named_images import finder
from clfew.data.source import Source
from clfew.data.splits import split_to_test
from clfew.errors import UserError
from clfew.runs.folders import read_config

FIRST_RULE = 7
"""The rule of sources (see `source.RULE`) from which on a list says by its column `split` which rows are
tested on, and may have rows without a label."""

_DRAWING = ("select", "label")
"""The commands whose runs have a list and draw a test sample."""

LISTED, CHOSEN, RANDOM = "listed", "chosen", "random"
"""How a label came about of which a list says nothing, of an image that was chosen in whatever way
(`chosen (herding)` and the like), and of one that was drawn at random."""


@dataclass(frozen=True)
class LabelRow:
    """What a list says of an image.

    index: of the image in the source. label: "" for none yet. split: "train", "val" or "test". order:
    its number in the order in which images are to be labelled, None where the list has none. how: how
    the image was chosen, such as "random" or "chosen (herding)". group: "" for none.
    """

    index: int
    label: str
    split: str
    order: int | None
    how: str
    group: str


@dataclass(frozen=True)
class LabelList:
    """The rows of a list of labels, in its order. reading: which columns were taken, in words; "" where
    these are their names."""

    file: Path
    rows: list[LabelRow]
    reading: str

    @cached_property
    def tested_split(self) -> str | None:
        """The split that is tested on: "test", or "val" where no row has test; None where no row has
        either."""
        splits = {row.split for row in self.rows}
        return next((split for split in ("test", "val") if split in splits), None)

    @cached_property
    def to_test(self) -> list[LabelRow]:
        """The rows of the test sample, labelled or not: they are never learned from."""
        return [row for row in self.rows if row.split == self.tested_split]

    @cached_property
    def to_learn(self) -> list[LabelRow]:
        """The other rows, labelled or not."""
        return [row for row in self.rows if row.split != self.tested_split]

    @cached_property
    def learned(self) -> np.ndarray:
        """The indices of the images that are learned from: int64, in the list's order."""
        return np.array([row.index for row in self.to_learn if row.label], dtype=np.int64)

    @cached_property
    def held_out(self) -> np.ndarray:
        """The indices of all images of the test sample: int64, sorted."""
        return np.array(sorted(row.index for row in self.to_test), dtype=np.int64)


def counts_of(hows: list[str]) -> dict[str, int]:
    """Returns how many labels came about in each way, "chosen" for every way of choosing."""
    return dict(sorted(Counter(how.split(" (")[0] for how in hows).items()))


def group_cells(source: Source, rows: list[LabelRow]) -> list[str]:
    """Returns for each row of a list what its column `group` says: the name that it has, else that of
    another row of the group, else the group's first image; "" for an image that is alone. With it, a
    list keeps together what was grouped by --group-by, wherever it lies."""
    if source.groups is None:
        return [row.group for row in rows]
    groups, first = np.unique(source.groups, return_index=True)
    names = {int(group): source.identities[i] for group, i in zip(groups, first, strict=True)}
    names |= {int(source.groups[row.index]): row.group for row in rows if row.group}
    names[-1] = ""
    return [row.group or names[int(source.groups[row.index])] for row in rows]


def label_list_of(finetuned: dict[str, Any]) -> ListFile:
    """Returns the list of labels that an artifact's metadata name."""
    return ListFile(Path(finetuned["label_file"] or ""), *finetuned.get("label_columns", (None, None)))


def read_label_list(source: Source, named: ListFile) -> LabelList:
    """Reads a list of labels of images of `source`.

    A path in the list is an image's name within the source, or a file (relative to the list or to the
    working folder) that the source holds. Labels may be missing. For a source of a rule before
    FIRST_RULE all rows are learned from, and have to be labelled. Raises UserError for a row that names
    no image of the source or one that another row names, a split that is unknown, a list without a
    column of labels, and one whose rows to learn from are in the test sample of the `select` or `label`
    run in whose folder it lies.
    """
    path, follows_splits = named.file, source.rule >= FIRST_RULE
    read = read_list(named, ("order", "how") if follows_splits else ())
    if "label" not in read.rows[0]:
        raise UserError(
            f"{path} has no column 'label'.",
            "the first line must be path,label, or name the column: --label-column NAME",
        )
    empty = [row["path"] for row in read.rows if not row["label"].strip()]
    if empty and not follows_splits:
        raise UserError(f"{path} has an empty label for {empty[0]}.", "remove the line or fill it in.")
    splits = ["train"] * len(read.rows)
    if follows_splits:
        splits = splits_in(path, [row.get("split", "") for row in read.rows])
    # Spaces are only removed from a name that is no class yet, as a folder's name may begin or end with
    # one.
    existing, indices = set(source.classes), _indices(source, path, [row["path"] for row in read.rows])
    rows = [
        LabelRow(
            index,
            row["label"] if row["label"] in existing else row["label"].strip(),
            split,
            _integer(row.get("order", "")),
            row.get("how", "").strip() or LISTED,
            row.get("group", "").strip(),
        )
        for index, row, split in zip(indices, read.rows, splits, strict=True)
    ]
    found = LabelList(path, rows, read.reading)
    if follows_splits:
        _check_test_sample(source, found, has_splits="split" in read.rows[0])
    return found


def _integer(cell: str) -> int | None:
    """Returns the number in a cell, None where there is none: a spreadsheet may write 3 as 3.0."""
    try:
        number = int(float(cell))
    except (ValueError, OverflowError):
        return None
    return number if 0 < number < 10**9 else None


def _indices(source: Source, path: Path, names: list[str]) -> list[int]:
    """Returns the index of the image that each row of the list `path` means. Raises UserError if there
    is none, or if two rows mean one."""
    find = finder(source, path)
    found = [find(name) for name in names]
    missing = [name for name, index in zip(names, found, strict=True) if index is None]
    if missing:
        of = f", the first of {len(missing):,} rows" if len(missing) > 1 else ""
        hint = "paths are relative to that folder (or to the CSV); is it the right source?"
        if len(missing) < len(names):
            hint = "have images been removed? Then remove these rows; else is it the right source?"
        raise UserError(
            f"{path} names {missing[0]}{of}, which is not among the images of {source.spec}.", hint
        )
    indices = [index for index in found if index is not None]
    commonest, times = Counter(indices).most_common(1)[0]
    if times > 1:
        raise UserError(
            f"{path} names {source.identities[commonest]} more than once, by different paths.",
            "give each image one line: an image has one label.",
        )
    return indices


def run_of_list(file: Path) -> dict[str, Any]:
    """Returns the configuration of the `select`, `label` or `finetune` run in whose folder a list lies,
    {} for none."""
    config = read_config(file.parent)
    return config if config.get("command") in (*_DRAWING, "finetune") else {}


def say_list(listed: LabelList) -> None:
    """Reports which rows of a list are skipped, and what its test sample is worth."""
    rows, tested = len(listed.to_learn), len(listed.to_test)
    if len(listed.learned) < rows:
        console.say(
            f"labels     {len(listed.learned):,} of the {rows:,} rows of {listed.file.name} to learn "
            "from have a label, the others are skipped"
        )
    validated = sum(row.split == "val" for row in listed.to_learn)
    if tested and validated:
        console.say(
            f"note       the {validated:,} rows of the split val are learned from: those of test are "
            "tested on"
        )
    labelled = sum(bool(row.label) for row in listed.to_test)
    if tested and not labelled:
        console.say(
            f"note       none of the {tested:,} images of the test sample has a label: there is no "
            "accuracy"
        )
    elif labelled < tested:
        console.say(
            f"note       {labelled:,} of the {tested:,} images of the test sample have a label: those "
            "that were left out may be the hard ones"
        )
    if chosen := counts_of([row.how for row in listed.to_test]).get(CHOSEN):
        console.say(
            f"note       {chosen:,} of the {tested:,} rows to test on were chosen, not drawn at random: "
            "chosen images are no fair test"
        )


def _check_test_sample(source: Source, found: LabelList, has_splits: bool) -> None:
    """Raises UserError if a list would learn from images of the test sample of the run in whose folder
    it lies, or lacks some of them: a table of which one column was sorted alone names other
    images, and of a sample without what was hard to label nothing follows."""
    command = run_of_list(found.file).get("command")
    if command not in _DRAWING:
        return
    try:
        kept = json.loads((found.file.parent / f"{command}.json").read_text(encoding="utf-8"))
        sample = set(kept.get("test") or [])
    except (OSError, ValueError, AttributeError, TypeError):
        return
    wrong = [n for row in found.to_learn if (n := source.identities[row.index]) in sample]
    if wrong:
        again = f"({command}.json lists them), or move the list to another folder to use all labels."
        raise UserError(
            f"{found.file} lists {wrong[0]} to learn from, which is one of "
            f"{console.plural(len(wrong), 'image')} there of the test sample that was drawn.",
            f"was one column sorted alone? Give these rows the split test again {again}"
            if has_splits
            else f"the column split has been lost: add it again, with test for these rows {again}",
        )
    lacking = sample.intersection(source.identities)
    lacking -= {source.identities[row.index] for row in found.to_test}
    if lacking:
        raise UserError(
            f"{found.file} lacks {min(lacking)}, the first of {console.plural(len(lacking), 'image')} "
            "of the test sample that was drawn.",
            f"add their rows again, with the split test ({command}.json lists them): their labels may "
            "stay empty. Or move the list to another folder.",
        )


def apply_label_csv(source: Source, named: ListFile) -> tuple[Source, np.ndarray]:
    """Gives images of `source` the labels in a list (see `read_label_list` and `labelled_by`). Returns
    the new source and the indices of the images to learn from, in the list's order. Raises
    UserError."""
    listed = read_label_list(source, named)
    return labelled_by(source, listed), listed.learned


def labelled_by(source: Source, listed: LabelList) -> Source:
    """Returns the source with the labels, test sample and groups of a list.

    The source keeps its labels of other images if all classes in the list are among its own, and loses
    them otherwise. The rows to test on become its test split. If there are any, the images of the test
    split that it has itself stay in it, and those that are not in the list lose their labels: they are
    neither learned from nor tested on. Raises UserError if no row to learn from has a label.
    """
    if not len(listed.learned):
        raise UserError(
            f"None of the {console.plural(len(listed.to_learn), 'row')} of {listed.file} to learn from "
            "has a label.",
            "fill in the column label of some rows, of two classes at least.",
        )
    labelled = [row for row in listed.rows if row.label]
    indices, names = [row.index for row in labelled], [row.label for row in labelled]
    known = source.classes if set(names) <= set(source.classes) else sorted(set(names))
    labels = source.labels.copy() if known is source.classes else np.full(len(source), -1)
    class_index = {name: index for index, name in enumerate(known)}
    splits = source.splits
    if len(listed.held_out):
        own = split_to_test(source)
        is_test = np.zeros(len(source), bool) if own is None else splits == own
        is_test[listed.held_out] = True
        labels[is_test] = -1
        splits = np.where(is_test, "test", splits)
    labels[indices] = [class_index[name] for name in names]
    relabelled = replace(
        source.relabelled(labels, list(known)),
        splits=splits,
        reading=_reading(source, listed, names, known is source.classes),
    )
    return with_groups_of(relabelled, listed)


def with_groups_of(source: Source, listed: LabelList) -> Source:
    """Returns the source with the groups that a list names."""
    groups = {row.index: row.group for row in listed.rows}
    if not any(groups.values()):
        return source
    of_each = [groups.get(index, "") for index in range(len(source))]
    return with_groups(source, of_each, f"from {listed.file.name}")


def _reading(source: Source, listed: LabelList, names: list[str], keeps_labels: bool) -> str:
    """Returns how a source was understood with the labels of a list, in words."""
    columns = f" ({listed.reading})" if listed.reading else ""
    words = f"{console.plural(len(listed.learned), 'label')} from {listed.file.name}{columns}"
    if listed.to_test:
        words += f" and {len(names) - len(listed.learned):,} to test on"
    if keeps_labels:
        return f"{source.reading}; {words}"
    # The labels that the source had are not used.
    return f"{len(source):,} images; {words}: {class_words(Counter(names))}"
