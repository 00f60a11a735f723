"""Decodes many images in order, ahead of their use and on all cores.

Pillow decodes without holding the interpreter's lock, but it opens images in Python: if they are small,
threads wait for each other. So threads decode the first images, and then other processes take over.
They exchange JSON and raw bytes over pipes, never pickles.
"""

import contextlib
import hashlib
import json
import os
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, TypeVar

import numpy as np
from PIL import Image, ImageFile

from clfew.data import decode
from clfew.data.decode import BadImage, load_square
from clfew.data.pixel_scale import PixelScale, scale_from
from clfew.data.turns import Turns
from clfew.group.launch import own_cores

CHUNK = 32
FEW = 128
"""Threads decode this many images before processes are started, as starting them takes as long as
decoding so many small images."""
MOST_DECODERS = 32
_MOST_PIXELS = 1024 * 1024 * 1024 // 4 // 3
"""Pillow's own limit, unless the process has changed it."""
_HELD_BYTES = 16 * 2**20

T = TypeVar("T")


@dataclass(frozen=True)
class Decoded:
    """pixels: uint8 (side, side, 3). aspect: width / height before. digest: `content_digest`."""

    pixels: np.ndarray
    aspect: float
    digest: int


@dataclass(frozen=True)
class _Form:
    """What images are decoded to: side×side pixels, on a scale (see `decode`)."""

    side: int
    scale: PixelScale | None


def content_digest(content: bytes) -> int:
    """A 64-bit digest of a file's bytes, by which images are recognised across sources."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _decodes_as_elsewhere() -> bool:
    """Returns whether Pillow's settings, which other processes do not know, are the usual ones."""
    usual = Image.MAX_IMAGE_PIXELS == _MOST_PIXELS and not ImageFile.LOAD_TRUNCATED_IMAGES
    return usual


def decoders() -> int:
    """Returns how many images to decode at a time: one for each processor core that this process may
    use, and at most MOST_DECODERS, the most that one process can feed."""
    return min(own_cores(), MOST_DECODERS)


def decode_ahead(
    references: Iterable[T],
    read: Callable[[T], bytes],
    side: int,
    workers: int,
    scale: PixelScale | None = None,
) -> Iterator[tuple[T, Decoded | BadImage]]:
    """Yields each reference with its image, in order. At most 64 images a worker are decoded ahead, or
    256 if that is more.

    `read` returns the encoded bytes of a reference or raises BadImage; it is called in threads. scale:
    see `decode`.
    """
    form = _Form(side, scale)
    remaining = iter(references)
    chunks = iter(lambda: list(islice(remaining, CHUNK)), [])
    ahead = max(8, 2 * workers)
    waiting: deque[tuple[list[T], Future[list[Decoded | BadImage]]]] = deque()
    processes: _Processes | None = None
    threads = ThreadPoolExecutor(workers)
    try:
        for number, chunk in enumerate(chunks):
            if number == FEW // CHUNK and workers > 1 and _decodes_as_elsewhere():
                processes = _Processes(form, workers)
            waiting.append((chunk, threads.submit(_decode_chunk, chunk, read, form, processes)))
            if len(waiting) >= ahead:
                first, future = waiting.popleft()
                yield from zip(first, future.result(), strict=True)
        for first, future in waiting:
            yield from zip(first, future.result(), strict=True)
    finally:
        threads.shutdown(cancel_futures=True)
        if processes is not None:
            processes.close()


def _decode_chunk(
    chunk: list[T], read: Callable[[T], bytes], form: _Form, processes: "_Processes | None"
) -> list[Decoded | BadImage]:
    results: list[Decoded | BadImage] = []
    contents: list[bytes | BadImage] = []
    for number, reference in enumerate(chunk, start=1):
        try:
            contents.append(read(reference))
        except BadImage as error:
            contents.append(error)
        held = sum(len(content) for content in contents if isinstance(content, bytes))
        if held > _HELD_BYTES or number == len(chunk):
            results += _decode_together(contents, form, processes)
            contents = []
    return results


