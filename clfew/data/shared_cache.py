"""The image cache of a command that several processes work on.

Each machine builds its own, once, and the processes on it share the decoding. Machines that see the same
cache folder have one in common, which the processes of the first of them build: pages of a file that two
machines write at once could be lost.
"""

import contextlib
import hashlib
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clfew.data.cache_arrays import cache_folder
from clfew.data.cache_building import begun, decode_part, finish, require_usable
from clfew.data.cache_folder import ImageCache, folder_of, is_there, read_cache
from clfew.data.cache_reuse import temporary_prefix
from clfew.data.elsewhere import Part, described, found_here
from clfew.data.pixel_scale import PixelScale
from clfew.data.source import Source
from clfew.errors import UserError
from clfew.group import command as groups
from clfew.group.command import everywhere
from clfew.group.group import Group

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Wanted:
    """An image cache that all processes open. token: the name of a folder that is in the leader's
    cache folder meanwhile. name: by which the processes know its arrays."""

    parts: list[Part]
    scale: PixelScale | None
    count: int
    side: int
    most_bad: float
    token: str
    name: str


def open_together(source: Source, side: int, progress: Progress, most_bad: float) -> ImageCache:
    """Opens the image cache of a source in all processes; see `open_image_cache`."""
    group = groups.current()
    assert group is not None
    token, name = temporary_prefix() + uuid.uuid4().hex, f"{len(group.known_arrays)} {source.spec}"
    wanted = Wanted(described(source), source.scale, len(source), side, most_bad, token, name)
    place = cache_folder() / token
    try:
        with contextlib.suppress(OSError):  # What cannot be written is said where it is built.
            place.mkdir(parents=True)
        return everywhere(open_part, wanted, source=source, progress=progress)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def open_part(
    wanted: Wanted, source: Source | None = None, progress: Progress = lambda done, total: None
) -> ImageCache:
    """What each process does to open an image cache. source: that of the leader."""
    group = groups.current()
    assert group is not None
    is_common = source is not None or (cache_folder() / wanted.token).exists()
    places = group.exchange((0 if is_common else 1 + group.nodes[group.rank], group.nodes[group.rank]))
    own = places[group.rank]
    first = next(rank for rank, each in enumerate(places) if each[0] == own[0])
    # Those on the machine of the first one share the decoding.
    sharing = [rank for rank, each in enumerate(places) if each == places[first]]
    with contextlib.ExitStack() as stack:
        opened: list[Source] = [] if source is None else [source]

        def own_source() -> Source:
            if not opened:
                opened.append(found_here(wanted.parts, wanted.scale, group.own_source))
            return opened[0]

        def begin() -> tuple[Path, Path | None]:
            if group.rank != first:
                return Path(), None
            folder = folder_of(own_source(), wanted.side)
            if is_there(own_source(), wanted.side, folder, progress):
                return folder, None
            return folder, stack.enter_context(begun(own_source(), wanted.side, folder))

        folder, temporary = group.agree(begin)[first]
        # The same folder may be mounted elsewhere.
        folder = cache_folder() / folder.name
        temporary = temporary and cache_folder() / temporary.name

        def decode() -> dict[int, str]:
            if temporary is None or group.rank not in sharing:
                return {}
            number = sharing.index(group.rank)
            return decode_part(own_source(), wanted.side, temporary, progress, number, len(sharing))

        found = group.agree(_writing(decode))

        def end() -> None:
            if temporary is not None and group.rank == first:
                bad = {index: reason for rank in sharing for index, reason in found[rank].items()}
                finish(own_source(), wanted.side, temporary, folder, bad, wanted.most_bad)

        group.agree(_writing(end))
    return _opened(wanted, folder, source, group)


def _opened(wanted: Wanted, folder: Path, source: Source | None, group: Group) -> ImageCache:
    """Opens a cache that has been built, once it is certain that all processes have the same images."""
    opened: list[ImageCache] = []

    def open_it() -> str:
        opened.append(read_cache(folder, wanted.count, wanted.side))
        return hashlib.blake2b(opened[0].digests.tobytes(), digest_size=12).hexdigest()

    contents = group.agree(open_it)
    (cache,) = opened
    if len(set(contents)) > 1:
        digests = group.collect(np.array(cache.digests))
        reasons = group.exchange(dict(cache.bad))
        group.agree(lambda: _refuse(digests, reasons, source, group))
    if source is not None:
        group.agree(lambda: require_usable(source, cache.bad, wanted.most_bad))
    else:
        group.agree(lambda: None)
    arrays = {"pixels": cache.pixels, "aspects": cache.aspects, "digests": cache.digests}
    group.known_arrays |= {(wanted.name, name): array for name, array in arrays.items()}
    return cache


def _refuse(
    digests: list[np.ndarray], reasons: list[dict[str, str]], source: Source | None, group: Group
) -> None:
    """Raises, in the leader, the UserError that says which images differ between the machines."""
    if source is None:
        return
    rank = next(r for r, each in enumerate(digests) if not np.array_equal(each, digests[0]))
    differing = np.flatnonzero(digests[rank] != digests[0])
    name = source.identities[differing[0]]
    known = [*reasons[rank].items(), *reasons[0].items()]
    why = [reason for bad, reason in known if name.endswith(bad)]  # A name may begin otherwise there.
    raise UserError(
        f"{group.name_of(rank).capitalize()} has other images than the first one: {len(differing):,} of "
        f"{len(source):,} differ, such as {name}{f' ({why[0]})' if why else ''}.",
        "copy the images to each machine once more, or put them on a disk that all of them see.",
    )


def _writing(work: Callable[[], groups.T]) -> Callable[[], groups.T]:
    """Returns `work`, whose OSError, of a disk, becomes a UserError."""

    def tried() -> groups.T:
        try:
            return work()
        except OSError as error:
            raise UserError(
                f"The decoded images cannot be saved in {cache_folder()}: {error.strerror or error}.",
                "set CLFEW_CACHE to a folder that can be written and has space.",
            ) from None

    return tried
