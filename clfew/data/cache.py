"""What `clfew cache` shows: the pixel stores there are. Needs neither torch nor the images."""

import json
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from clfew.data.store import cache_folder


@dataclass(frozen=True)
class StoreListing:
    """A store on disk: the source it was made from, its images, their side in pixels, its size in
    bytes, and the day it was last used."""

    folder: Path
    source: str
    images: int
    side: int
    bytes: int
    used: str


def list_stores() -> list[StoreListing]:
    """All finished stores, the last used first."""
    stores = []
    for about in cache_folder().glob("*/store.json"):
        try:
            content = json.loads(about.read_text(encoding="utf-8"))
            size = sum(file.stat().st_size for file in about.parent.iterdir())
            used = about.parent.stat().st_mtime
        except (OSError, ValueError):
            continue  # Being removed by another clfew, or no store at all.
        day = datetime.fromtimestamp(used).strftime("%Y-%m-%d %H:%M")
        listing = StoreListing(
            about.parent, content["source"], content["images"], content["side"], size, day
        )
        stores.append((used, listing))
    return [listing for _, listing in sorted(stores, key=lambda pair: -pair[0])]


def clear_stores() -> None:
    """Removes every finished store; one that is mapped by a running clfew stays readable for it."""
    for store in list_stores():
        shutil.rmtree(store.folder, ignore_errors=True)
