"""Pictures as PNG files, and as text within a page."""

import base64
import io
from typing import Any

from matplotlib.figure import Figure


def png_of(figure: Figure, **options: Any) -> bytes:
    """A figure as the bytes of a PNG file; options: of matplotlib's `savefig`."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", **options)
    return buffer.getvalue()


def data_uri(content: bytes, mime: str = "image/png") -> str:
    """A file as an address that holds it, so that a page needs no other file."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"
