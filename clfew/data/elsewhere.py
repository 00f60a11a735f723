"""The images of a source as another process finds them: on the same disk, or on a machine of its own,
where they may lie in another folder.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clfew.data.pixel_scale import PixelScale
from clfew.data.source import Source
from clfew.data.sources import open_source
from clfew.errors import UserError


@dataclass(frozen=True)
class Part:
    """A source that another process can recognise. spec, rule: see `Source`. count: of its images.
    names: a digest of their names. stamp: its fingerprint. sizes: a digest of the files' sizes, "" where
    they are no files. here: its path from the working folder, "" if it is not below that."""

    spec: str
    rule: int
    count: int
    names: str
    stamp: str
    sizes: str
    here: str


def described(source: Source) -> list[Part]:
    """Returns what tells another process which images a source has."""
    return [_part(each) for each in source.parts or (source,)]


def _part(source: Source) -> Part:
    names = "\0".join(source.identities).encode("utf-8", "surrogateescape")
    path, folder = Path(source.spec), Path.cwd()
    here = str(path.relative_to(folder)) if path.is_relative_to(folder) else ""
    digest = hashlib.blake2b(names, digest_size=12).hexdigest()
    stamp, sizes = source.fingerprint, _sizes(source)
    return Part(source.spec, source.rule, len(source), digest, stamp, sizes, here)


def _sizes(source: Source) -> str:
    if source.path_of is None:
        return ""
    digest = hashlib.blake2b(digest_size=12)
    for index in range(len(source)):
        with contextlib.suppress(OSError):
            digest.update(b"%d " % os.stat(source.path_of(index)).st_size)
    return digest.hexdigest()


def found_here(parts: list[Part], scale: PixelScale | None, named: str | None) -> Source:
    """Returns the images that another process describes, as this one finds them: in the place that its
    own command line names, in the same place, or in the same place below its working folder.

    named: what the command line names, None for nothing. Raises UserError if they are nowhere.
    """
    opened = [_found(part, named) for part in parts]
    starts = np.cumsum([0, *(len(each) for each in opened)])

    def content(index: int) -> bytes:
        number = int(np.searchsorted(starts, index, side="right")) - 1
        return opened[number].content(index - int(starts[number]))

    return Source(
        spec=" + ".join(each.spec for each in opened),
        identities=[name for each in opened for name in each.identities],
        labels=np.full(starts[-1], -1),
        classes=[],
        splits=np.full(starts[-1], "train"),
        content=content,
        fingerprint=" ".join(each.fingerprint for each in opened),
        rule=opened[0].rule,
        scale=scale,
    )


def _found(part: Part, named: str | None) -> Source:
    problem = ""
    for spec in _places(part, named):
        try:
            source = open_source(spec, part.rule)
        except UserError:
            problem = problem or "it is not there"
            continue
        own = _part(source)
        if own.stamp == part.stamp or (own.names == part.names and own.sizes == part.sizes):
            return source
        problem = f"{spec} holds other images there ({own.count:,}, not {part.count:,})"
        if own.count == part.count:
            problem = f"{spec} holds other images there"
    raise UserError(
        f"{part.spec} cannot be read as the first process reads it: {problem}.",
        "copy the images, with their names, to each machine; its command line may name another folder.",
    )


def _places(part: Part, named: str | None) -> Iterator[str]:
    """Yields where the images may be, most likely first."""
    yield from dict.fromkeys(each for each in (named, part.spec, part.here) if each)
