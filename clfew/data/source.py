"""A source: references to images, with the labels and splits that the data has."""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from clfew.data.image_files import LeftOut
from clfew.data.pixel_scale import PixelScale

RULE = 7
"""The rule by which new runs read sources and split them. Runs and artifacts carry the number of
theirs, and keep it; those without a number have rule 1. Rule 1 kept the copies of test images in the
pool, except in distillation, and tested images that a label CSV had relabelled on the split that their
folders' labels give. Rules 1 and 2 read folders as `folder_source.read_before` does, knew fewer
words for splits and labels in data sets, and took images without labels for the test split. Rules
before 4 read wide pixels as whole 16 bits (see `find_scale`), and before 5 know no groups (see
`groups`). Rule 5 found fewer copies (see `near.RELATED_RULE`). Rules before 7 learn from all rows of a
list of labels, whatever its column `split` says, and know no row without a label (see
`label_lists.FIRST_RULE`)."""

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Source:
    """References to N images.

    spec: the name that the user gave, made absolute. identities: each image's name within the source.
    labels: int64 (N,), an index into `classes`, or -1 for no label. splits: "train", "val" or "test"
    for each image. content: reads the encoded bytes of image i. fingerprint: a digest that changes when
    an image is added, removed or changed. left_out: what lies beside the images and is not read.
    reading: how the source was understood, in words. rule: see RULE. scale: how wide pixels are read,
    None for whole 16 bits and the files' own colours. groups: int64 (N,), the group that the source or
    the user puts each image into, -1 for none; None where there are no groups.
    path_of: returns the absolute path of image i, None where images are not files of their own. parts:
    the sources whose images it has, one after the other, where it has those of several.
    """

    spec: str
    identities: list[str]
    labels: np.ndarray
    classes: list[str]
    splits: np.ndarray
    content: Callable[[int], bytes]
    fingerprint: str
    left_out: LeftOut = field(default_factory=LeftOut)
    reading: str = ""
    rule: int = RULE
    scale: PixelScale | None = None
    groups: np.ndarray | None = None
    path_of: Callable[[int], Path] | None = None
    parts: tuple["Source", ...] = ()

    def __len__(self) -> int:
        return len(self.identities)

    def digest(self) -> str:
        """Returns a digest that changes with the fingerprint and also with the labels and splits."""
        digest = hashlib.blake2b(self.fingerprint.encode(), digest_size=16)
        digest.update("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        digest.update(self.labels.tobytes())
        digest.update("\0".join(self.splits.tolist()).encode())
        if self.groups is not None and self.rule >= 5:
            digest.update(self.groups.astype("<i8").tobytes())
        return digest.hexdigest()

    def summary(self) -> str:
        """Returns in words how the source was understood and what is left out."""
        left_out = self.left_out.words()
        return "; ".join(filter(None, (self.reading, f"left out: {left_out}" if left_out else "")))

    @property
    def is_labelled(self) -> bool:
        return bool((self.labels >= 0).any())

    def relabelled(self, labels: np.ndarray, classes: list[str]) -> "Source":
        return replace(self, labels=labels, classes=classes)


def encode_labels(names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Returns the index of each class name, -1 for an empty one (no label), and the sorted classes."""
    classes = sorted({name for name in names if name})
    index = {name: i for i, name in enumerate(classes)}
    return np.array([index.get(name, -1) for name in names], dtype=np.int64), classes


def fingerprint_of(files: Iterable[tuple[str, str | Path]]) -> str:
    """Returns a digest of names, sizes and modification times. It takes one file at a time, however many
    there are."""
    digest = hashlib.blake2b(digest_size=16)
    for name, file in files:
        try:
            status = os.stat(file)
            stamp = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:
            stamp = "unreadable"
        digest.update(f"{name}\0{stamp}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
