"""Decodes images to pixels, in the same way whatever source they come from.

A file is untrusted: formats are an allow-list, bytes and pixels are bounded before anything is
decoded, and the whole image is decoded (Pillow's `verify` accepts truncated files).
"""

import contextlib
import importlib.util
import io
import logging
import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from clfew.data.pixel_scale import WHOLE, PixelScale, to_rgb
from clfew.data.turns import Turns
from clfew.data.wide import (
    NotRead,
    Wide,
    bits_of,
    bytes_of,
    has_pages,
    is_tiff,
    is_wide,
    read_wide,
    size_of,
    upright,
)

ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".pbm", ".pgm", ".ppm"),
    "JPEG2000": (".jp2", ".j2k", ".j2c", ".jpc", ".jpx", ".jpf"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
"""The formats by Pillow's names, with the endings of their files."""

_NEEDS = {
    "JPEG2000": lambda: features.check("jpg_2000"),
    "AVIF": lambda: features.check("avif"),
    "HEIF": lambda: importlib.util.find_spec("pillow_heif") is not None,
}
FORMATS = tuple(kind for kind in ENDINGS if _NEEDS.get(kind, lambda: True)())
EXTENSIONS = frozenset(ending for kind in FORMATS for ending in ENDINGS[kind])
"""What is read here: Pillow is built with more or fewer decoders, and HEIF is an extra."""
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 100_000_000
"""Decoding takes at most 20 bytes a pixel, 2 GB, which decoders take in turn (see `turns`). Pillow alone
stops at 179 million pixels."""
REDUCING_GAP = 3.0
"""Blocks of pixels are averaged before an image is resized, as long as so many times the sides that are
wanted remain."""
_BAND_PIXELS = 2**18
_BYTES_A_PIXEL = 8
"""Of an image with more, the decoder takes more than the 20 bytes a pixel."""

# What Pillow warns about (odd metadata, large images) is either harmless or refused below, and
# `warnings.catch_warnings` would not be safe in the threads that decode.
# The user's own filters come first.
warnings.filterwarnings("ignore", module=r"PIL\.", append=True)
logging.getLogger("PIL").addHandler(logging.NullHandler())


turns = Turns()
"""Of this process. One that decodes for another has those of the other (see `workers.serve`)."""


_HEIF_STARTS = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"mif1", b"msf1", b"hevc"))


def extra_for(ending: str) -> str:
    """Returns in words what to install so that files with an ending are read, "" for nothing."""
    return "pip install 'clfew[heif]'" if ending in ENDINGS["HEIF"] and ending not in EXTENSIONS else ""


class BadImage(Exception):
    """An image that cannot be used; the message is the reason, short enough for a table."""


@contextlib.contextmanager
def regular_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a regular file. Raises BadImage for whatever goes wrong while it is read, too."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadImage("not a regular file")
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        is_link = isinstance(error, FileNotFoundError) and path.is_symlink()
        raise BadImage(
            "a link to a file that is not here" if is_link else error.strerror or type(error).__name__
        ) from None
    except ValueError as error:  # A null byte in the name.
        raise BadImage(str(error)) from None


