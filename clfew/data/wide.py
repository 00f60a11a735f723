"""Pixels that 8 bits of red, green and blue do not hold: counts of cameras and scanners in 16 bits,
floating-point numbers, and the bands of satellites and microscopes.

Pillow reads one band of them as it is, several bands by their high bytes or not at all.
"""

import importlib.util
import io
import logging
import math
import zlib
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageOps

HINT = "pip install 'clfew[tiff]'"
MAX_VALUES_BYTES = 1 << 30
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PNG_START = b"\x89PNG\r\n\x1a\n"
_UNCOMPRESSED = 1
_COMPRESSED = (5, 8, 32946, 32773, 50000)  # LZW, Deflate by two numbers, PackBits, Zstandard.
_GREY, _RGB = (0, 1), 2
_ALPHA = (1, 2)
"""The values of a TIFF's tag for an extra sample that is transparency."""

_GREY_ALPHA, _COLOUR, _COLOUR_ALPHA = 4, 2, 6
"""The colour types of a PNG with several samples a pixel."""


class NotRead(Exception):
    """Wide pixels that cannot be read; the message is the reason."""


@dataclass(frozen=True)
class Wide:
    """The pixels of an image as its file holds them.

    values: (H, W, B), of any type of numbers. has_alpha: whether the last band is declared as
    transparency. highest: the highest value that a pixel can have, where the file says it. nodata: the
    value that marks pixels without a measurement. orientation: as in EXIF. is_negative: whether low
    values are bright.
    """

    values: np.ndarray
    has_alpha: bool = False
    highest: float | None = None
    nodata: float | None = None
    orientation: int = 1
    is_negative: bool = False

    @property
    def bands(self) -> int:
        return self.values.shape[2]


def is_tiff(content: bytes) -> bool:
    return content[:4] in _TIFF_STARTS


def is_wide(content: bytes, image: Image.Image | None) -> bool:
    """Returns whether an image has other pixels than 8 bits of grey or colours with transparency. image:
    the image opened by Pillow, None if it does not know the file's layout."""
    if image is None:
        return is_tiff(content)
    if image.mode.startswith(("I", "F")) or is_misread(image):
        return True
    if content.startswith(_PNG_START):
        return content[24:25] == b"\x10" and content[25] in (_COLOUR, _GREY_ALPHA, _COLOUR_ALPHA)
    tags = getattr(image, "tag_v2", None)
    if image.format != "TIFF" or tags is None or tags.get(262) not in (*_GREY, _RGB):
        return False
    return _samples(image) > 1 and (bits_of(image) > 8 or _samples(image) > 3)


def is_misread(image: Image.Image) -> bool:
    """Returns whether Pillow opens a TIFF and does not read it: it takes one of several bands of grey,
    and signed bytes without their sign."""
    tags = getattr(image, "tag_v2", {})
    if image.format != "TIFF" or tags.get(262) not in _GREY:
        return False
    if _samples(image) == 1:
        return bits_of(image) == 8 and 2 in np.atleast_1d(tags.get(339) or 1)
    return not any(extra in _ALPHA for extra in tags.get(338) or ())


def _samples(image: Image.Image) -> int:
    return int(getattr(image, "tag_v2", {}).get(277, 1))


def bits_of(image: Image.Image) -> int:
    """Returns the number of bits of a TIFF's samples, 8 for other formats."""
    return max(getattr(image, "tag_v2", {}).get(258, (8,)))


def read_wide(content: bytes, image: Image.Image | None, pages: int = 1) -> Wide:
    """Returns the pixels of an image that `is_wide`, or of any TIFF.

    pages: how many pages of a TIFF with one sample a pixel are taken as bands. Raises NotRead, and what
    decoders raise for a damaged file.
    """
    has_one_band = image is not None and image.mode.startswith(("I", "F")) and _samples(image) == 1
    if image is not None and has_one_band and not has_pages(image, pages):
        tags: Any = getattr(image, "tag_v2", {})
        image.load()
        values = np.asarray(image)[..., None]
        if image.mode == "I" and bits_of(image) == 32 and (tags.get(339) or (1,)) == (1,):
            values = values.view(np.uint32)  # Pillow's are signed.
        return Wide(
            values,
            highest=_highest(tags.get(281)) or _significant(content),
            nodata=_number(tags.get(42113)),
            orientation=image.getexif().get(0x0112, 1),
            is_negative=image.format == "TIFF" and tags.get(262) == 0,
        )
    if is_tiff(content):
        return _read_tiff(content, pages)
    assert image is not None
    values = _grey_and_alpha(content) if content[25] == _GREY_ALPHA else _colours(content, image)
    return Wide(
        values,
        has_alpha=content[25] != _COLOUR,
        highest=_significant(content),
        orientation=image.getexif().get(0x0112, 1),
    )


def size_of(content: bytes) -> tuple[int, int]:
    """Returns width and height of a TIFF whose layout Pillow does not know."""
    page = _tifffile().TiffFile(io.BytesIO(content)).pages[0]
    return page.imagewidth, page.imagelength


def bytes_of(content: bytes, image: Image.Image | None) -> int:
    """Returns how many bytes the values of an image take."""
    if image is not None:
        return image.width * image.height * _samples(image) * bits_of(image) // 8
    page = _tifffile().TiffFile(io.BytesIO(content)).pages[0]
    return int(page.size * page.dtype.itemsize) if page.dtype is not None else 0


