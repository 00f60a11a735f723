"""What `clfew cache` shows: the pixel stores there are. Needs neither torch nor the images."""

import json
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from clfew.data.image_cache import cache_folder


@dataclass(frozen=True)
class CacheListing:
    """A store on disk: the source it was made from, its images, their side in pixels, its size in
    bytes, and the day it was last used."""

    folder: Path
    source: str
    images: int
    side: int
    bytes: int
    used: str


def list_image_caches() -> list[CacheListing]:
    """All finished stores, the last used first."""
    caches = []
    for metadata in cache_folder().glob("*/store.json"):
        try:
            content = json.loads(metadata.read_text(encoding="utf-8"))
            size = sum(file.stat().st_size for file in metadata.parent.iterdir())
            used = metadata.parent.stat().st_mtime
            named = (str(content["source"]), int(content["images"]), int(content["side"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # Being removed by another clfew, or damaged.
        day = datetime.fromtimestamp(used).strftime("%Y-%m-%d %H:%M")
        listing = CacheListing(metadata.parent, *named, size, day)
        caches.append((used, listing))
    return [listing for _, listing in sorted(caches, key=lambda pair: -pair[0])]


def clear_image_caches() -> list[Path]:
    """Removes every store, damaged ones too; one in use by a running clfew stays readable for it.

    Returns the folders that could not be removed.
    """
    left = []
    for name in ("store.json", "pixels.safetensors"):
        for file in cache_folder().glob(f"*/{name}"):
            if not file.parent.name.startswith("."):  # Still being built.
                shutil.rmtree(file.parent, ignore_errors=True)
                if file.parent.exists() and file.parent not in left:
                    left.append(file.parent)
    return left
