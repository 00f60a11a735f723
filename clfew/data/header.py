"""What the headers of image files say, without decoding them."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from clfew.data.decode import MAX_BYTES, open_image, reasons, regular_file
from clfew.data.wide import bits_of, is_tiff, size_of


@dataclass(frozen=True)
class Header:
    """What the header of an image's file says. pixels: their kind, such as "RGB 8-bit"."""

    format: str
    pixels: str
    width: int
    height: int

    @property
    def size(self) -> str:
        return f"{self.width}×{self.height}"


def read_header(file: Path | io.BytesIO) -> Header:
    """Reads the header of an image, of whose file no more is read than needed. Raises BadImage."""
    if isinstance(file, io.BytesIO):
        return _header(file)
    with regular_file(file) as opened:
        return _header(opened)


def _header(file: BinaryIO) -> Header:
    start = file.read(16)
    file.seek(0)
    with reasons(start):
        try:
            image = open_image(file)
        except UnidentifiedImageError:
            if not is_tiff(start):
                raise
            file.seek(0)
            width, height = size_of(file.read(MAX_BYTES))
            return Header("TIFF", "other bands", width, height)
        kind = f"{image.mode.split(';')[0]} {_bits(image)}-bit"
        return Header(image.format or "", kind, *image.size)


def _bits(image: Image.Image) -> int:
    """Returns the number of bits of a band's pixels."""
    if image.format == "TIFF":
        return bits_of(image)
    told = [str(each[3]) for each in getattr(image, "tile", [])] if image.format == "PNG" else []
    if image.mode.startswith("I;16") or any(";16" in each for each in told):
        return 16
    return {"1": 1, "I": 32, "F": 32}.get(image.mode, 8)