def has_pages(image: Image.Image | None, pages: int) -> bool:
    """Returns whether the pages of a TIFF with one sample a pixel can be taken as so many bands."""
    if image is None or image.format != "TIFF" or pages < 2 or _samples(image) > 1:
        return False
    return getattr(image, "n_frames", 1) >= pages


def upright(rgb: Image.Image, orientation: int) -> Image.Image:
    """Turns an image as its orientation in EXIF says."""
    if orientation not in range(2, 9):
        return rgb
    rgb.getexif()[0x0112] = orientation
    return ImageOps.exif_transpose(rgb)


@cache
def _tifffile() -> Any:
    import tifffile

    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # It reports what is odd in a file.
    return tifffile


def _read_tiff(content: bytes, pages: int) -> Wide:
    with _tifffile().TiffFile(io.BytesIO(content)) as file:
        page = file.pages[0]
        if page.photometric not in (*_GREY, _RGB) or page.dtype is None or page.dtype.kind not in "uif":
            raise NotRead("cannot be decoded (a TIFF of a layout that is not read)")
        if 1 < pages <= len(file.pages) and page.samplesperpixel == 1:
            if pages * page.size * page.dtype.itemsize > MAX_VALUES_BYTES:
                raise NotRead(f"its pages take more than {MAX_VALUES_BYTES >> 30} GiB")
            values = np.concatenate([_page(content, file.pages[i]) for i in range(pages)], axis=2)
        else:
            values = _page(content, page)
        return Wide(
            values,
            has_alpha=_has_alpha(page),
            highest=_highest(page.tags.valueof(281)),
            nodata=_number(page.tags.valueof(42113)),
            orientation=int(page.tags.valueof(274) or 1),
            is_negative=page.photometric == 0,
        )


def _has_alpha(page: Any) -> bool:
    """Returns whether the last sample is transparency: as Pillow does, also where nothing is said about
    the fourth one beside colours."""
    if not page.extrasamples:
        return bool(page.samplesperpixel == 4 and page.photometric == _RGB)
    return int(page.extrasamples[-1]) in _ALPHA


def _page(content: bytes, page: Any) -> np.ndarray:
    """Returns the values of one page (H, W, B), with memory bounded by what its header promises."""
    if page.size * page.dtype.itemsize > MAX_VALUES_BYTES:
        raise NotRead(f"its bands take more than {MAX_VALUES_BYTES >> 30} GiB")
    if page.compression != _UNCOMPRESSED:
        if page.compression not in _COMPRESSED:
            raise NotRead(f"bands compressed by method {int(page.compression)}, which is not read")
        # Without it, tifffile decompresses however much comes.
        if importlib.util.find_spec("imagecodecs") is None:
            raise NotRead(f"compressed bands, which are read after: {HINT}")
    ends = [start + size for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)]
    is_whole = len(ends) == math.prod(page.chunked) and min(page.databytecounts, default=0) > 0
    if not is_whole or max(ends) > len(content):
        raise NotRead("the file is truncated")
    values, axes = page.asarray(maxworkers=1), page.axes
    if axes not in ("YX", "YXS", "SYX") or not values.size:
        raise NotRead("cannot be decoded (a TIFF of a layout that is not read)")
    return values[..., None] if axes == "YX" else values if axes == "YXS" else np.moveaxis(values, 0, 2)


def _colours(content: bytes, image: Image.Image) -> np.ndarray:
    """Returns the values of a 16-bit colour PNG (H, W, B).

    Pillow keeps one byte of each number: the first one of the order of bytes that it is told. So it
    decodes the image twice.
    """
    with Image.open(io.BytesIO(content), formats=("PNG",)) as again:
        # Read by its last bytes, as if these were the high ones.
        again.tile = [tile._replace(args=image.mode + ";16L") for tile in again.tile]
        low = np.asarray(again)
    return np.asarray(image).astype(np.uint16) << 8 | low


def _grey_and_alpha(content: bytes) -> np.ndarray:
    """Returns the values of a 16-bit PNG of grey and transparency (H, W, 2). Its bytes are those of an
    8-bit PNG of four samples."""
    header = content[12:24] + bytes([8, _COLOUR_ALPHA]) + content[26:29]
    told = content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:]
    with Image.open(io.BytesIO(told), formats=("PNG",)) as image:
        return np.ascontiguousarray(np.asarray(image)).view(">u2").astype(np.uint16)


def _highest(tag: Any) -> float | None:
    """Returns the number in a tag for the highest value, None if it is no such number."""
    value = max(tag) if isinstance(tag, tuple) and tag else tag
    return float(value) if isinstance(value, int) and 0 < value < 2**32 else None


def _significant(content: bytes) -> float | None:
    """Returns the highest value that the significant bits of a PNG hold, where it says how many."""
    place = len(_PNG_START) if content.startswith(_PNG_START) else len(content)
    while place + 12 < len(content):  # A chunk is its size, its name, what it holds and a checksum.
        size, name = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        if name in (b"sBIT", b"IDAT"):
            bits = content[place + 8] if name == b"sBIT" else 0
            return float(2**bits - 1) if 8 < bits < 16 else None
        place += 12 + size
    return None


def _number(text: Any) -> float | None:
    try:
        return float(str(text).strip("\0 "))
    except ValueError:
        return None
