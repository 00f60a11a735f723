"""Where images come from: a folder, a CSV, or a data set read through Hugging Face `datasets`.

A source lists its images without decoding them. Labels and splits are there where the data has
them; pretraining does not look at the labels.
"""

import csv
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from clfew.data.decode import EXTENSIONS, read_bytes
from clfew.data.files import walk_images
from clfew.errors import UserError
from clfew.files import unguarded

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LABELLED_FOLDERS = ("labeled", "labelled")
"""Where labelled images are looked for when no source is named."""

CSV_COLUMNS = ("path", "label", "split")


@dataclass(frozen=True)
class Source:
    """N images, by reference.

    spec: as the user named it, made absolute. identities: each image's name within the source.
    labels: int64 (N,), an index into `classes`, -1 where there is none. splits: "train", "val" or
    "test" for each image. content: reads the encoded bytes of image i. fingerprint: changes when
    an image is added, removed or changed. ignored: files passed over because they are no images.
    """

    spec: str
    identities: list[str]
    labels: np.ndarray
    classes: list[str]
    splits: np.ndarray
    content: Callable[[int], bytes]
    fingerprint: str
    ignored: int = 0

    def __len__(self) -> int:
        return len(self.identities)

    def digest(self) -> str:
        """As `fingerprint`, and changes with the labels and the splits too."""
        digest = hashlib.blake2b(self.fingerprint.encode(), digest_size=16)
        digest.update("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        digest.update(self.labels.tobytes())
        digest.update("\0".join(self.splits.tolist()).encode())
        return digest.hexdigest()

    @property
    def is_labelled(self) -> bool:
        return bool((self.labels >= 0).any())

    def relabelled(self, labels: np.ndarray, classes: list[str]) -> "Source":
        return replace(self, labels=labels, classes=classes)


def open_source(spec: str) -> Source:
    """The source a user named: a folder, a .csv file, or hf:NAME.

    Raises UserError where there is nothing by that name or no image in it.
    """
    if spec.startswith("hf:"):
        from clfew.data.huggingface import open_dataset

        return open_dataset(spec)
    path = Path(os.path.expanduser(spec))  # Unlike pathlib, it takes a ~ that names nobody.
    if path.is_dir():
        return _open_folder(path)
    if path.is_file() and path.suffix.lower() == ".csv":
        return _open_csv(path)
    if path.is_file():
        raise UserError(
            f"{spec} is a file, but a folder of images is needed.",
            "name a folder, a .csv file with the columns path and label, or hf:NAME.",
        )
    raise UserError(f"There is no folder or file {spec}.", "check the spelling, or give the full path.")


def _open_folder(folder: Path) -> Source:
    images, others = walk_images(folder)
    if not images:
        found = f"only {others} other files" if others else "it is empty"
        raise UserError(
            f"There are no images in {folder} ({found}).",
            f"clfew reads {', '.join(sorted(e[1:] for e in EXTENSIONS))} files, in subfolders too.",
        )
    # Split again for each use, and class names once each: of millions of names the parts take gigabytes.
    has_splits = any(p[0] in ("train", "test") and len(p) > 1 for p in map(_parts, images))
    splits, class_names = [], []
    for p in map(_parts, images):
        in_split = has_splits and p[0] in SPLITS and len(p) > 1
        splits.append(SPLITS[p[0]] if in_split else "train")
        below = p[1:] if in_split else p
        # Where the data has splits, folders beside them (unlabeled/, extra/) are no classes.
        is_below = len(below) > 1 and (in_split or not has_splits)
        class_names.append(sys.intern(below[0]) if is_below else "")
    # A first-level folder is a class where it holds images itself, not only folders of images.
    direct = {
        name
        for p, name in zip(map(_parts, images), class_names, strict=True)
        if name and len(p) == (3 if has_splits else 2)
    }
    class_names = [name if name in direct else "" for name in class_names]
    labels, classes = _encode_labels(class_names)
    return Source(
        spec=str(folder.resolve()),
        identities=images,
        labels=labels,
        classes=classes,
        splits=np.array(splits),
        content=lambda i: read_bytes(folder / images[i]),
        fingerprint=_fingerprint((name, os.path.join(folder, name)) for name in images),
        ignored=others,
    )


def _parts(name: str) -> list[str]:
    return name.split("/")


def read_label_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV with the column `path` and, if there, `label` and `split`; cells `unguarded`.

    Raises UserError for other columns, empty paths and paths that come twice.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            numbered = [(reader.line_num, dict(row)) for row in reader]
    except (OSError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV: {error}.", "save it as UTF-8 CSV.") from None
    unknown = [name for name in columns if name not in CSV_COLUMNS]
    doubled = [name for name in CSV_COLUMNS if columns.count(name) > 1]
    if "path" not in columns or unknown or doubled:
        problem = f"the column '{doubled[0]}' more than once" if doubled else "no column 'path'"
        problem = f"unknown column '{unknown[0]}'" if unknown else problem
        raise UserError(
            f"{path} has {problem} (its first line is: {', '.join(columns) or 'empty'}).",
            "the first line must be path,label (and split, if the file names train, val and test).",
        )
    for number, row in numbered:
        if None in row or None in row.values():
            raise UserError(
                f"Line {number} of {path} has not as many fields as the first line.",
                'put names that contain commas in "quotes".',
            )
        if not row["path"].strip():
            raise UserError(f"Line {number} of {path} names no image.", "fill in its path or remove it.")
    rows = [{name: unguarded(cell) for name, cell in row.items()} for _, row in numbered]
    twice = [name for name, count in Counter(row["path"] for row in rows).items() if count > 1]
    if twice:
        raise UserError(
            f"{path} names {twice[0]} more than once ({len(twice)} such paths).",
            "give each image one line: an image has one label.",
        )
    if not rows:
        raise UserError(f"{path} has no rows.", "write one line for each image: path,label.")
    return rows


def _open_csv(path: Path) -> Source:
    rows = read_label_csv(path)
    folder = path.parent
    names = [row["path"] for row in rows]
    files = [folder / name for name in names]  # An absolute name stays as it is.
    # os.path, which unlike pathlib answers no to a name that is too long.
    missing = [name for name, file in zip(names, files, strict=True) if not os.path.isfile(file)]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(rows)} images in {path} do not exist, first {missing[0]}.",
            f"paths are relative to the CSV's own folder, {folder.resolve()}.",
        )
    given = [row.get("split", "") or "train" for row in rows]
    unknown = [split for split in given if split.lower() not in SPLITS]
    if unknown:
        raise UserError(
            f"{path} has the split '{unknown[0]}'.", "the column split holds train, val or test."
        )
    labels, classes = _encode_labels([row.get("label", "").strip() for row in rows])
    return Source(
        spec=str(path.resolve()),
        identities=names,
        labels=labels,
        classes=classes,
        splits=np.array([SPLITS[split.lower()] for split in given]),
        content=lambda i: read_bytes(files[i]),
        # With the splits: moving an image to the test split must not go unnoticed.
        fingerprint=_fingerprint(
            (f"{split} {name}", file) for split, name, file in zip(given, names, files, strict=True)
        ),
    )


def _encode_labels(names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Class names to indices; the empty name is no label."""
    classes = sorted({name for name in names if name})
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index.get(name, -1) for name in names], dtype=np.int64), classes


def _fingerprint(files: Iterable[tuple[str, str | Path]]) -> str:
    """A digest of names, sizes and modification times; one file at a time, however many there are."""
    digest = hashlib.blake2b(digest_size=16)
    for name, file in files:
        try:
            status = os.stat(file)
            stamp = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:
            stamp = "unreadable"
        digest.update(f"{name}\0{stamp}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
