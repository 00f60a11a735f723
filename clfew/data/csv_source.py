"""Opens a CSV as a source: it has the column `path` and, optionally, `label` and `split`."""

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np

from clfew.data.decode import read_bytes
from clfew.data.source import SPLITS, Source, encode_labels, fingerprint_of
from clfew.errors import UserError
from clfew.runs.files import unguarded

CSV_COLUMNS = ("path", "label", "split")


def read_label_csv(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a CSV with the column `path` and, optionally, `label` and `split`.

    Cells are returned as they were before `guarded`. Raises UserError for other columns, empty paths,
    paths that come twice, and a file that has no rows or cannot be read as CSV.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            numbered = [(reader.line_num, dict(row)) for row in reader]
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV: {error}.", "save it as UTF-8 CSV.") from None
    unknown = [name for name in columns if name not in CSV_COLUMNS]
    repeated = [name for name in CSV_COLUMNS if columns.count(name) > 1]
    if "path" not in columns or unknown or repeated:
        problem = f"the column '{repeated[0]}' more than once" if repeated else "no column 'path'"
        problem = f"an unknown column '{unknown[0]}'" if unknown else problem
        raise UserError(
            f"{path} has {problem} (its first line is: {', '.join(columns) or 'empty'}).",
            "the first line must be path,label (and split, if the file names train, val and test).",
        )
    for number, row in numbered:
        if None in row or None in row.values():
            raise UserError(
                f"Line {number} of {path} does not have as many fields as the first line.",
                'put names that contain commas in "quotes".',
            )
        if not row["path"].strip():
            raise UserError(f"Line {number} of {path} names no image.", "fill in its path or remove it.")
    rows = [{name: unguarded(cell) for name, cell in row.items()} for _, row in numbered]
    duplicates = [name for name, count in Counter(row["path"] for row in rows).items() if count > 1]
    if duplicates:
        raise UserError(
            f"{path} names {duplicates[0]} more than once ({len(duplicates)} such paths).",
            "give each image one line: an image has one label.",
        )
    if not rows:
        raise UserError(f"{path} has no rows.", "write one line for each image: path,label.")
    return rows


def open_csv(path: Path) -> Source:
    """Opens a CSV of images. Raises UserError as `read_label_csv` does, and if an image does
    not exist or a split is unknown."""
    rows = read_label_csv(path)
    folder = path.parent
    names = [row["path"] for row in rows]
    files = [folder / name for name in names]  # An absolute name stays as it is.
    # os.path.isfile returns False for a name that is too long; pathlib raises.
    missing = [name for name, file in zip(names, files, strict=True) if not os.path.isfile(file)]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(rows)} images in {path} do not exist (first: {missing[0]}).",
            f"paths are relative to the CSV's own folder, {folder.resolve()}.",
        )
    split_names = [row.get("split", "") or "train" for row in rows]
    unknown = [split for split in split_names if split.lower() not in SPLITS]
    if unknown:
        raise UserError(
            f"{path} has the split '{unknown[0]}'.", "the column split must hold train, val or test."
        )
    labels, classes = encode_labels([row.get("label", "").strip() for row in rows])
    return Source(
        spec=str(path.resolve()),
        identities=names,
        labels=labels,
        classes=classes,
        splits=np.array([SPLITS[split.lower()] for split in split_names]),
        content=lambda i: read_bytes(files[i]),
        # It includes the splits: moving an image to the test split must change the fingerprint.
        fingerprint=fingerprint_of(
            (f"{split} {name}", file)
            for split, name, file in zip(split_names, names, files, strict=True)
        ),
    )
