"""Groups: images that belong together, such as the frames of a burst, the slices of a patient or the
copies of a picture. A group is on one side of every split.
"""

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import safetensors.numpy

from clfew import console
from clfew.data.cache_arrays import cache_folder
from clfew.data.cache_folder import ImageCache
from clfew.data.joined import components, first_of_set, pairs_of_same
from clfew.data.near import KINDS, RELATED_RULE, NearPairs, near_groups, near_pairs
from clfew.data.source import Source
from clfew.errors import UsageError, UserError
from clfew.runs.files import write_bytes

FIRST_RULE = 5
"""The rule of sources from which on groups count (see `source.RULE`)."""


def grouped(source: Source, group_by: str | None) -> Source:
    """Returns the source with the groups that the option --group-by names: the number of a folder in the
    images' names, counted from 1, or a regular expression with one group. Images without that folder or
    a match are alone. None leaves the groups that the source has. Raises UsageError."""
    if group_by is None:
        return source
    is_number = group_by.isascii() and group_by.isdecimal() and len(group_by) < 5
    name_of = _folder(int(group_by)) if is_number else _match(group_by)
    names = [name_of(identity) for identity in source.identities]
    if not any(names):
        raise UserError(
            f"--group-by {group_by[:60]} finds a group for none of the images in {source.spec}, such as "
            f"{source.identities[0]}.",
            "name a folder by its number from 1, or a regular expression with one group: '(.*)_[0-9]+'.",
        )
    return with_groups(source, names, f"by {group_by}")


def with_groups(source: Source, names: list[str], found: str) -> Source:
    """Returns the source with a group for each image, "" for none. found: how, in words."""
    number = {name: i for i, name in enumerate(sorted(set(names) - {""}))}
    groups = np.array([number.get(name, -1) for name in names], dtype=np.int64)
    alone = int((groups < 0).sum())
    words = f"{len(number):,} groups {found}" + (f", {alone:,} images alone" if alone else "")
    if source.groups is not None:
        groups = _both(source.groups, groups)
    return replace(source, groups=groups, reading="; ".join(filter(None, (source.reading, words))))


def _both(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the groups that two groupings make together, -1 for images that are alone in both."""
    pairs = [pairs_of_same(each, np.flatnonzero(each >= 0)) for each in (first, second)]
    joined = components(np.concatenate(pairs), len(first))
    return np.where((first < 0) & (second < 0), -1, joined)


def _folder(number: int) -> Callable[[str], str]:
    if number < 1:
        raise UsageError("--group-by 0: folders are counted from 1.", "for example: --group-by 2.")

    def name_of(identity: str) -> str:
        folders = identity.split("/")[:-1]
        return folders[number - 1] if len(folders) >= number else ""

    return name_of


def _match(pattern: str) -> Callable[[str], str]:
    hint = "for example --group-by '(.*)_[0-9]+', or --group-by 2 for the second folder."
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(
            f"--group-by {pattern[:60]} is no regular expression ({error}).", hint
        ) from None
    if compiled.groups != 1:
        raise UsageError(
            f"--group-by {pattern[:60]} has {compiled.groups} groups in brackets, not one.", hint
        )

    def name_of(identity: str) -> str:
        found = compiled.search(identity)
        return found[1] or "" if found else ""

    return name_of


def groups_of(source: Source, cache: ImageCache) -> np.ndarray | None:
    """Returns the group of each image of a source: int64 (N,), the index of its first image. None before
    rule 5, where every image is alone.

    A group is what the source or the user calls one, files of the same bytes, and images that are nearly
    the same (see `near`), joined where they overlap.
    """
    if source.rule < FIRST_RULE:
        return None
    return groups_of_pictures(source, pictures_of(source, cache))


def groups_of_pictures(source: Source, pictures: np.ndarray) -> np.ndarray:
    """Returns the groups of `groups_of` from the pictures of `pictures_of`."""
    if source.groups is None:
        return pictures
    named = pairs_of_same(source.groups, np.flatnonzero(source.groups >= 0))
    pairs = np.concatenate([np.stack([np.arange(len(source)), pictures], 1), named])
    return first_of_set(components(pairs, len(source)))


def pictures_of(source: Source, cache: ImageCache) -> np.ndarray:
    """Returns which images show one picture, files of the same bytes and images that are nearly the same
    (see `near`), whatever group they are in: int64 (N,), the index of the first one."""
    near = near_groups(near_pairs_of(source, cache), len(source))
    same = pairs_of_same(cache.digests, cache.good)
    pairs = np.concatenate([np.stack([np.arange(len(source)), near], 1), same])
    return first_of_set(components(pairs, len(source)))


def near_pairs_of(source: Source, cache: ImageCache) -> NearPairs:
    """Returns the pairs of nearly identical images, one of each file. They are kept beside the image
    caches, by names and bytes: from caches of other sides, an image could be in another group in a
    later command, on another side of the split."""
    # By the last rule that changed what is found: pairs that were found before are still those.
    rule = min(max(FIRST_RULE, source.rule), RELATED_RULE)
    key = f"pairs {rule}\0{source.scale}\0"
    digest = hashlib.blake2b(key.encode(), digest_size=12)
    digest.update("\0".join(source.identities).encode("utf-8", "surrogateescape"))
    digest.update(cache.digests.astype("<u8").tobytes())
    file = cache_folder() / f"near-{digest.hexdigest()}.safetensors"
    with contextlib.suppress(OSError, TypeError, ValueError, safetensors.SafetensorError):
        return _checked(NearPairs(**safetensors.numpy.load_file(file)), len(source))
    # One of each file: its copies are joined to it anyway.
    firsts = np.unique(cache.digests[cache.good], return_index=True)[1]
    some = cache.good[np.sort(firsts)]
    found = near_pairs(cache.pixels, some, source.identities, source.rule)
    with contextlib.suppress(OSError, UserError):  # Then they are found again the next time.
        file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(file, safetensors.numpy.save(vars(found)))
    return found


def _checked(found: NearPairs, count: int) -> NearPairs:
    """Returns pairs that were kept. Raises ValueError if they are not those of `count` images."""
    pairs = len(found.pairs)
    shapes = [(pairs, 2), (pairs,), (pairs,), found.flat.shape]
    dtypes = [np.int64, np.float32, np.uint8, np.int64]
    for array, shape, dtype in zip(vars(found).values(), shapes, dtypes, strict=True):
        if array.shape != shape or array.dtype != dtype:
            raise ValueError("other arrays")
    indices = np.concatenate([found.pairs.ravel(), found.flat.ravel()])
    if ((indices < 0) | (indices >= count)).any() or (found.kinds >= len(KINDS)).any():
        raise ValueError("other images")
    return found


def contradictions(source: Source, cache: ImageCache) -> np.ndarray:
    """Returns the indices of labelled images that are one file with two labels or more, sorted."""
    known = cache.good[source.labels[cache.good] >= 0]
    pairs = np.unique(np.stack([cache.digests[known], source.labels[known].astype(np.uint64)]), axis=1)
    digests, counts = np.unique(pairs[0], return_counts=True)
    return known[np.isin(cache.digests[known], digests[counts > 1])]


def group_words(groups: np.ndarray) -> str:
    """Returns in words how many groups of several images there are, "" for none."""
    sizes = Counter(np.bincount(groups)[np.unique(groups)].tolist())
    several = sum(count for size, count in sizes.items() if size > 1)
    images = sum(size * count for size, count in sizes.items() if size > 1)
    return f"{images:,} images in {console.plural(several, 'group')}" if several else ""
