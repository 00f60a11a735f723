"""Lists and clears the image caches on disk, for `clfew cache`. Needs neither torch nor the images."""

import contextlib
import json
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from clfew.data.cache_arrays import cache_folder


@dataclass(frozen=True)
class CacheListing:
    """An image cache on disk.

    source: the source it was made from. images: how many it was made from. side: of a cached image, in
    pixels. bytes: its size on disk. used: date and time of its last use.
    """

    folder: Path
    source: str
    images: int
    side: int
    bytes: int
    used: str


def list_image_caches() -> list[CacheListing]:
    """Returns all finished image caches, the last used first."""
    caches = []
    for metadata in cache_folder().glob("*/store.json"):
        try:
            content = json.loads(metadata.read_text(encoding="utf-8"))
            size = sum(file.stat().st_size for file in metadata.parent.iterdir())
            used = metadata.parent.stat().st_mtime
            fields = (str(content["source"]), int(content["images"]), int(content["side"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # It is damaged, or another clfew is removing it.
        day = datetime.fromtimestamp(used).strftime("%Y-%m-%d %H:%M")
        listing = CacheListing(metadata.parent, *fields, size, day)
        caches.append((used, listing))
    return [listing for _, listing in sorted(caches, key=lambda pair: -pair[0])]


def kept_features() -> tuple[int, int]:
    """Returns how many sets of features `select` has kept, and their size in bytes."""
    sizes = []
    for file in cache_folder().glob("codes-*.safetensors"):
        with contextlib.suppress(OSError):  # Another clfew is removing it.
            sizes.append(file.stat().st_size)
    return len(sizes), sum(sizes)


def clear_image_caches() -> list[Path]:
    """Removes every image cache, damaged ones too. A running clfew can still read one that it uses.

    Returns the folders that could not be removed.
    """
    left = []
    for kind in ("near", "codes"):  # See `groups` and `selection/pool_codes.py`.
        for file in cache_folder().glob(f"{kind}-*.safetensors"):
            with contextlib.suppress(OSError):
                file.unlink()
    for name in ("store.json", "pixels.safetensors"):
        for file in cache_folder().glob(f"*/{name}"):
            if not file.parent.name.startswith("."):  # A cache still being built has a dot.
                shutil.rmtree(file.parent, ignore_errors=True)
                if file.parent.exists() and file.parent not in left:
                    left.append(file.parent)
    return left
