"""A lock on a run's folder, so that two processes do not work in it at once."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from clfew.errors import UserError
from clfew.runs.files import sweep

LOCK = "lock"
"""The file in a run's folder that is there while a process works in it."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps a run's folder to this process, and removes files that a killed one left half-written.

    Raises UserError if another process works in the folder. It is a lock of the operating system, which
    ends with the process, however that ends.
    """
    if os.name != "posix":
        yield
        return
    import fcntl

    lock, is_locked = folder / LOCK, False
    while not is_locked:
        try:
            # Opened for writing, as NFS does not lock folders or files that are opened for reading.
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(
                f"The folder {folder} cannot be written: {error.strerror}.", "check who may write it."
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UserError(
                f"Another clfew is working in {folder}.", "wait until it has finished, or stop it first."
            ) from None
        except OSError:  # A filesystem without locks: other processes go unnoticed.
            break
        with contextlib.suppress(OSError):  # If it is another file, the last holder has just removed it.
            is_locked = os.path.samestat(os.fstat(descriptor), os.stat(lock))
        if not is_locked:
            os.close(descriptor)
    try:
        for place in (folder, folder / "state") if is_locked else ():
            sweep(place)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(lock)
        os.close(descriptor)
