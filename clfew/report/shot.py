"""Small versions of images, as pages show them."""

import contextlib
from typing import Any

import numpy as np

from clfew.console import printable
from clfew.data.cache_folder import ImageCache
from clfew.data.decode import BadImage, load_square
from clfew.data.source import Source
from clfew.report import figures
from clfew.report.png import data_uri

_SIDE = 96


def shot_of(source: Source, cache: ImageCache | None, image: int) -> dict[str, Any]:
    """Returns what a page shows of an image: `src`, a small version of it as a data URI, None where it
    cannot be read; `tiny`, whether its pixels are to be seen as squares; `file`, its name. cache: None
    where the images are not decoded."""
    content = None
    with contextlib.suppress(BadImage):
        if cache is None:
            pixels, aspect = load_square(source.content(image), _SIDE, source.scale)
            content = figures.thumbnail(pixels, aspect)
        elif cache.good[np.searchsorted(cache.good, image).clip(max=len(cache.good) - 1)] == image:
            content = figures.thumbnail(cache.pixels[image], float(cache.aspects[image]))
    return {
        "src": data_uri(*content) if content else None,
        "tiny": content is not None and content[1] == "image/png",
        "file": printable(source.identities[image]),
    }