def read_bytes(path: Path) -> bytes:
    """Returns the content of a regular file of at most MAX_BYTES.

    Raises BadImage for anything else: a pipe would block, and a device would never end.
    """
    with regular_file(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise BadImage(f"larger than {MAX_BYTES >> 20} MiB")
    return content


def decode(content: bytes, at_least: int | None = None, scale: PixelScale | None = None) -> Image.Image:
    """Decodes an encoded image to upright RGB (the first frame, with transparency on white).

    With `at_least`, a JPEG may be decoded at a smaller scale whose sides have at least this many pixels.
    scale: of wide pixels and bands (see `pixel_scale`), None for the usual one. Raises BadImage.
    """
    with reasons(content), _turn_for(content, at_least) as image:
        if image is None or (scale is not None and _is_read_as_wide(content, image, scale.bands)):
            wide = _values(content, image, scale or PixelScale())
            return upright(to_rgb(wide, scale), wide.orientation)
        image.load()
        if scale is not None and (scale.bands or scale.is_opaque):
            return to_rgb(_as_wide(_upright(image)), scale)
        return _to_rgb(_upright(image))


def wide_pixels(content: bytes, bands: tuple[int, ...] | None = None) -> Wide | None:
    """Returns the pixels of an image as its file holds them, if they are wide (see `wide.is_wide`) or a
    fourth band beside colours; else None. bands: those that will be taken. Raises BadImage."""
    with reasons(content), _turn_for(content) as image:
        if image is not None and not _is_read_as_wide(content, image, bands):
            if image.mode != "RGBA":
                return None
            image.load()
            return _as_wide(image)
        wide = _values(content, image, PixelScale(bands=bands))
        if wide.values.dtype == np.uint8 and image is not None and bits_of(image) > 8:
            wide = replace(wide, values=wide.values.astype(np.uint16) * 257)  # Of high bytes only.
        return wide


def _is_read_as_wide(content: bytes, image: Image.Image, bands: tuple[int, ...] | None) -> bool:
    return is_wide(content, image) or has_pages(image, max(bands or (1,)))


def _values(content: bytes, image: Image.Image | None, scale: PixelScale) -> Wide:
    """Returns the pixels of a wide image. Raises NotRead."""
    try:
        return read_wide(content, image, max(scale.bands or (1,)))
    except NotRead:
        # The high bytes, which Pillow reads without any extra, are enough of whole 16 bits.
        is_enough = (scale.low, scale.high) == WHOLE
        if image is None or not is_enough or image.mode not in ("RGB", "RGBA"):
            raise
        image.load()
        return _as_wide(_upright(image))


def _as_wide(image: Image.Image) -> Wide:
    """Returns an ordinary image's bands."""
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = _to_rgb(image)
    values = np.asarray(image)
    values = values[..., None] if values.ndim == 2 else values
    return Wide(values, has_alpha=image.mode in ("LA", "RGBA"))


@contextlib.contextmanager
def _turn_for(content: bytes, at_least: int | None = None) -> Iterator[Image.Image | None]:
    """Opens an image and waits for a turn to decode it (at_least: see `decode`). Yields the image, None
    if Pillow does not know its layout. Raises BadImage if it has too many pixels."""
    image = _open_or_none(content)
    width, height = size_of(content) if image is None else image.size
    if width * height > MAX_PIXELS:
        raise BadImage(f"{width}×{height} is more than {MAX_PIXELS:,} pixels")
    if image is not None and at_least is not None:
        image.draft("RGB", (at_least, at_least))
        width, height = image.size
    is_reduced = image is not None and image.format == "JPEG"
    values = 0 if is_reduced else bytes_of(content, image)
    with turns.turn(max(width * height, values // _BYTES_A_PIXEL)):
        yield image


@contextlib.contextmanager
def reasons(content: bytes) -> Iterator[None]:
    """Raises BadImage with the reason for whatever the decoders raise."""
    if not content:
        raise BadImage("empty file")
    try:
        yield
    except NotRead as error:
        raise BadImage(str(error)) from None
    except UnidentifiedImageError:
        if "HEIF" not in FORMATS and content[4:12] in _HEIF_STARTS:
            raise BadImage("HEIF, which is read after: pip install 'clfew[heif]'") from None
        kind = _kind(content)
        reason = f"{kind} whose header cannot be read" if kind else "not an image in an accepted format"
        raise BadImage(reason) from None
    except Image.DecompressionBombError:
        raise BadImage(f"more than {MAX_PIXELS:,} pixels") from None
    except BadImage:
        raise
    # Decoders of damaged files fail in many ways: struct.error, SyntaxError, zlib.error, KeyError…
    except Exception as error:
        raise BadImage(f"cannot be decoded ({error or type(error).__name__})") from None


def to_square(image: Image.Image, side: int) -> tuple[np.ndarray, float]:
    """Resizes an RGB image to side×side (antialiased bicubic) without keeping its aspect ratio.

    Returns a uint8 array (side, side, 3) and the original's width / height.
    """
    aspect = image.width / image.height
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=REDUCING_GAP)
    return np.asarray(image), aspect


def load_square(content: bytes, side: int, scale: PixelScale | None = None) -> tuple[np.ndarray, float]:
    """`decode` and `to_square` in one. The image cache, `predict` and `embed` all use it."""
    return to_square(decode(content, side, scale), side)


def image_size(content: bytes) -> tuple[int, int] | None:
    """Returns width and height from the header alone, or None if it cannot be read."""
    try:
        image = _open_or_none(content)
        return size_of(content) if image is None else image.size
    except Exception:  # Any failure is reported when the image is decoded.
        return None


def _open_or_none(content: bytes) -> Image.Image | None:
    """Opens an image without decoding it. Returns None for a TIFF whose layout Pillow does not know;
    raises what Pillow does for other files."""
    try:
        return open_image(io.BytesIO(content))
    except UnidentifiedImageError:
        if not is_tiff(content):
            raise
        return None


def open_image(file: BinaryIO) -> Image.Image:
    """Opens an image without decoding it. Raises what Pillow does."""
    if "HEIF" in FORMATS and "HEIF" not in Image.OPEN:
        from pillow_heif import register_heif_opener

        register_heif_opener(thumbnails=False)
    return Image.open(file, formats=FORMATS)


def _kind(content: bytes) -> str | None:
    """Returns the accepted format that the file's first bytes show, or None. Pillow does not report the
    format of a file that it cannot open."""
    start = content[:16].ljust(16, b"\0")  # Some of Pillow's checks read beyond a shorter file.
    for kind in FORMATS:
        accepts = Image.OPEN[kind][1]
        if accepts is not None and accepts(start) is True:
            return kind
    return None


def _upright(image: Image.Image) -> Image.Image:
    # Broken EXIF data does not affect the pixels: they stay as they are.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)  # Else it copies even an upright one.
    return image


def _has_wide_key(image: Image.Image) -> bool:
    """Returns whether the transparent colour has 16 bits per channel. Pillow has reduced the pixels from
    16 bits to 8, but not this colour, so it would make another colour transparent."""
    key = image.info.get("transparency")
    return isinstance(key, tuple) and max(key) > 255


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and (not image.has_transparency_data or _has_wide_key(image)):
        return image
    if image.mode == "F":
        raise BadImage("floating-point pixels have no known range")
    # It converts a band of rows at a time: intermediate images take several times the memory of one.
    result = Image.new("RGB", image.size)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(_band_to_rgb(band), (0, top))
    return result


def _band_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale, in one of Pillow's modes for it.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise BadImage("pixel values beyond 16 bits")
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
