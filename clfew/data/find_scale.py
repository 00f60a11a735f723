"""Finds the scale of a source's wide pixels from a sample of its images (see `pixel_scale`)."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from clfew.data import decode
from clfew.data.decode import BadImage
from clfew.data.pixel_scale import LARGEST, WHOLE, PixelScale, taken_bands, whole_of
from clfew.data.source import Source
from clfew.data.wide import NotRead, is_tiff

MOST_TRIED = 512
MOST_MEASURED = 64
MOST_BYTES = 2**28
"""A sample is of at most so many images, of which so many are wide, and of so many bytes."""

FEW_BEYOND = 0.25
"""Among images within 16 bits, at most this fraction of others is taken for strays."""

FILLED = 0.0005
"""A value that marks what was not measured has at least this fraction of the pixels."""

OPAQUE, OPAQUE_ELSEWHERE = 0.5, 0.01
"""A band of transparency hides and shows at least this fraction of its pixels as a whole; one with less
is a band of its own: near infrared, or depth."""

PERCENTILES = (0.1, 99.9)
_PIXELS = 10_000
_NARROW = (".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".webp")
_FEW = 64
"""Of files whose endings say that their pixels are not wide, so many are tried."""


@dataclass(frozen=True)
class _Look:
    """What one image shows. values: some of those that are taken. bands: without one of transparency.
    is_opaque: whether one that is declared as transparency is none; None where none is declared."""

    values: np.ndarray
    bands: int
    is_opaque: bool | None
    highest: float | None


def with_scale(
    source: Source, bands: tuple[int, ...] | None = None, kept: PixelScale | None = None
) -> Source:
    """Returns the source with the scale of its wide pixels, and says in its reading what that is.

    bands: those that the user asks for. kept: a scale to keep, that of an artifact that learned with it.
    """
    if kept is not None:
        is_wide = bool(_looks(source, kept.bands, most=1))
        reading = f"{source.reading}; pixels as learned from: {kept.words()}" if is_wide else ""
        return replace(source, scale=kept, reading=reading or source.reading)
    looks = _looks(source, bands)
    scale, words = _scale_of(looks, bands)
    return replace(source, scale=scale, reading="; ".join(filter(None, (source.reading, words))))


def _scale_of(looks: list[_Look], bands: tuple[int, ...] | None) -> tuple[PixelScale | None, str]:
    """Returns the scale, None where there is nothing but ordinary pixels, and words for it, "" where
    nothing is unusual."""
    declared = [look.is_opaque for look in looks if look.is_opaque is not None]
    is_opaque = sum(declared) > len(declared) / 2
    most = max((look.bands + (is_opaque and look.is_opaque is not None) for look in looks), default=0)
    words = []
    measured = _of_most_kind([look for look in looks if look.values.dtype != np.uint8])
    low, high, why = _range_of(measured)
    if why:
        words.append(f"pixel values: {low:,.6g} is black and {high:,.6g} white ({why})")
    if bands is not None:
        named = "bands " + ", ".join(map(str, bands)) if len(bands) > 1 else f"band {bands[0]}"
        words.append(named + (f" of {most}" if most else ""))
    elif most == 2 or most > 3:
        words.append(f"bands 1, 2, {min(most, 3)} of {most} (--bands takes others)")
    is_float = bool(measured) and measured[0].values.dtype.kind == "f"
    scale = PixelScale(low, high, bands, is_float, is_opaque)
    is_usual = scale == PixelScale() and not measured and most in (0, 1, 3)
    return (None if is_usual else scale), ", ".join(words)


def _of_most_kind(looks: list[_Look]) -> list[_Look]:
    """Returns the images with floating-point numbers or those with whole ones, whichever are more; of
    the latter those within 16 bits, unless more than a few go beyond."""
    floats = [look for look in looks if look.values.dtype.kind == "f"]
    whole = [look for look in looks if look.values.dtype.kind != "f"]
    if len(floats) > len(whole):
        return floats
    within = [look for look in whole if _is_within(look.values)]
    return within if len(whole) - len(within) <= FEW_BEYOND * len(whole) else whole


def _is_within(values: np.ndarray) -> bool:
    return not values.size or (values.min() >= WHOLE[0] and values.max() <= WHOLE[1])


def _range_of(looks: list[_Look]) -> tuple[float, float, str]:
    """Returns the values that are black and white, and why, "" if these are those of whole 16 bits."""
    if not looks:
        return *WHOLE, ""
    measured = np.concatenate([look.values.ravel() for look in looks])
    is_float = measured.dtype.kind == "f"
    measured = measured[np.isfinite(measured)].astype(np.float64)
    measured = measured[np.abs(measured) < LARGEST]
    inner = _without_fill(measured)
    if not is_float:  # What is saturated is at the ends.
        within = inner[(inner != WHOLE[0]) & (inner != WHOLE[1])]
        inner = within if len(within) else inner
    if not len(inner):
        return *WHOLE, ""
    low, high = (float(each) for each in np.percentile(inner, PERCENTILES))
    told = {look.highest for look in looks}
    highest = told.pop() if len(told) == 1 else None
    if not is_float and highest and highest / 4 <= high <= highest < WHOLE[1]:
        return 0.0, highest, "the files say so"
    if not is_float and low >= 0 and WHOLE[1] / 2 <= high <= WHOLE[1]:
        return *WHOLE, ""
    if not low < high:
        low, high = (0.0, high) if high > 0 else (low, low + max(1.0, abs(low)))
    count = f"{len(looks)} image" + "s" * (len(looks) > 1)
    return low, high, f"percentiles {PERCENTILES[0]} and {PERCENTILES[1]} of {count}"


def _without_fill(values: np.ndarray) -> np.ndarray:
    """Returns the numbers without the lowest and the highest one, if many pixels have it and it is
    farther from the others than these are from each other: it marks what was not measured."""
    for end in (np.min, np.max):
        if not len(values):
            break
        fill = end(values)
        rest = values[values != fill]
        is_far = len(rest) and abs(fill - (rest.min() if end is np.min else rest.max())) > np.ptp(rest)
        if is_far and len(values) - len(rest) > FILLED * len(values):
            values = rest
    return values


def _looks(source: Source, bands: tuple[int, ...] | None, most: int = MOST_MEASURED) -> list[_Look]:
    """Returns what a sample of the wide images shows, of those outside the test split if there are."""
    candidates = np.flatnonzero(source.splits != "test")
    if not len(candidates):
        candidates = np.arange(len(source))
    # In an order of its own, so that the first are not all of one folder.
    order = np.random.default_rng(0).permutation(candidates)
    looks: list[_Look] = []
    tried: Counter[bool] = Counter()
    size = 0
    for index in order:
        is_narrow = source.identities[index].lower().endswith(_NARROW)
        if tried[is_narrow] >= (_FEW if is_narrow else MOST_TRIED):
            if tried[True] >= _FEW and tried[False] >= MOST_TRIED:
                break
            continue
        tried[is_narrow] += 1
        try:
            content = source.content(int(index))
            look = _look(content, bands)
        except BadImage:
            continue
        looks += [look] if look else []
        size += len(content)
        if len(looks) >= most or size > MOST_BYTES:
            break
    return looks


def _look(content: bytes, bands: tuple[int, ...] | None) -> _Look | None:
    """Returns what an image shows, None if it has no wide pixels or transparency. Raises BadImage."""
    wide = decode.wide_pixels(content, bands)
    if wide is None:
        return None
    try:
        taken = taken_bands(wide, PixelScale(bands=bands))
    except NotRead as error:
        raise BadImage(str(error)) from None
    flat = wide.values.reshape(-1, wide.bands)
    if len(flat) > _PIXELS:
        flat = flat[np.random.default_rng(0).integers(0, len(flat), _PIXELS)]
    values = flat[:, [band - 1 for band in taken]]
    if wide.nodata is not None:
        values = values[(values != wide.nodata).all(axis=1)]
    is_opaque = None
    if wide.has_alpha:
        is_clear = np.isin(flat[:, -1], (0, whole_of(flat.dtype))).mean()
        # In other formats than TIFF nothing else than transparency can be declared.
        is_opaque = bool(is_clear < (OPAQUE if is_tiff(content) else OPAQUE_ELSEWHERE))
    return _Look(values, wide.bands - wide.has_alpha, is_opaque, wide.highest)
