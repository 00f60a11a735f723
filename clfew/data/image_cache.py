"""The image cache: every image of a source decoded once, in one memory-mapped uint8 array.

It is a folder in the cache folder, named by a digest of what it was made from (see `cache_building`).
"""

from collections.abc import Callable

import numpy as np

from clfew import console
from clfew.data.cache_arrays import is_flat
from clfew.data.cache_building import build, require_usable
from clfew.data.cache_folder import ImageCache, folder_of, is_there, read_cache
from clfew.data.decode import BadImage, image_size
from clfew.data.source import Source
from clfew.data.splits import evenly_spaced
from clfew.errors import UserError
from clfew.group.launch import launch

MAX_BAD_FRACTION = 0.5
"""If a larger fraction of a source's images is bad, the run stops: something else is wrong."""


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
        from clfew.group.command import is_together

        if is_together():
            return open_together(source, side, progress, most_bad)
    folder = folder_of(source, side)
    if not is_there(source, side, folder, progress):
        build(source, side, folder, progress, most_bad)
    cache = read_cache(folder, len(source), side)
    require_usable(source, cache.bad, most_bad)
    return cache


MOST_LOOKED_AT = 500
"""The most images that are looked at for flat colours."""

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


def _say_flat(source: Source, cache: ImageCache) -> None:
    """Reports if many of the readable images are of one flat colour, whatever the reason is."""
    looked = evenly_spaced(cache.good, MOST_LOOKED_AT)
    flat = [int(i) for i in looked if is_flat(cache.pixels[i])]
    if len(flat) > len(looked) * MANY_FLAT:
        console.say(
            f"note       {len(flat)} of {len(looked)} images looked at are of one flat colour, such as "
            f"{console.printable(source.identities[flat[0]])}: nothing can be learned from them"
        )
