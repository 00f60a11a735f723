"""Which image of a source a path in a list means."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from clfew.data.lists import is_list, parse
from clfew.data.source import Source


def finder(source: Source, path: Path) -> Callable[[str], int | None]:
    """Returns a function from a path in the list `path` to the image's index, None for no image."""
    by_name = {name: i for i, name in enumerate(source.identities)}
    by_stem = {os.path.splitext(name)[0]: i for name, i in by_name.items()}
    root = parse(source.spec).file.parent if is_list(source.spec) else Path(source.spec)

    @cache
    def by_target() -> dict[str, int]:
        return {os.path.realpath(root / name): i for name, i in by_name.items() if "\0" not in name}

    def find(listed: str) -> int | None:
        name = listed if listed in by_name else listed.replace("\\", "/")
        if name in by_name:
            return by_name[name]
        places = [base / name for base in (path.parent, Path.cwd())]
        for place in places:
            # First without following links: an image that is one is known by its own name.
            for resolves, each in ((False, Path(os.path.abspath(place))), (True, place)):
                if (found := _relative(each, root, resolves)) in by_name:
                    return by_name[found]
        if name in by_stem or "\0" in name or not root.is_dir():
            return by_stem.get(name)
        # The list may name what the source's links point to.
        targets = [by_target().get(os.path.realpath(place)) for place in places]
        return next((target for target in targets if target is not None), None)

    return find


def _relative(file: Path, root: Path, resolves: bool) -> str:
    """Returns the file's name within `root`, if `resolves` is set with links resolved. Returns "" if the
    file is not below `root` or its name is not possible."""
    try:
        # pathlib raises if a link points to itself.
        place = Path(os.path.realpath(file)) if resolves else file
    except ValueError:  # A null byte in the name.
        return ""
    return place.relative_to(root).as_posix() if place.is_relative_to(root) else ""
