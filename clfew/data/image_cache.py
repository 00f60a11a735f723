"""The image cache: every image of a source decoded once, in one memory-mapped uint8 array.

It is a folder in the cache folder, named by a digest of what it was made from (see `cache_building`).
"""

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clfew import console
from clfew.data.cache_arrays import cache_folder, map_arrays
from clfew.data.cache_building import build, require_usable
from clfew.data.cache_reuse import reuse
from clfew.data.decode import BadImage, image_size
from clfew.data.source import Source
from clfew.data.splits import evenly_spaced
from clfew.errors import UserError
from clfew.group.launch import launch

FORMAT = 3
MAX_BAD_FRACTION = 0.5
"""If a larger fraction of a source's images is bad, the run stops: something else is wrong."""


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


def typical_side(source: Source, sample: int = 64) -> int:
    """Returns the median of the shorter sides, in pixels, of at most `sample` images spread evenly over
    the source. Raises UserError if none of them can be read."""
    sides = []
    for index in evenly_spaced(np.arange(len(source)), sample):
        try:
            shape = image_size(source.content(int(index)))
        except BadImage:
            continue
        if shape is not None:
            sides.append(min(shape))
    if not sides:
        raise UserError(
            f"None of the images in {source.spec} that were tried can be read.",
            "open one in an image viewer: they may be damaged or of another format.",
        )
    return int(np.median(sides))


def open_image_cache(
    source: Source,
    side: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    most_bad: float = MAX_BAD_FRACTION,
) -> ImageCache:
    """Returns the image cache of `source` at side×side pixels, which is built on all cores if it is new.

    `progress(done, total)` is called while it is built. most_bad: the fraction of bad images beyond
    which a UserError is raised; as it is if the disk is full, or the cache is damaged.
    """
    if launch() is not None:
        from clfew.data.shared_cache import open_together
        from clfew.group.group import is_together

        if is_together():
            return open_together(source, side, progress, most_bad)
    folder = folder_of(source, side)
    if not is_there(source, side, folder, progress):
        build(source, side, folder, progress, most_bad)
    cache = read_cache(folder, len(source), side)
    require_usable(source, cache.bad, most_bad)
    return cache


def folder_of(source: Source, side: int) -> Path:
    """Returns the folder that the image cache of a source is in, or will be."""
    made_from = f"{FORMAT}\0{source.spec}\0{source.fingerprint}\0{side}\0{source.scale}"
    key = hashlib.blake2b(made_from.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    return cache_folder() / key


def is_there(source: Source, side: int, folder: Path, progress: Callable[[int, int], None]) -> bool:
    """Returns whether an image cache is there, made from another one of the same images if need be."""
    return (folder / "store.json").exists() or reuse(source, side, folder, progress)


MOST_LOOKED_AT = 500
"""The most images that are looked at for flat colours."""

FLAT = 1.0
"""The standard deviation, in grey levels, below which an image is of one colour."""

MANY_FLAT = 0.05
"""The fraction of flat images above which they are reported."""


def cached_images(source: Source, side: int, most_bad: float = MAX_BAD_FRACTION) -> ImageCache:
    """`open_image_cache` with a progress bar while it is built and a message about bad images."""
    with console.progress_bar("decoding") as update:
        cache = open_image_cache(source, side, update, most_bad)
    if cache.bad:
        name, reason = cache.bad[0]
        console.say(
            f"skipped    {len(cache.bad)} of {len(source)} images, which cannot be used "
            f"(the first is {console.printable(name)}: {reason}); the run's bad_images.csv lists them"
        )
    _say_flat(source, cache)
    return cache


def is_flat(pixels: np.ndarray) -> bool:
    """Returns whether an image, uint8 (S, S, 3), is of one colour."""
    return bool(pixels.std(axis=(0, 1)).max() < FLAT)


def _say_flat(source: Source, cache: ImageCache) -> None:
    """Reports if many of the readable images are of one flat colour, whatever the reason is."""
    looked = evenly_spaced(cache.good, MOST_LOOKED_AT)
    flat = [int(i) for i in looked if is_flat(cache.pixels[i])]
    if len(flat) > len(looked) * MANY_FLAT:
        console.say(
            f"note       {len(flat)} of {len(looked)} images looked at are of one flat colour, such as "
            f"{console.printable(source.identities[flat[0]])}: nothing can be learned from them"
        )


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
