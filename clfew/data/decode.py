"""The one way an image becomes pixels, whatever it comes from.

A file is untrusted: formats are an allow-list, bytes and pixels are bounded before anything is
decoded, and the whole image is decoded (Pillow's `verify` accepts truncated files).
"""

import contextlib
import io
import os
import stat
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
EXTENSIONS = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".pbm",
        ".pgm",
        ".ppm",
    ]
)
MAX_BYTES = 256 * 2**20
MAX_PIXELS = 100_000_000
"""Decoding takes at most 20 bytes a pixel, 2 GB; Pillow alone stops at 179 million pixels."""
_BAND_PIXELS = 2**18

# What Pillow warns of (odd metadata, large images) is either harmless or refused below, and
# `warnings.catch_warnings` would not be safe in the threads that decode.
warnings.filterwarnings("ignore", module=r"PIL\.")


class BadImage(Exception):
    """An image that cannot be used; the message is the reason, fit for a table."""


def read_bytes(path: Path) -> bytes:
    """The content of a regular file of at most MAX_BYTES.

    Raises BadImage for anything else: a pipe would block, a device would never end.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise BadImage("not a regular file")
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadImage(error.strerror or type(error).__name__) from None
    except ValueError as error:  # A null byte in the name.
        raise BadImage(str(error)) from None
    if len(content) > MAX_BYTES:
        raise BadImage(f"larger than {MAX_BYTES >> 20} MiB")
    return content


def decode(content: bytes, at_least: int | None = None) -> Image.Image:
    """Decodes an encoded image to upright RGB (first frame, transparency on white).

    `at_least` lets a JPEG be decoded at a smaller scale whose sides are not below this many pixels.
    Raises BadImage.
    """
    if not content:
        raise BadImage("empty file")
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise BadImage(f"{width}×{height} is more than {MAX_PIXELS:,} pixels")
        if at_least is not None:
            image.draft("RGB", (at_least, at_least))
        image.load()
        return _to_rgb(_upright(image))
    except UnidentifiedImageError:
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
    """An RGB image squeezed into side×side (antialiased bicubic), and its width / height.

    Returns a uint8 array (side, side, 3).
    """
    aspect = image.width / image.height
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.asarray(image), aspect


def load_square(content: bytes, side: int) -> tuple[np.ndarray, float]:
    """`decode` and `to_square` in one: what the pixel store, `predict` and `embed` all read."""
    return to_square(decode(content, at_least=side), side)


def image_size(content: bytes) -> tuple[int, int] | None:
    """Width and height from the header alone, None where it cannot be read."""
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS).size
    except Exception:  # Any failure is reported when the image is decoded.
        return None


def _kind(content: bytes) -> str | None:
    """The accepted format that a file begins like: Pillow says no more of one it cannot open."""
    start = content[:16].ljust(16, b"\0")  # Some of Pillow's checks read on beyond a shorter file.
    for kind in FORMATS:
        accepts = Image.OPEN[kind][1]
        if accepts is not None and accepts(start) is True:
            return kind
    return None


def _upright(image: Image.Image) -> Image.Image:
    # Broken EXIF data says nothing about the pixels: they stay as they are.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)  # Otherwise a copy, even of an upright one.
    return image


def _has_wide_key(image: Image.Image) -> bool:
    """Whether the colour that stands for transparent is one of 16 bits: Pillow, which has made 8 of the
    pixels' 16, would take it for another."""
    key = image.info.get("transparency")
    return isinstance(key, tuple) and max(key) > 255


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and (not image.has_transparency_data or _has_wide_key(image)):
        return image
    if image.mode == "F":
        raise BadImage("floating-point pixels have no known range")
    # A band of rows at a time: what is between the steps takes several times the image's own memory.
    result = Image.new("RGB", image.size)
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        band = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(_band_to_rgb(band), (0, top))
    return result


def _band_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit greyscale, in one of Pillow's spellings.
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise BadImage("pixel values beyond 16 bits")
        return Image.fromarray((values // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")
