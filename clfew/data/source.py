"""A source: references to images, with the labels and splits that the data has."""

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True)
class Source:
    """References to N images.

    spec: the name that the user gave, made absolute. identities: each image's name within the source.
    labels: int64 (N,), an index into `classes`, or -1 for no label. splits: "train", "val" or "test"
    for each image. content: reads the encoded bytes of image i. fingerprint: a digest that changes when
    an image is added, removed or changed. ignored: number of files that are not images.
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
        """Returns a digest that changes with the fingerprint and also with the labels and splits."""
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
