"""The images of the page, encoded anew: what else is in the files stays there."""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable

from PIL import Image

from clfew.data.decode import BadImage, decode
from clfew.data.source import Source
from clfew.labelling.server import Refused

SIDES = {"large": 1600, "small": 320}
"""The longest side in pixels. An image is never enlarged."""

EXACT = 128
"""Images with sides up to this are kept exactly, as PNG; larger ones become JPEG."""

MOST_BYTES = 64 * 2**20


class Pictures:
    """Encodes the images of a source by their numbers, and keeps the last ones. It may be called from
    any thread. gone: called with the number and the reason of an image that cannot be shown."""

    def __init__(self, source: Source, gone: Callable[[int, str], None]) -> None:
        self._source, self._gone = source, gone
        self._kept: OrderedDict[tuple[int, str], tuple[bytes, str]] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def __call__(self, number: int, size: str) -> tuple[bytes, str]:
        """Returns the bytes and the MIME type of an image. size: one of SIDES. Raises Refused."""
        if not 0 <= number < len(self._source):
            raise Refused(404, "There is no such image.", "reload the page.")
        with self._lock:
            if (kept := self._kept.get((number, size))) is not None:
                self._kept.move_to_end((number, size))
                return kept
        try:
            image = decode(self._source.content(number), SIDES[size], self._source.scale)
        except BadImage as error:
            self._gone(number, str(error))
            raise Refused(410, f"The image cannot be shown: {error}.") from None
        encoded = encode(image, SIDES[size])
        with self._lock:
            self._keep((number, size), encoded)
        return encoded

    def _keep(self, key: tuple[int, str], encoded: tuple[bytes, str]) -> None:
        if key not in self._kept:
            self._kept[key] = encoded
            self._bytes += len(encoded[0])
        while self._bytes > MOST_BYTES and len(self._kept) > 1:
            _, (content, _) = self._kept.popitem(last=False)
            self._bytes -= len(content)


def encode(image: Image.Image, longest: int) -> tuple[bytes, str]:
    """Returns an image of at most this side as a file, and its MIME type. The file has the pixels alone:
    no position, no comment, no preview."""
    image = image.copy()
    image.info.clear()  # Pillow writes comments and colour profiles that it finds there.
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if max(image.size) <= EXACT:
        image.save(buffer, "PNG")
        return buffer.getvalue(), "image/png"
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue(), "image/jpeg"
