"""Decoding many images, in order and ahead of whoever uses them, on all cores.

Pillow decodes without holding the interpreter's lock, but opens files in Python: with small images
threads stand in each other's way. So after the first images, which threads decode, other processes
take over. They are told and tell in JSON and raw bytes over pipes, never in pickles.
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
from typing import IO, TypeVar

import numpy as np

from clfew.data.decode import BadImage, load_square

CHUNK = 32
FEW = 128
"""Starting the processes takes as long as decoding so many small images."""
MOST_DECODERS = 32
_HELD_BYTES = 16 * 2**20

T = TypeVar("T")


@dataclass(frozen=True)
class Decoded:
    """pixels: uint8 (side, side, 3). aspect: width / height before. digest: `content_digest`."""

    pixels: np.ndarray
    aspect: float
    digest: int


def content_digest(content: bytes) -> int:
    """A 64-bit digest of a file's bytes, by which images are recognised across sources."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def decoders() -> int:
    """How many images are worth decoding at a time: one for each processor core this process may use,
    up to as many as one process can feed."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_DECODERS)


def decode_ahead(
    references: Iterable[T], read: Callable[[T], bytes], side: int, workers: int
) -> Iterator[tuple[T, Decoded | BadImage]]:
    """Each reference with its image, in order; at most 64 a worker, and 256, are decoded ahead.

    `read` returns the encoded bytes of a reference or raises BadImage; it is called in threads.
    """
    remaining = iter(references)
    chunks = iter(lambda: list(islice(remaining, CHUNK)), [])
    ahead = max(8, 2 * workers)
    waiting: deque[tuple[list[T], Future[list[Decoded | BadImage]]]] = deque()
    processes: _Processes | None = None
    threads = ThreadPoolExecutor(workers)
    try:
        for number, chunk in enumerate(chunks):
            if number == FEW // CHUNK and workers > 1:
                processes = _Processes(side, workers)
            waiting.append((chunk, threads.submit(_decode_chunk, chunk, read, side, processes)))
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
    chunk: list[T], read: Callable[[T], bytes], side: int, processes: "_Processes | None"
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
            results += _decode_together(contents, side, processes)
            contents = []
    return results


def _decode_together(
    contents: list[bytes | BadImage], side: int, processes: "_Processes | None"
) -> list[Decoded | BadImage]:
    good = [content for content in contents if isinstance(content, bytes)]
    results = None if processes is None else processes.decode(good)
    found = iter([_decode(content, side) for content in good] if results is None else results)
    return [content if isinstance(content, BadImage) else next(found) for content in contents]


def _decode(content: bytes, side: int) -> Decoded | BadImage:
    try:
        return Decoded(*load_square(content, side), content_digest(content))
    except BadImage as error:
        return error


class _Processes:
    """Processes that decode; each is asked by one thread at a time."""

    def __init__(self, side: int, count: int) -> None:
        self._side, self._all = side, []
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        # The parent's own path: with -m, modules would be looked for in the user's folder first.
        path = f"import sys; sys.path[:] = {sys.path!r}; "
        program = path + f"from clfew.data import workers; workers.serve({side})"
        # NumPy's library for matrices would start a thread a core in each process, and use none.
        alone = os.environ | {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        for _ in range(count):
            with contextlib.suppress(OSError, TypeError):  # No interpreter of its own, say.
                process = subprocess.Popen(
                    [sys.executable, "-c", program],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=alone,
                )
                self._all.append(process)
                self._idle.put(process)

    def close(self) -> None:
        for process in self._all:
            process.kill()  # It holds nothing that could be lost.
            with contextlib.suppress(OSError):
                process.communicate()

    def decode(self, contents: list[bytes]) -> list[Decoded | BadImage] | None:
        """The images, or None when no process is left that answers."""
        # There are as many as threads that ask: one that lives is idle.
        with contextlib.suppress(queue.Empty):
            while True:
                process = self._idle.get_nowait()
                with contextlib.suppress(OSError, ValueError):  # It was killed, for its memory perhaps.
                    results = _ask(process, contents, self._side)
                    self._idle.put(process)
                    return results
        return None


def _ask(
    process: "subprocess.Popen[bytes]", contents: list[bytes], side: int
) -> list[Decoded | BadImage]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps([len(content) for content in contents]).encode() + b"\n")
    for content in contents:
        process.stdin.write(content)
    process.stdin.flush()
    results: list[Decoded | BadImage] = []
    for told in json.loads(process.stdout.readline()):
        if isinstance(told, str):
            results.append(BadImage(told))
        else:
            pixels = np.frombuffer(_exactly(process.stdout, side * side * 3), np.uint8)
            results.append(Decoded(pixels.reshape(side, side, 3), told[0], told[1]))
    return results


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) != size:
        raise OSError("the other process has ended")
    return content


def serve(side: int) -> None:
    """What the other processes run: chunks of encoded images from stdin, pixels to stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The one who asks decides when it ends.
    if hasattr(os, "nice"):
        os.nice(10)  # Where a network waits for two cores, images are waiting for it already.
    settings, answers = sys.stdin.buffer, sys.stdout.buffer
    while line := settings.readline():
        images = [_decode(_exactly(settings, size), side) for size in json.loads(line)]
        told = [str(i) if isinstance(i, BadImage) else [float(i.aspect), i.digest] for i in images]
        answers.write(json.dumps(told).encode() + b"\n")
        for image in images:
            if isinstance(image, Decoded):
                answers.write(np.ascontiguousarray(image.pixels).tobytes())
        answers.flush()
