"""Encodes figures as PNG files and embeds files in a page as data URIs."""

import base64
import io
from typing import Any

from matplotlib.figure import Figure


def png_of(figure: Figure, **options: Any) -> bytes:
    """Returns a figure as the bytes of a PNG file. options: keyword arguments of `Figure.savefig`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", **options)
    return buffer.getvalue()


def data_uri(content: bytes, mime: str = "image/png") -> str:
    """Returns a data URI that contains the file, so that a page needs no other file."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
