"""The folder of one image cache: where it is, and what is read from it."""

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clfew.data.cache_arrays import cache_folder, map_arrays
from clfew.data.cache_reuse import reuse
from clfew.data.source import Source
from clfew.errors import UserError

FORMAT = 3


@dataclass(frozen=True)
class ImageCache:
    """The decoded images of a source of N images, at their indices in the source.

    good: int64, the indices of the images that were decoded. pixels: uint8 (N, S, S, 3), memory-mapped.
    aspects: float32 (N,), width / height of each original. digests: uint64 (N,), of each file's
    bytes. bad: (identity, reason) of each image that could not be used.
    """

    good: np.ndarray
    pixels: np.ndarray
    aspects: np.ndarray
    digests: np.ndarray
    bad: list[tuple[str, str]]

    def part(self, start: int, end: int) -> "ImageCache":
        """Returns the cache of the images from `start` to `end` alone."""
        good = self.good[(self.good >= start) & (self.good < end)] - start
        rows = slice(start, end)
        return ImageCache(good, self.pixels[rows], self.aspects[rows], self.digests[rows], [])

    @property
    def side(self) -> int:
        return self.pixels.shape[1]


def folder_of(source: Source, side: int) -> Path:
    """Returns the folder that the image cache of a source is in, or will be."""
    made_from = f"{FORMAT}\0{source.spec}\0{source.fingerprint}\0{side}\0{source.scale}"
    key = hashlib.blake2b(made_from.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    return cache_folder() / key


def is_there(source: Source, side: int, folder: Path, progress: Callable[[int, int], None]) -> bool:
    """Returns whether an image cache is there, made from another one of the same images if need be."""
    return (folder / "store.json").exists() or reuse(source, side, folder, progress)


def read_cache(folder: Path, count: int, side: int) -> ImageCache:
    """Returns the image cache in a folder. Raises UserError if it is damaged."""
    try:
        metadata = json.loads((folder / "store.json").read_text())
        listed = [(int(index), str(name), str(reason)) for index, name, reason in metadata["bad"]]
        pixels, aspects, digests = map_arrays(folder / "pixels.safetensors", count, side, "r")
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise UserError(
            f"The image cache {folder} is damaged ({error}).", "clear it with: clfew cache --clear"
        ) from None
    with contextlib.suppress(OSError):  # Another user's cache can still be read.
        os.utime(folder)  # The last use, which `clfew cache` shows.
    good = np.ones(count, dtype=bool)
    good[[index for index, _, _ in listed]] = False
    bad = [(identity, reason) for _, identity, reason in listed]
    return ImageCache(np.flatnonzero(good), pixels, np.asarray(aspects), np.asarray(digests), bad)
