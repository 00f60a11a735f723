"""Finding image files: below a folder, and for the arguments of a command."""

import glob
import io
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from clfew import console
from clfew.data.decode import EXTENSIONS, extra_for
from clfew.errors import UserError
from clfew.runs.folders import is_own_folder

_OF_OTHERS = re.compile(
    r"__macosx|\$recycle\.bin|recycler|recycled|system volume information|found\.\d{3}|lost\+found"
    r"|network trash folder|temporary items|resource\.frk"  # of operating systems
    r"|@eadir|@tmp|@recycle|@recently-snapshot|@sharebin|#recycle|#snapshot"  # of network storage
    r"|cvs|__pycache__|node_modules"  # of version control and programs
    r"|\[originals\]|zbthumbnail\.info|.+\.(lrdata|lrlibrary|photoslibrary|aplibrary|cocatalogdb)"
)
"""Folders that operating systems, network storage, version control, programs and photo managers leave
between a user's images, in small letters. Those whose name starts with a dot are passed over anyway."""


MOST_PLACES = 3
"""The most folders that are named for one ending."""

MOST_EMPTY = 10_000
"""The most empty folders that are counted."""


@dataclass
class LeftOut:
    """What lies below a folder and is not read.

    files: the number of files of other types, by the first two folders in which they lie, "" for none,
    and the ending of their name in small letters. made: the number of files in folders that clfew has
    written. others: the number of files in folders of other programs, by the folder's name. empty: the
    folders in which nothing lies.
    """

    files: Counter[tuple[str, str]] = field(default_factory=Counter)
    made: int = 0
    others: Counter[str] = field(default_factory=Counter)
    empty: list[str] = field(default_factory=list)

    def words(self) -> str:
        """Returns the numbers in words, "" if nothing is left out."""
        said = []
        for ending in sorted({ending for _, ending in self.files}):
            places = {folder: n for (folder, e), n in sorted(self.files.items()) if e == ending}
            is_told = len(places) <= MOST_PLACES and "" not in places
            where = f" in {' and '.join(f'{place}/' for place in places)}" if is_told else ""
            how = f" ({extra_for(ending)})" if extra_for(ending) else ""
            said.append(f"{sum(places.values()):,} {ending or 'without an ending'}{where}{how}")
        if self.made:
            said.append(f"{_files(self.made)} that clfew made")
        said += [f"{_files(count)} in {name}/" for name, count in sorted(self.others.items())]
        if self.empty:
            named = ", ".join(f"{name}/" for name in self.empty[:MOST_PLACES])
            more = f" and {len(self.empty) - MOST_PLACES} more" if len(self.empty) > MOST_PLACES else ""
            said.append(f"nothing in {named}{more}")
        return ", ".join(said)


def _files(count: int) -> str:
    return f"{count:,} file{'s' if count != 1 else ''}"


def walk_images(folder: Path) -> tuple[list[str], LeftOut]:
    """Returns the image files below `folder`, as sorted relative paths, and what is left out.

    Files and folders whose name starts with a dot are skipped. Links to folders are followed, and each
    folder is listed once. Folders of other programs, and those that clfew wrote, are passed over.
    """
    images: list[str] = []
    left_out = LeftOut()
    seen: set[tuple[int, int]] = set()
    # Folders come before links to folders, and both are sorted by name. So a folder that has two names
    # is always listed under the same one: names decide which images are held out for testing.
    pending, links = [""], list[str]()
    while pending or links:
        relative = pending.pop() if pending else links.pop(0)
        found = _scan(folder / relative, seen)
        if found is None:
            continue
        entries = sorted(found, key=lambda entry: entry.name)
        if relative and is_own_folder(folder / relative, {entry.name for entry in entries}):
            left_out.made += _count_files(folder / relative, entries, seen)
            continue
        if relative and not entries and len(left_out.empty) < MOST_EMPTY:
            left_out.empty.append(relative)
        for entry in entries:
            name = f"{relative}/{entry.name}" if relative else entry.name
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                if _OF_OTHERS.fullmatch(entry.name.lower()):
                    left_out.others[entry.name] += _count_files(folder / name, None, seen)
                else:
                    (links if entry.is_symlink() else pending).append(name)
            elif (ending := os.path.splitext(entry.name)[1].lower()) in EXTENSIONS:
                images.append(name)
            else:
                left_out.files["/".join(relative.split("/")[:2]), ending] += 1
    return sorted(images), left_out


def _count_files(
    folder: Path, entries: list[os.DirEntry[str]] | None, seen: set[tuple[int, int]]
) -> int:
    """Returns the number of files below a folder. entries: of the folder, where they are known."""
    count = 0
    for entry in (_scan(folder, seen) or []) if entries is None else entries:
        if _is_folder(entry) and not entry.is_symlink():
            count += _count_files(folder / entry.name, None, seen)
        else:
            count += 1
    return count


def _scan(folder: Path, seen: set[tuple[int, int]]) -> list[os.DirEntry[str]] | None:
    """Returns the entries of a folder and adds it to `seen`; returns None if it was there already."""
    try:
        status = os.stat(folder)
        place = (status.st_dev, status.st_ino)
        if place in seen:
            return None
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
        names, left_out = walk_images(path)
        if not names:
            only = f", only {left_out.words()}" if left_out.words() else ""
            raise UserError(
                f"There are no images in {argument}{only}.", "name a folder with images below it."
            )
        if left_out.words():
            console.say(f"read as    {len(names):,} images in {argument}; left out: {left_out.words()}")
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
