"""Images whose pixels are not 8 bits of red, green and blue, with what they show.

Each case is a source of three images of one picture: a slope of brightness, in bands of different
strength. `expected` is the first image as RGB, to within STEPS grey levels.
"""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from handmade import GREY, GREY_ALPHA, RGB, RGBA, png
from PIL import Image

STEPS = 8
SLOPE = np.add.outer(np.arange(36), np.arange(48)) / 82
"""From 0 to 1, (36, 48)."""

STRENGTHS = np.array([1.0, 0.6, 0.3, 0.8])


@dataclass(frozen=True)
class Pixels:
    name: str
    content: bytes
    expected: np.ndarray
    said: str = ""
    bands: tuple[int, ...] | None = None
    ending: str = ".tif"


def tif(values: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, **options)
    return buffer.getvalue()


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def bands_of(count: int, highest: float, lowest: float = 0.0) -> np.ndarray:
    """Returns numbers from `lowest` to `highest` (36, 48, count), in bands of STRENGTHS in turn."""
    values = SLOPE[..., None] * np.resize(STRENGTHS, count)
    return lowest + values * (highest - lowest)


def counts(values: np.ndarray) -> np.ndarray:
    return np.rint(values).astype(np.uint16)


def shown(*strengths: float) -> np.ndarray:
    """Returns the slope as RGB in bands of so many strengths, the strongest of them white at its end."""
    taken = np.array(strengths * 3 if len(strengths) == 1 else strengths)
    return 255 * SLOPE[..., None] * (taken / taken.max())


GREYS, COLOURS = shown(1), shown(1, 0.6, 0.3)
CONTIGUOUS = {"photometric": "minisblack", "planarconfig": "contig"}
OPAQUE = np.full((36, 48, 1), 65535)


def _cases() -> list[Pixels]:
    slope = bands_of(1, 220)[..., 0]
    colours, four = counts(bands_of(3, 3000)), counts(bands_of(4, 3000))
    eight = np.rint(bands_of(4, 250)).astype(np.uint8)
    hidden = np.where(np.arange(36)[:, None] < 12, True, np.zeros((36, 48), bool))
    filled, marked = counts(bands_of(1, 3000)), bands_of(1, 1).astype(np.float32)
    filled[hidden], marked[hidden] = 65535, -9999
    missing = np.where(hidden[..., None], np.nan, bands_of(1, 1)).astype(np.float32)
    # What is hidden counts for nothing: then the rest is from black to white.
    rest = 255 * ((SLOPE - SLOPE[12, 0]) / (1 - SLOPE[12, 0]))[..., None].repeat(3, 2)
    rest[hidden] = 0
    first = shown(1, 0.6, 0.3) / 255 * eight[..., 0].max()
    tag = [(281, "H", 1, 4095, True)]
    nodata = [(42113, "s", 0, "-9999", True)]
    stack = counts(np.moveaxis(bands_of(3, 3000), 2, 0))
    return [
        Pixels("camera counts in TIFF", tif(counts(slope)), GREYS, "is black and"),
        Pixels("camera counts in PNG", png(counts(slope)[..., None], 16, GREY), GREYS, ending=".png"),
        Pixels("12 bits, as the file says", tif(counts(bands_of(1, 3000)[..., 0]), extratags=tag),
               GREYS * 3000 / 4095, "4,095 white (the files say so)"),
        Pixels("12-bit colours in PNG", png(counts(bands_of(3, 4095)), 16, RGB), COLOURS, ending=".png"),
        Pixels("and transparency", png(np.dstack([counts(bands_of(3, 4095)), OPAQUE]), 16, RGBA),
               COLOURS, ending=".png"),
        Pixels("12-bit grey and transparency",
               png(np.dstack([counts(bands_of(1, 4095)), OPAQUE]), 16, GREY_ALPHA), GREYS,
               ending=".png"),
        Pixels("whole 16 bits", tif(counts(bands_of(3, 65535)), photometric="rgb"), COLOURS),
        Pixels("satellite colours", tif(colours, photometric="rgb"), COLOURS, "of 3 images"),
        Pixels("satellite colours, LZW", tif(colours, photometric="rgb", compression="lzw"), COLOURS),
        Pixels("black is zero", tif(colours, **CONTIGUOUS), COLOURS),
        Pixels("black is zero, in planes",
               tif(np.moveaxis(colours, 2, 0).copy(), photometric="minisblack", planarconfig="separate"),
               COLOURS),
        Pixels("black is zero, Deflate", tif(colours, **CONTIGUOUS, compression="zlib", predictor=True),
               COLOURS),
        Pixels("near infrared called transparency", tif(four, photometric="rgb"), COLOURS,
               "bands 1, 2, 3 of 4"),
        Pixels("near infrared, other bands", tif(four, photometric="rgb"), shown(0.8, 1, 0.6),
               "bands 4, 1, 2 of 4", bands=(4, 1, 2)),
        Pixels("near infrared in 8 bits", tif(eight, photometric="rgb"), first, "bands 1, 2, 3 of 4"),
        Pixels("depth in an 8-bit PNG", encoded(Image.fromarray(eight), "PNG"), first, ending=".png"),
        Pixels("thirteen bands", tif(counts(bands_of(13, 3000)), **CONTIGUOUS), COLOURS,
               "bands 1, 2, 3 of 13"),
        Pixels("one of thirteen", tif(counts(bands_of(13, 3000)), **CONTIGUOUS), GREYS, "band 9 of 13",
               bands=(9,)),
        Pixels("pages as bands", tif(stack, photometric="minisblack"), shown(0.3, 0.6, 1),
               bands=(3, 2, 1)),
        Pixels("two bands", tif(colours[..., :2].copy(), **CONTIGUOUS), shown(1, 0.6, 0.6),
               "bands 1, 2, 2 of 2"),
        Pixels("floats", tif(bands_of(1, 1)[..., 0].astype(np.float32)), GREYS),
        Pixels("floats in colours", tif(bands_of(3, 1).astype(np.float32), photometric="rgb"), COLOURS),
        Pixels("long floats", tif(bands_of(1, 1e-4)[..., 0]), GREYS),
        Pixels("not a number", tif(missing[..., 0]), rest),
        Pixels("a value for nothing", tif(marked[..., 0], extratags=nodata), rest),
        Pixels("filled with the highest value", tif(filled[..., 0]),
               np.where(hidden[..., None], 255, rest)),
        Pixels("tomography", tif(np.rint(bands_of(1, 3000, -1000))[..., 0].astype(np.int16)), GREYS),
        Pixels("long whole numbers", tif(np.rint(bands_of(1, 4e9))[..., 0].astype(np.uint32)), GREYS),
        Pixels("signed bytes", tif(np.rint(bands_of(1, 100, -100))[..., 0].astype(np.int8)), GREYS),
        Pixels("JPEG 2000", encoded(Image.fromarray(counts(bands_of(1, 3000)[..., 0])), "JPEG2000"),
               GREYS, ending=".jp2"),
    ]  # fmt: skip


CASES = _cases()
