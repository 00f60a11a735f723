"""Finding image files: below a folder, and for the arguments of a command."""

import glob
import io
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from clfew.data.decode import EXTENSIONS
from clfew.errors import UserError


def walk_images(folder: Path) -> tuple[list[str], int]:
    """Returns the image files below `folder`, as sorted relative paths, and the number of other files.

    Hidden files and folders are skipped. Links to folders are followed, and each folder is listed once.
    """
    images: list[str] = []
    others = 0
    seen: set[tuple[int, int]] = set()
    # Folders come before links to folders, and both are sorted by name. So a folder that has two names
    # is always listed under the same one: names decide which images are held out for testing.
    pending, links = [""], list[str]()
    while pending or links:
        relative = pending.pop() if pending else links.pop(0)
        for entry in sorted(_scan(folder / relative, seen), key=lambda entry: entry.name):
            name = f"{relative}/{entry.name}" if relative else entry.name
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if _is_folder(entry):
                (links if entry.is_symlink() else pending).append(name)
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                images.append(name)
            else:
                others += 1
    return sorted(images), others


def _scan(folder: Path, seen: set[tuple[int, int]]) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder and adds it to `seen`; returns none if it was there already."""
    try:
        status = os.stat(folder)
        place = (status.st_dev, status.st_ino)
        if place in seen:
            return []
        seen.add(place)
        with os.scandir(folder) as entries:
            return list(entries)
    except PermissionError:
        raise UserError(
            f"The folder {folder} cannot be read: permission denied.",
            "change its permissions, or name another folder.",
        ) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link that points to itself.
        return False


def expand(arguments: list[str], stdin: Iterable[str] | None = None) -> Iterator[str]:
    """Returns the image files that arguments name: files, folders, patterns, and `-` for names on stdin.

    A file named twice is returned once. A name on stdin that does not exist is returned too, so that it
    is reported in its row. Raises UserError at once for an argument that names nothing.
    """
    named = [_expand_one(argument, stdin) for argument in arguments]
    return _unique(chain(*named))


def _unique(paths: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for path in paths:
        place = os.path.abspath(path)
        if place not in seen:
            seen.add(place)
            yield path


def _expand_one(argument: str, stdin: Iterable[str] | None) -> Iterable[str]:
    path = Path(argument)
    if argument == "-":
        if stdin is None and isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # File names may be in any encoding.
        lines = sys.stdin if stdin is None else stdin
        return (line.rstrip("\r\n") for line in lines if line.strip())
    if path.is_dir():
        names, _ = walk_images(path)
        if not names:
            raise UserError(f"There are no images in {argument}.", "name a folder with images below it.")
        return [str(path / name) for name in names]
    if path.exists() or path.is_symlink():
        return [argument]
    found = [name for name in sorted(glob.glob(argument, recursive=True)) if Path(name).is_file()]
    if not found:
        is_pattern = glob.has_magic(argument)
        raise UserError(
            f"No file matches {argument}." if is_pattern else f"There is no file or folder {argument}.",
            "** in a pattern reaches subfolders." if is_pattern else "check the spelling of the path.",
        )
    return found
