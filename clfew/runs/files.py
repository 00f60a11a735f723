"""Writes files so that a kill or a full disk at any instant leaves the previous file whole."""

import contextlib
import csv
import glob
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from clfew.errors import UserError

_UNFINISHED = ".unfinished"


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file beside `path`, syncs it, sets its mode by the umask, and renames it over `path`.

    Raises UserError, with the path and the bytes needed, if the file cannot be written.
    """
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(_UNFINISHED, f".{path.name}.", path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(
            f"{path} ({len(content):,} bytes) cannot be written: {error.strerror or error}.",
            "free some space or name another place; what was there before is untouched.",
        ) from None
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):  # It has been renamed, or its disk is read-only now.
                os.unlink(temporary)


def sweep(folder: Path) -> None:
    """Removes unfinished files of a killed process from a folder in which no other process writes."""
    for leftover in folder.glob(f".*{_UNFINISHED}"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def sweep_of(path: Path) -> None:
    """Removes unfinished files of a killed process that was writing `path`."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{_UNFINISHED}"):
        with contextlib.suppress(OSError):
            leftover.unlink()


def append_line(path: Path, line: str) -> None:
    """Appends a line to a log. A kill in the middle leaves a part of the line. Raises UserError."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({len(line) + 1:,} bytes more): {error.strerror or error}.",
            "free some space; what was saved before is untouched.",
        ) from None


def sync(path: Path) -> None:
    """Waits until what was appended to a file is on the disk. Errors are ignored."""
    with contextlib.suppress(OSError), open(path, "ab") as file:
        os.fsync(file.fileno())


def digest_of(path: Path) -> str:
    """Returns a digest of a file's bytes. Raises OSError."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def digest_of_text(text: str) -> str:
    """Returns what `digest_of` returns of a file that `write_text` has written."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def make_folder(folder: Path) -> None:
    """Makes a folder unless it exists already. Raises UserError."""
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {folder} cannot be made: {error.strerror or error}.",
            "check that its parent folder exists and can be written.",
        ) from None


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    write_text(path, csv_text(header, rows))


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    return "".join(map(csv_line, [header, *rows]))


def csv_line(row: Sequence[Any]) -> str:
    """Returns a line of CSV in which a spreadsheet takes no text for a formula: see `guarded`."""
    cells = [guarded(cell) if isinstance(cell, str) else cell for cell in row]
    # csv.writer does not quote a carriage return, which ends the row for a reader.
    must_quote = any(isinstance(cell, str) and "\r" in cell for cell in cells)
    buffer = io.StringIO()
    quoting: Literal[0, 2] = csv.QUOTE_NONNUMERIC if must_quote else csv.QUOTE_MINIMAL
    csv.writer(buffer, lineterminator="\n", quoting=quoting).writerow(cells)
    return buffer.getvalue()


# A part of a cell begins where the cell does, and after a semicolon or tab, at which some spreadsheets
# divide rows too. Apostrophes before one of = + - @ tab CR LF keep it from being a formula.
_BEGIN = r"(?<![^;\t])"
_FORMULA = r"(?='*[=+\-@\t\r\n＝＋－＠﹦﹢﹣﹫−])"  # The wide and small forms too.
_UNGUARDED = re.compile(_BEGIN + _FORMULA)
"""The position where an apostrophe is added."""
_GUARDED = re.compile(_BEGIN + "'" + _FORMULA)
"""The apostrophe that was added."""


def guarded(cell: str) -> str:
    """Returns a CSV cell as it is written, so that no spreadsheet runs it as a formula.

    An apostrophe is put before a cell, or a part of one, that begins like a formula. One is added also
    where there are some already, so that `unguarded` restores the cell.
    """
    return _UNGUARDED.sub("'", cell)


def unguarded(cell: str) -> str:
    """Returns a cell as it was before `guarded`."""
    return _GUARDED.sub("", cell)


def _umask() -> int:
    """Returns the process's umask. Linux tells it. Elsewhere it can only be read by setting it, so it is
    restored at once; another thread might write a file meanwhile."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    current = os.umask(0o077)
    os.umask(current)
    return current


def sync_folder(folder: Path) -> None:
    """Waits until the names in a folder are on the disk, if the system allows a folder to be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # Some filesystems cannot sync a folder; the rename is still atomic.
    finally:
        os.close(descriptor)
