"""What is found in the decoded images: those that cannot be used, copies, contradicting labels."""

import shlex
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from clfew import console
from clfew.data.cache_folder import ImageCache
from clfew.data.groups import FIRST_RULE, near_pairs_of
from clfew.data.joined import pairs_of_same
from clfew.data.near import KINDS
from clfew.data.source import Source
from clfew.data.splits import split_to_test
from clfew.quality.finding import Finding, joined
from clfew.quality.listing import findings_in_listing

MOST_SAID = 6
"""The most findings that `say_check` names."""


def findings_in_pixels(source: Source, cache: ImageCache) -> list[Finding]:
    """Returns images that cannot be used, and those that show the same picture."""
    return [*_unusable(source, cache), *findings_of_copies(source, cache)]


def _unusable(source: Source, cache: ImageCache) -> list[Finding]:
    found = []
    if cache.bad:
        says = "They are skipped: replace them, or remove them."
        bad = np.setdiff1d(np.arange(len(source)), cache.good).tolist()
        reasons = dict(cache.bad)
        notes = [reasons.get(source.identities[i], "") for i in bad]
        title, sets = "images that cannot be read", [[i] for i in bad]
        found.append(Finding("unreadable", title, says, True, len(bad), sets, notes))
    if len(flat := near_pairs_of(source, cache).flat):
        # Only one of each file has been looked at.
        same = np.isin(cache.digests[cache.good], cache.digests[flat])
        sets = [[i] for i in cache.good[same].tolist()]
        says = (
            "Nothing can be learned from them: look whether the camera was covered or a file is damaged."
        )
        title = "images of one flat colour"
        found.append(Finding("flat", title, says, True, len(sets), sets))
    return found


def findings_of_copies(source: Source, cache: ImageCache) -> list[Finding]:
    """Returns the sets of images that show the same picture, each kind of trouble for itself.

    In a chain of images, each nearly the same as the next, the ends may be different pictures. So a
    chain crosses a split, or has two labels, by two direct neighbours, and only they are named.
    """
    exact, near, frames = _pairs(source, cache)
    files = {each[0]: each for each in joined(exact, len(source))}
    several = "One picture with two labels is right once at most: correct the list, or remove one."
    leak = (
        "What was learned is tested on, so the accuracy is too high. clfew does not learn from images "
        "that belong to test images; better remove one of each."
    )
    kept = "They stay on one side of every split."

    def has_two(images: list[int]) -> bool:
        return _has_two_labels(source, images)

    def is_across(images: list[int]) -> bool:
        return _is_across(source, images)

    def is_plain(images: list[int]) -> bool:
        return not has_two(images) and not is_across(images)

    no_pairs = np.empty((0, 2), np.int64)
    same = [each for each in files.values() if is_plain(each)]
    several_of_near = _sets(source, {}, _without(near, files, has_two), has_two)
    across, torn = _sets(source, files, near, is_across), _sets(source, {}, frames, is_across)
    near_only, bursts = _sets(source, {}, near, is_plain), _sets(source, {}, frames, is_plain)
    contradicting = _sets(source, files, no_pairs, has_two)
    kinds: list[tuple[str, str, str, bool, list[list[int]]]] = [
        ("contradictions", "files with two labels", several, True, contradicting),
        ("near_contradictions", "near copies with two labels", several, True, several_of_near),
        ("across_splits", "copies on both sides of the test split", leak, True, across),
        ("torn_bursts", "bursts on both sides of the test split", leak, True, torn),
        ("copies", "copies of the same bytes", f"{kept} They cost time.", False, same),
        ("near_copies", "near copies", f"{kept} They may be labelled once.", False, near_only),
        ("bursts", "frames of bursts", kept, False, bursts),
    ]
    return [
        Finding(name, title, says, needs, sum(map(len, sets)), sets)
        for name, title, says, needs, sets in kinds
        if sets
    ]


def _sets(
    source: Source,
    files: dict[int, list[int]],
    pairs: np.ndarray,
    is_kind: Callable[[list[int]], bool],
) -> list[list[int]]:
    """Returns the sets of images that are of a kind: those of one file, and those that pairs of the kind
    join. files: the images of each file that there is several times, by the first. pairs: of images that
    show the same picture, one of each file."""
    links = [[a, b] for each in files.values() if is_kind(each) for a, b in pairwise(each)]
    for a, b in pairs.tolist():
        both = [files.get(a, [a]), files.get(b, [b])]
        if is_kind([*both[0], *both[1]]):
            links += [[a, b], *([x, y] for each in both for x, y in pairwise(each))]
    return joined(np.array(links, dtype=np.int64).reshape(-1, 2), len(source))


def _without(
    pairs: np.ndarray, files: dict[int, list[int]], is_kind: Callable[[list[int]], bool]
) -> np.ndarray:
    """Returns the pairs of which neither image is of a file that is of a kind by itself."""
    own = [first for first, each in files.items() if is_kind(each)]
    return pairs[~np.isin(pairs, own).any(axis=1)]


def _pairs(source: Source, cache: ImageCache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns pairs that join the files of the same bytes, and the pairs of near copies and of frames,
    in which there is one of each file."""
    exact = pairs_of_same(cache.digests, cache.good)
    near = near_pairs_of(source, cache)
    is_frame = near.kinds == KINDS.index("frame")
    return exact, near.pairs[~is_frame], near.pairs[is_frame]


def copies_of(source: Source, cache: ImageCache) -> np.ndarray:
    """Returns pairs of images that show the same picture, int64 (P, 2), the lower index first. Several
    of one file are joined by some of their pairs."""
    return np.sort(np.concatenate(_pairs(source, cache)), axis=1)


def _has_two_labels(source: Source, images: list[int]) -> bool:
    labels = source.labels[images]
    return len(np.unique(labels[labels >= 0])) > 1


def _is_across(source: Source, images: list[int]) -> bool:
    """Returns whether some of the images are in the test split that the data has, and others not."""
    test = split_to_test_of(source)
    return test is not None and 0 < int((source.splits[images] == test).sum()) < len(images)


def split_to_test_of(source: Source) -> str | None:
    """Returns the data's own test split, of unlabelled sources too; None where there is none."""
    own = split_to_test(source)
    if own is None and not source.is_labelled and (source.splits == "test").any():
        return "test"
    return own


def say_check(source: Source, cache: ImageCache, spec: str) -> None:
    """Reports in one line what `clfew check` finds by names and pixels. spec: the source as the user
    named it. Of sources read by rules before 5, which know no copies, nothing is said."""
    if source.rule < FIRST_RULE:
        return
    found = [*findings_in_pixels(source, cache), *findings_in_listing(source)]
    found.sort(key=lambda each: not each.needs_person)
    if not found:
        console.say("check      nothing was found that you should know")
        return
    said = ", ".join(f"{each.title} ({each.count:,})" for each in found[:MOST_SAID])
    more = f" and {len(found) - MOST_SAID} more" if len(found) > MOST_SAID else ""
    console.say(f"check      {said}{more}: see clfew check {shlex.quote(spec)} --full")
