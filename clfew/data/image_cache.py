"""The image cache: every image of a source decoded once, in one memory-mapped uint8 array.

It is a folder in the cache folder, named by a digest of what it was made from. It is built in a folder
beside that and then renamed, so a half-built one is never found. Two processes that build it at once
each make their own, and the second one's is thrown away.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clfew import console
from clfew.data.cache_arrays import cache_folder, create_arrays, map_arrays, reserve
from clfew.data.cache_reuse import digest_of_image, reuse, temporary_prefix
from clfew.data.decode import BadImage, image_size
from clfew.data.source import Source
from clfew.data.splits import evenly_spaced
from clfew.data.workers import decode_ahead, decoders
from clfew.errors import UserError
from clfew.runs.files import write_json

FORMAT = 3
_CHUNK = 256
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
    made_from = f"{FORMAT}\0{source.spec}\0{source.fingerprint}\0{side}\0{source.scale}"
    key = hashlib.blake2b(made_from.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    folder = cache_folder() / key
    if not (folder / "store.json").exists() and not reuse(source, side, folder, progress):
        _build(source, side, folder, progress, most_bad)
    cache = _read(folder, len(source), side)
    _require_usable(source, cache.bad, most_bad)
    return cache


def _require_usable(source: Source, bad: list[tuple[str, str]], most_bad: float) -> None:
    if len(bad) > most_bad * len(source):
        name, reason = bad[0]
        raise UserError(
            f"{len(bad)} of {len(source)} images in {source.spec} cannot be used "
            f"(the first is {name}: {reason}).",
            "open one in an image viewer: they may be damaged or of another format.",
        )


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


def _build(
    source: Source, side: int, folder: Path, progress: Callable[[int, int], None], most_bad: float
) -> None:
    count = len(source)
    needed = count * side * side * 3
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        if needed > (free := shutil.disk_usage(folder.parent).free):
            raise UserError(
                f"The decoded images need {needed:,} bytes in {folder.parent}; {free:,} are free.",
                "clear old ones with clfew cache --clear, or set CLFEW_CACHE to a larger disk.",
            )
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=temporary_prefix()))
        bad = _decode_all(source, side, temporary / "pixels.safetensors", progress)
        _require_usable(source, [(source.identities[i], bad[i]) for i in sorted(bad)], most_bad)
        listed = [[i, source.identities[i], reason] for i, reason in sorted(bad.items())]
        metadata = {"source": source.spec, "images": count, "side": side, "bad": listed}
        metadata["scale"] = str(source.scale)
        metadata["bad_digests"] = [digest_of_image(source, index) for index in sorted(bad)]
        write_json(temporary / "store.json", metadata)
        if not (folder / "store.json").exists():
            shutil.rmtree(folder, ignore_errors=True)  # Left by a removal that was killed.
        try:
            os.rename(temporary, folder)
        except OSError:
            if not (folder / "store.json").exists():  # If it does, another process was first.
                raise
    except OSError as error:
        raise UserError(
            f"The decoded images ({needed:,} bytes) cannot be saved in {folder.parent}: "
            f"{error.strerror or error}.",
            "set CLFEW_CACHE to a folder that can be written and has space.",
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _decode_all(
    source: Source, side: int, path: Path, progress: Callable[[int, int], None]
) -> dict[int, str]:
    """Decodes all images into the array file. Returns the reason for each bad image by its index."""
    count = len(source)
    pixels, aspects, digests = create_arrays(path, count, side)
    reserve(path)
    bad: dict[int, str] = {}

    for index, image in decode_ahead(range(count), source.content, side, decoders(), source.scale):
        if index % _CHUNK == 0:
            progress(index, count)
        if isinstance(image, BadImage):
            bad[index] = str(image)
        else:
            pixels[index], aspects[index], digests[index] = image.pixels, image.aspect, image.digest
    progress(count, count)
    for array in (pixels, aspects, digests):
        array.flush()
    return bad


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


def _read(folder: Path, count: int, side: int) -> ImageCache:
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


def _sweep(cache: Path) -> None:
    """Removes what builds on this machine left behind when they were killed."""
    for leftover in cache.glob(".*-*-*"):
        # The whole name of the machine: on a shared disk, one called gpu is not one called gpu-2.
        host, pid, _ = leftover.name.rsplit("-", 2)
        if host == f".{socket.gethostname()}" and pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
