"""What a source holds, wherever its files lie and whatever their times are.

The names, sizes and times of files are the quick test of whether a source is still what it was. Where
that fails, because a disk was mounted elsewhere or a folder was cloned anew, the bytes decide.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from clfew import console
from clfew.data.cache_folder import ImageCache
from clfew.data.cache_reuse import digest_of_image, read_digests
from clfew.data.source import Source
from clfew.runs.folders import check_unchanged


def content_of(source: Source, cache: ImageCache) -> str:
    """Returns a digest of the names, labels, splits and bytes of all images of a source."""
    digests = cache.digests.astype(np.uint64).copy()
    for index in np.setdiff1d(np.arange(len(source)), cache.good).tolist():
        digests[index] = digest_of_image(source, index)  # What cannot be decoded has bytes, too.
    return _of(source, digests)


def read_content(source: Source) -> str:
    """Returns what `content_of` does, by reading every file."""
    with console.progress_bar("comparing") as update:
        return _of(source, read_digests(source, update))


def check_content(folder: Path, config: dict[str, Any], source: Source) -> None:
    """Raises UserError if a run's images are not those it was started with. config: of the run, with
    `digest` (see `Source.digest`) and, in newer runs, `content`."""
    if config.get("digest") == source.digest():
        return
    if config.get("content") and read_content(source) == config["content"]:
        console.say(
            f"note       the images in {source.spec} are the same, elsewhere or with other times"
        )
        return
    check_unchanged(folder, config, source.digest())


def holds_the_same(source: Source, content: str | None) -> bool:
    """Returns whether a source has the images, under the names, that another one had (see
    `content_of`), whatever their labels. Files are read only where the names agree."""
    names, _, images = (content or "").partition("-")
    if not content or names != _digest_of(source.identities):
        return False
    return read_content(source).split("-")[1] == images.split("-")[0]


def same_images(one: str | None, other: str | None) -> bool:
    """Returns whether two sources had the same images under the same names (see `content_of`)."""
    return bool(one and other) and str(one).split("-")[:2] == str(other).split("-")[:2]


def _of(source: Source, digests: np.ndarray) -> str:
    """Returns digests of the names, the bytes, and the labels and splits."""
    images = hashlib.blake2b(digests.astype("<u8").tobytes(), digest_size=12).hexdigest()
    labels = [str(label) for label in source.labels.tolist()]
    groups = [] if source.groups is None else [str(group) for group in source.groups.tolist()]
    meaning = _digest_of([*source.classes, "", *source.splits.tolist(), "", *labels, "", *groups])
    return f"{_digest_of(source.identities)}-{images}-{meaning}"


def _digest_of(texts: list[str]) -> str:
    joined = "\0".join(texts).encode("utf-8", "surrogateescape")
    return hashlib.blake2b(joined, digest_size=12).hexdigest()
