"""The rows of to_label.csv: those of the list so far, as they were, and new ones."""

from dataclasses import replace

import numpy as np

from clfew.data.label_lists import LISTED, LabelList, LabelRow, group_cells
from clfew.data.lists import is_list
from clfew.data.source import Source

HEADER = ("path", "label", "split", "order", "how")

Cells = tuple[str | int, ...]


def rows_so_far(source: Source, listed: LabelList | None) -> list[LabelRow]:
    """Returns the rows of the list so far. Of a source that is itself a list, of which some images have
    a label and others have none, those that have one come after them."""
    rows = [] if listed is None else list(listed.rows)
    if not has_some_labels(source):
        return rows
    named = {row.index for row in rows}
    known = np.flatnonzero((source.labels >= 0) & (source.splits == "train")).tolist()
    return rows + [
        LabelRow(i, source.classes[source.labels[i]], "train", None, LISTED, "")
        for i in known
        if i not in named
    ]


def has_some_labels(source: Source) -> bool:
    """Returns whether a source is a list or data set in which some images have a label and others have
    none: folders may be cameras or days."""
    is_told = is_list(source.spec) or source.spec.startswith("hf:")
    return is_told and source.is_labelled and bool((source.labels < 0).any())


def numbered(rows: list[LabelRow], new: list[LabelRow]) -> list[LabelRow]:
    """Returns all rows, the new ones last, with numbers for those that have none: they count on from the
    largest."""
    last = max((row.order for row in rows if row.order is not None), default=0)
    done = []
    for row in [*rows, *new]:
        if row.order is None:
            last += 1
        done.append(replace(row, order=last) if row.order is None else row)
    return done


def cells_of(source: Source, rows: list[LabelRow], is_grouped: bool) -> tuple[list[str], list[Cells]]:
    """Returns the header and the rows of the list. is_grouped: whether it tells groups: then it keeps
    them, wherever it is moved."""
    cells: list[Cells] = [
        (source.identities[row.index], row.label, row.split, row.order or 0, row.how) for row in rows
    ]
    if not is_grouped:
        return list(HEADER), cells
    groups = group_cells(source, rows)
    return [*HEADER, "group"], [(*cell, group) for cell, group in zip(cells, groups, strict=True)]
