"""Makes an image cache from another one of the same images, which lay elsewhere or had other times."""

import json
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from clfew.data.cache_arrays import cache_folder, map_arrays
from clfew.data.decode import BadImage
from clfew.data.source import Source
from clfew.data.splits import evenly_spaced
from clfew.data.workers import content_digest, decoders
from clfew.errors import UserError
from clfew.runs.files import write_json

_COMPARED = 16
"""The number of images by which other caches are compared at first."""


def read_digests(
    source: Source, progress: Callable[[int, int], None] = lambda done, total: None
) -> np.ndarray:
    """Returns the digest of each file's bytes (see `content_digest`), 0 for what cannot be read."""
    digests = np.zeros(len(source), np.uint64)
    with ThreadPoolExecutor(decoders()) as threads:
        found = threads.map(lambda index: digest_of_image(source, index), range(len(source)))
        for index, digest in enumerate(found):
            digests[index] = digest
            progress(index + 1, len(source))
    return digests


def digest_of_image(source: Source, index: int) -> int:
    """Returns the digest of one file's bytes, 0 if it cannot be read."""
    try:
        return content_digest(source.content(index))
    except BadImage:
        return 0


def reuse(source: Source, side: int, folder: Path, progress: Callable[[int, int], None]) -> bool:
    """Makes the image cache from one of the same images, under other names or with other times. Returns
    whether there is one."""
    some = evenly_spaced(np.arange(len(source)), _COMPARED)
    first: dict[int, int] = {}
    digests: np.ndarray | None = None
    for other in cache_folder().glob("*/store.json"):
        try:
            metadata = json.loads(other.read_text())
            expected = {"images": len(source), "side": side, "scale": str(source.scale)}
            if any(metadata.get(name) != value for name, value in expected.items()):
                continue
            bad = [int(index) for index, _, _ in metadata["bad"]]
            known = map_arrays(other.parent / "pixels.safetensors", len(source), side, "r")[2]
        except (OSError, ValueError, KeyError, TypeError, struct.error):
            continue  # It is damaged, or another clfew is removing it.
        good = np.setdiff1d(np.arange(len(source)), bad)
        first = first or {int(i): digest_of_image(source, int(i)) for i in some}
        if any(int(known[i]) != digest for i, digest in first.items() if i not in bad):
            continue
        digests = read_digests(source, progress) if digests is None else digests
        if (
            np.array_equal(known[good], digests[good])
            and digests[bad].tolist() == metadata["bad_digests"]
        ):
            return _link(other.parent, metadata, source, folder)
    return False


def _link(other: Path, metadata: dict[str, Any], source: Source, folder: Path) -> bool:
    """Makes an image cache of the same pixels as another. Returns whether that was possible."""
    temporary: Path | None = None
    bad = [[i, source.identities[i], reason] for i, _, reason in metadata["bad"]]
    try:
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=temporary_prefix()))
        os.link(other / "pixels.safetensors", temporary / "pixels.safetensors")
        write_json(temporary / "store.json", metadata | {"source": source.spec, "bad": bad})
        os.rename(temporary, folder)
    except (OSError, UserError):  # No links or no space on this disk, or another process was first.
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
        return (folder / "store.json").exists()
    return True


def temporary_prefix() -> str:
    return f".{socket.gethostname()}-{os.getpid()}-"
