"""The arrays of an image cache: one safetensors file, mapped into memory."""

import contextlib
import json
import mmap
import os
import struct
from pathlib import Path
from typing import IO, Any

import numpy as np

from clfew.errors import UserError


class RowReader:
    """Reads rows of an array. If the array is memory-mapped, it reads the file instead of the mapping.

    Pages read through a mapping count as this process's memory, in the end all 28 GB of a million
    images, and each costs a page fault. The file stays open, so that it may be removed meanwhile.
    """

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self._file: IO[bytes] | None = None
        self._offset = 0
        # A slice of a mapped array has another base, and its `offset` is wrong.
        is_whole = isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap)
        if is_whole and hasattr(os, "preadv"):
            mapped: Any = array
            with contextlib.suppress(OSError):  # The file was cleared: the mapping can still be read.
                self._file, self._offset = open(mapped.filename, "rb", 0), mapped.offset  # noqa: SIM115

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Returns array[rows]. Raises UserError if the file can no longer be read."""
        if self._file is None:
            return self._array[rows]
        result = np.empty((len(rows), *self._array.shape[1:]), self._array.dtype)
        size = result[:1].nbytes
        try:
            for row, buffer in zip(rows.tolist(), result, strict=True):
                _read_whole(self._file.fileno(), memoryview(buffer).cast("B"), self._offset + row * size)
        except OSError as error:
            raise UserError(
                f"The image cache {Path(self._file.name).parent} cannot be read ({error}).",
                "clear it with: clfew cache --clear",
            ) from None
        return result

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __del__(self) -> None:
        self.close()  # An exception may have kept its user from it.


def _read_whole(file: int, buffer: memoryview, offset: int) -> None:
    """Fills the buffer. Network filesystems may return less at a time than was requested."""
    while len(buffer):
        count = os.preadv(file, [buffer], offset)
        if count == 0:
            raise OSError("it has become shorter")
        buffer, offset = buffer[count:], offset + count


def cache_folder() -> Path:
    """Returns the folder of all image caches: $CLFEW_CACHE, else clfew/ in the user's cache folder."""
    if os.environ.get("CLFEW_CACHE"):
        return Path(os.environ["CLFEW_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clfew"


Layout = dict[str, tuple[str, np.dtype, tuple[int, ...]]]
"""Of each array of a file the type as safetensors calls it, the type and the shape."""


def _layout(count: int, side: int) -> Layout:
    return {
        "digests": ("U64", np.dtype("<u8"), (count,)),
        "aspects": ("F32", np.dtype("<f4"), (count,)),
        "pixels": ("U8", np.dtype("u1"), (count, side, side, 3)),
    }


def create_arrays(path: Path, count: int, side: int) -> list[np.memmap]:
    """Creates a safetensors file of zeros. Returns its pixels, aspects and digests, mapped for
    writing."""
    create_file(path, _layout(count, side))
    return map_arrays(path, count, side, "r+")


def create_file(path: Path, layout: Layout) -> None:
    """Creates a safetensors file of zeros.

    The safetensors library can only write tensors that are whole in memory, which these are not.
    """
    header: dict[str, object] = {}
    offset = 0
    for name, (code, dtype, shape) in layout.items():
        end = offset + int(np.prod(shape)) * dtype.itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + offset)


def reserve(path: Path) -> None:
    """Allocates the disk space of a sparse file now. If the disk were full later, writing to the file
    through a mapping would kill the process."""
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def map_arrays(path: Path, count: int, side: int, mode: str) -> list[np.memmap]:
    arrays = map_file(path, _layout(count, side), mode)
    return [arrays["pixels"], arrays["aspects"], arrays["digests"]]


def map_file(path: Path, layout: Layout, mode: str) -> dict[str, np.memmap]:
    """Maps the arrays of a file that `create_file` made. Raises OSError, and ValueError if it is too
    short."""
    with open(path, "rb") as file:
        offset = 8 + struct.unpack("<Q", file.read(8))[0]
    arrays = {}
    for name, (_, dtype, shape) in layout.items():
        arrays[name] = np.memmap(path, dtype, mode, offset, shape)  # type: ignore[call-overload]
        offset += int(np.prod(shape)) * dtype.itemsize
    return arrays


FLAT = 1.0
"""The standard deviation, in grey levels, below which an image is of one colour."""


def is_flat(pixels: np.ndarray) -> bool:
    """Returns whether an image, uint8 (S, S, 3), is of one colour."""
    return bool(pixels.std(axis=(0, 1)).max() < FLAT)