def _decode_together(
    contents: list[bytes | BadImage], form: _Form, processes: "_Processes | None"
) -> list[Decoded | BadImage]:
    good = [content for content in contents if isinstance(content, bytes)]
    results = None if processes is None else processes.decode(good)
    decoded = iter([_decode(content, form) for content in good] if results is None else results)
    return [content if isinstance(content, BadImage) else next(decoded) for content in contents]


def _decode(content: bytes, form: _Form) -> Decoded | BadImage:
    try:
        return Decoded(*load_square(content, form.side, form.scale), content_digest(content))
    except BadImage as error:
        return error


class _Processes:
    """Processes that decode. Each is used by one thread at a time."""

    def __init__(self, form: _Form, count: int) -> None:
        self._side, self._all = form.side, []
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        # It gets this process's sys.path. With -m, Python would search the user's folder first.
        path = f"import sys; sys.path[:] = {sys.path!r}; "
        scale = None if form.scale is None else form.scale.as_data()
        call = f"workers.serve({form.side}, {scale!r}, {decode.turns.pipe})"
        program = path + f"from clfew.data import workers; {call}"
        # Without this, NumPy's BLAS would start a thread for each core in each process, and use none.
        one_thread = os.environ | {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        for _ in range(count):
            with contextlib.suppress(OSError, TypeError):  # No interpreter to start, say.
                process = subprocess.Popen(
                    [sys.executable, "-c", program],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=one_thread,
                    pass_fds=decode.turns.pipe,
                )
                self._all.append(process)
                self._idle.put(process)

    def close(self) -> None:
        for process in self._all:
            process.kill()  # It holds nothing that could be lost.
            with contextlib.suppress(OSError):
                process.communicate()

    def decode(self, contents: list[bytes]) -> list[Decoded | BadImage] | None:
        """Returns the images, or None if no process is left that works."""
        # As many threads use them as there are processes: the queue is only empty if some have died.
        with contextlib.suppress(queue.Empty):
            while True:
                process = self._idle.get_nowait()
                with contextlib.suppress(OSError, ValueError):  # It was killed, perhaps for its memory.
                    results = _decode_in(process, contents, self._side)
                    self._idle.put(process)
                    return results
        return None


def _decode_in(
    process: "subprocess.Popen[bytes]", contents: list[bytes], side: int
) -> list[Decoded | BadImage]:
    """Sends encoded images to a process that runs `serve` and returns what it decoded.

    A request is a line of JSON with the images' sizes in bytes, then their bytes. A reply is a line of
    JSON with the reason for each bad image and [aspect, digest] for each other one, then the pixels.
    """
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps([len(content) for content in contents]).encode() + b"\n")
    for content in contents:
        process.stdin.write(content)
    process.stdin.flush()
    results: list[Decoded | BadImage] = []
    for entry in json.loads(process.stdout.readline()):
        if isinstance(entry, str):
            results.append(BadImage(entry))
        else:
            pixels = np.frombuffer(_exactly(process.stdout, side * side * 3), np.uint8)
            results.append(Decoded(pixels.reshape(side, side, 3), entry[0], entry[1]))
    return results


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) != size:
        raise OSError("the other process has ended")
    return content


def serve(side: int, scale: dict[str, Any] | None, pipe: tuple[int, int]) -> None:
    """Runs in the other processes: reads encoded images from stdin and writes pixels to stdout. scale:
    as `PixelScale.as_data` gives it. pipe: that of the first process's `decode.turns`."""
    form = _Form(side, scale_from(scale))
    decode.turns = Turns(pipe)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent decides when it ends.
    if hasattr(os, "nice"):
        os.nice(10)  # The network that trains goes first: decoded images already wait for it.
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    while line := requests.readline():
        images = [_decode(_exactly(requests, size), form) for size in json.loads(line)]
        entries = [str(i) if isinstance(i, BadImage) else [float(i.aspect), i.digest] for i in images]
        replies.write(json.dumps(entries).encode() + b"\n")
        for image in images:
            if isinstance(image, Decoded):
                replies.write(np.ascontiguousarray(image.pixels).tobytes())
        replies.flush()
