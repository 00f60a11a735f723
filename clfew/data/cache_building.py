"""Builds an image cache: decodes every image of a source into its arrays.

It is built in a folder beside its place and then renamed, so a half-built one is never found. Two
commands that build it at once each make their own, and the second one's is thrown away. Several
processes of one command decode parts of it.
"""

import contextlib
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from clfew.data.cache_arrays import create_arrays, map_arrays, reserve
from clfew.data.cache_reuse import digest_of_image, temporary_prefix
from clfew.data.decode import BadImage
from clfew.data.source import Source
from clfew.data.workers import CHUNK, decode_ahead, decoders
from clfew.errors import UserError
from clfew.runs.files import write_json

_ROWS = 8 * CHUNK
"""How many neighbouring images a process decodes before it passes over those of the others."""

ARRAYS = "pixels.safetensors"


def build(
    source: Source, side: int, folder: Path, progress: Callable[[int, int], None], most_bad: float
) -> None:
    """Builds the image cache of a source in this process alone. Raises UserError."""
    with begun(source, side, folder) as temporary:
        bad = decode_part(source, side, temporary, progress)
        finish(source, side, temporary, folder, bad, most_bad)


@contextlib.contextmanager
def begun(source: Source, side: int, folder: Path) -> Iterator[Path]:
    """Makes a folder with empty arrays beside the one that the cache will be in; it is removed at the
    end unless it has been renamed. Raises UserError if there is no space, here and inside this
    context."""
    needed = len(source) * side * side * 3
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        if needed > (free := shutil.disk_usage(folder.parent).free):
            raise UserError(
                f"The decoded images need {needed:,} bytes in {folder.parent}; {free:,} are free.",
                "clear old ones with clfew cache --clear, or set CLFEW_CACHE to a larger disk.",
            )
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=temporary_prefix()))
        create_arrays(temporary / ARRAYS, len(source), side)
        reserve(temporary / ARRAYS)
        yield temporary
    except OSError as error:
        raise UserError(
            f"The decoded images ({needed:,} bytes) cannot be saved in {folder.parent}: "
            f"{error.strerror or error}.",
            "set CLFEW_CACHE to a folder that can be written and has space.",
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def decode_part(
    source: Source,
    side: int,
    temporary: Path,
    progress: Callable[[int, int], None],
    number: int = 0,
    parts: int = 1,
) -> dict[int, str]:
    """Decodes the images of one of several parts into the arrays. Returns the reason for each bad image
    by its index."""
    count = len(source)
    pixels, aspects, digests = map_arrays(temporary / ARRAYS, count, side, "r+")
    bad: dict[int, str] = {}
    own = (i for i in range(count) if i // _ROWS % parts == number) if parts > 1 else range(count)
    for index, image in decode_ahead(own, source.content, side, decoders(), source.scale):
        if index % _ROWS == 0:
            progress(index, count)
        if isinstance(image, BadImage):
            bad[index] = str(image)
        else:
            pixels[index], aspects[index], digests[index] = image.pixels, image.aspect, image.digest
    progress(count, count)
    for array in (pixels, aspects, digests):
        array.flush()
    return bad


def finish(
    source: Source, side: int, temporary: Path, folder: Path, bad: dict[int, str], most_bad: float
) -> None:
    """Writes what the arrays hold, and gives their folder its name. Raises UserError, and OSError."""
    require_usable(source, [(source.identities[i], bad[i]) for i in sorted(bad)], most_bad)
    listed = [[i, source.identities[i], reason] for i, reason in sorted(bad.items())]
    metadata = {"source": source.spec, "images": len(source), "side": side, "bad": listed}
    metadata["scale"] = str(source.scale)
    metadata["bad_digests"] = [digest_of_image(source, index) for index in sorted(bad)]
    write_json(temporary / "store.json", metadata)
    if not (folder / "store.json").exists():
        shutil.rmtree(folder, ignore_errors=True)  # Left by a removal that was killed.
    try:
        os.rename(temporary, folder)
    except OSError:
        if not (folder / "store.json").exists():  # If it does, another process was first.
            raise


def require_usable(source: Source, bad: list[tuple[str, str]], most_bad: float) -> None:
    """Raises UserError if too many images of a source are bad."""
    if len(bad) > most_bad * len(source):
        name, reason = bad[0]
        raise UserError(
            f"{len(bad)} of {len(source)} images in {source.spec} cannot be used "
            f"(the first is {name}: {reason}).",
            "open one in an image viewer: they may be damaged or of another format.",
        )


def _sweep(cache: Path) -> None:
    """Removes what builds on this machine left behind when they were killed."""
    for leftover in cache.glob(".*-*-*"):
        # The whole name of the machine: on a shared disk, one called gpu is not one called gpu-2.
        host, pid, _ = leftover.name.rsplit("-", 2)
        if host == f".{socket.gethostname()}" and pid.isdigit() and not _is_running(int(pid)):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
