"""Large images are decoded a few at a time, by all decoders of a command together, so that they fit into
memory.

The turns are bytes in a pipe, as in the jobserver of GNU make: whoever decodes a large image reads one
and writes it back, in this process or in another one that has the pipe.
"""

import contextlib
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

from clfew.group.launch import processes_here

LARGE = 4_000_000
"""Pixels. A decoder of a smaller image takes at most 80 MB."""
DECODING_BYTES = 2 * 2**30
"""What decoding the largest image takes (see `decode.MAX_PIXELS`)."""
MOST_TURNS = 32
PATIENCE = 60.0
"""The most seconds to wait for a turn: another process may have been killed before it gave its back."""


def memory_available() -> int:
    """Returns how many bytes this process may still use, as far as the system says; else 8 GB."""
    found = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        rows = [row.split() for row in Path("/proc/meminfo").read_text().splitlines()]
        found.append(next(1024 * int(row[1]) for row in rows if row[0] == "MemAvailable:"))
    with contextlib.suppress(OSError, ValueError):  # A container's limit.
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        found.append(max(0, limit - used))
    return min(found, default=8 * 2**30)


class Turns:
    """A number of turns, for the threads of this process and for the processes that get `pipe`."""

    def __init__(self, pipe: tuple[int, int] | None = None) -> None:
        if pipe is None:
            pipe = os.pipe()
            own_bytes = memory_available() // processes_here()
            count = max(1, min(MOST_TURNS, own_bytes // DECODING_BYTES))
            os.write(pipe[1], b"." * count)
        self.pipe = pipe
        os.set_blocking(pipe[0], False)

    @contextlib.contextmanager
    def turn(self, pixels: int) -> Iterator[None]:
        """Waits for a turn, if an image of so many pixels is large, and gives it back afterwards."""
        taken = self._take() if pixels > LARGE else b""
        try:
            yield
        finally:
            if taken:
                os.write(self.pipe[1], taken)

    def _take(self) -> bytes:
        latest = time.monotonic() + PATIENCE
        while (left := latest - time.monotonic()) > 0:
            if select.select([self.pipe[0]], [], [], left)[0]:
                with contextlib.suppress(BlockingIOError):  # Another was faster.
                    return os.read(self.pipe[0], 1)
        return b""
