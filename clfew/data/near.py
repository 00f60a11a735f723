"""Finds images that are nearly the same, by their cached pixels: copies, resized or re-encoded ones,
frames of one burst.

An image's signature is a small version of it, whose colours have mean 0 and which has standard deviation
1, and besides its mean colour, which weighs little. Two signatures are apart by the root mean square of
their difference: 0 for the same picture, next to 0 if one is brighter or of more contrast, and about 1.4
for unrelated ones.
"""

import re
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from clfew.data.cache_arrays import is_flat
from clfew.data.joined import components, first_of_set
from clfew.data.nearest import nearest

KINDS = ("copy", "mirrored", "frame")
"""Why two images are nearly the same: copies, mirror images of each other, frames of one burst."""

RELATED_RULE = 6
"""The rule of sources (see `source.RULE`) from which on copies are also those that are much nearer to
each other than to anything else, and mirror images. In rule 5 they are within COPY."""

GRID = 16
"""The side of a signature's pixels."""

FLAT = 2.0
"""The standard deviation in grey levels below which an image is too flat to be like another one."""

COPY = 0.08
"""How far apart two signatures are at most that show one picture, wherever the files lie."""

RELATED, ALONE = 0.25, 0.5
"""Copies that lost more, such as small images saved in poor quality: nearer to each other than this part
of the distance to unrelated images, and than this part of that to the neighbour number _FARTHER. So many
similar things are no copies. By these, none of 2,062 hand signs are copies, 13 pairs of 2,100 aerial
photographs (they show one place), 17 pairs of 6,000 images of Fashion-MNIST (products that look alike)
and 343 pairs of 60,000 of CIFAR-10, where those looked at are copies."""

OTHER_COLOUR = 60.0
"""How many grey levels apart in a mean colour two images are that show one shape and are no copies."""

FRAMES, UNRELATED, CLOSER = 3, 0.05, 0.35
"""Frames of a burst move, but follow each other in the order of their names: at most so many places
apart, and closer than this part of the distance to the nearest of unrelated images (the quantile of a
random sample)."""

MOST_IN_GROUP, GROUP_FRACTION = 1000, 0.1
"""Chains of images, each nearly the same as the next, are cut at their widest steps where they grow to
more images, or to a larger part of the source."""

_SAMPLE = 256
_BURST = 50
_NEIGHBOURS = 16
_FARTHER = 10
_AXES, _MORE_AXES = 8, 64
_CHUNK = 1024


@dataclass(frozen=True)
class NearPairs:
    """Pairs of images that are nearly the same.

    pairs: int64 (P, 2), the indices of two images, the lower one first. apart: float32 (P,), how far
    apart their signatures are. kinds: uint8 (P,), indices into KINDS. flat: int64, the indices of images
    of one colour, which are compared with none.
    """

    pairs: np.ndarray
    apart: np.ndarray
    kinds: np.ndarray
    flat: np.ndarray


def near_pairs(
    pixels: np.ndarray, good: np.ndarray, identities: list[str], rule: int = RELATED_RULE
) -> NearPairs:
    """Finds the pairs of images that are nearly the same.

    pixels: uint8 (N, S, S, 3), of an image cache. good: the indices of the readable images to compare.
    identities: the names of all N. rule: see `source.RULE`.
    """
    small, varied = signatures(pixels, good)
    flat = np.array([i for i in good[~varied].tolist() if is_flat(pixels[i])], dtype=np.int64)
    small, rows = (small, good) if varied.all() else (small[varied], good[varied])
    if len(rows) < 2:
        return NearPairs(_NO_PAIRS, np.empty(0, np.float32), np.empty(0, np.uint8), flat)
    order = _ordered([identities[i] for i in rows])
    unrelated = _unrelated(small, order)
    mirrored, apart_mirrored = _NO_PAIRS, np.empty(0, np.float32)
    if rule < RELATED_RULE:
        copies = _copies_before(small)
    else:
        copies, mirrored, apart_mirrored = _copies(small, unrelated)
    frames = _frames(small, order, unrelated)
    # Frames that follow each other may be as near as copies that lost much. The first kind is kept.
    is_close = distances(small, copies) <= COPY
    plain = np.concatenate([copies[is_close], frames, copies[~is_close]])
    counts = [int(is_close.sum()), len(frames), int((~is_close).sum()), len(mirrored)]
    kinds = np.repeat([KINDS.index(kind) for kind in ("copy", "frame", "copy", "mirrored")], counts)
    apart = np.concatenate([distances(small, plain), apart_mirrored])
    pairs, firsts = np.unique(
        np.sort(np.concatenate([plain, mirrored]), axis=1), axis=0, return_index=True
    )
    return NearPairs(rows[pairs], apart[firsts], kinds[firsts].astype(np.uint8), flat)


def near_groups(found: NearPairs, count: int) -> np.ndarray:
    """Returns groups of nearly identical images: int64 (N,), the index of the first image in each
    image's group, its own where it is alone. count: N."""
    most = max(2, min(MOST_IN_GROUP, int(GROUP_FRACTION * count)))
    return first_of_set(_joined(found.pairs, found.apart, count, most))


def signatures(pixels: np.ndarray, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the signatures of images of an image cache, float32 (N, 3 GRID² + 3), and which are not
    flat, bool (N,)."""
    average = _averaging(pixels.shape[1])
    size = 3 * GRID * GRID
    result = np.empty((len(indices), size + 3), np.float32)
    varied = np.empty(len(indices), bool)
    for start in range(0, len(indices), _CHUNK):
        some = slice(start, start + _CHUNK)
        images = pixels[indices[some]].astype(np.float32).transpose(0, 3, 1, 2)
        small = average @ images @ average.T
        # The colour of all of an image would hide what it shows.
        means = small.mean((2, 3))
        small = (small - means[..., None, None]).reshape(len(images), -1)
        deviation = small.std(1, keepdims=True)
        varied[some] = deviation[:, 0] >= FLAT
        result[some, :size] = small / np.maximum(deviation, FLAT)
        result[some, size:] = means * (COPY * np.sqrt(size) / OTHER_COLOUR)
    return result, varied


def distances(small: np.ndarray, pairs: np.ndarray, other: np.ndarray | None = None) -> np.ndarray:
    """Returns how far apart the signatures of each pair are: float32 (P,). other: where the second ones
    are, if not in `small`."""
    other = small if other is None else other
    parts = np.array_split(pairs, max(1, len(pairs) // 20_000))
    return np.concatenate([((small[p[:, 0]] - other[p[:, 1]]) ** 2).mean(1) ** 0.5 for p in parts])


def _averaging(side: int) -> np.ndarray:
    """Returns the matrix (GRID, side) that averages `side` pixels to GRID, with parts of pixels."""
    edges = np.arange(GRID + 1) * side / GRID
    pixels = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (overlap.clip(0) * GRID / side).astype(np.float32)


def _copies(
    small: np.ndarray, unrelated: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the pairs that show one picture, of each image with its nearest ones; those that show it
    mirrored; and how far these are apart. unrelated: see `_unrelated`."""
    axes = _principal(small, _MORE_AXES)
    projected = small @ axes
    closest = np.full(len(small), COPY) if unrelated is None else np.maximum(COPY, RELATED * unrelated)
    farther: np.ndarray | None = None
    found = []
    for is_mirrored in (False, True):
        queries = projected
        if is_mirrored:
            parts = [_mirrored(small[i : i + _CHUNK]) @ axes for i in range(0, len(small), _CHUNK)]
            queries = np.concatenate(parts)
        apart, places = nearest(projected, queries, _NEIGHBOURS, same=not is_mirrored)
        if farther is None:
            farther = places[:, min(_FARTHER, places.shape[1]) - 1]
        # A projection brings two signatures never farther apart than they are.
        first, column = np.nonzero(apart <= closest[:, None] * np.sqrt(small.shape[1]))
        pairs = np.stack([first, places[first, column]], 1)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        found.append(_confirmed(small, pairs, closest, farther, is_mirrored))
    (copies, _), (mirrored, apart) = found
    return copies, mirrored, apart


def _confirmed(
    small: np.ndarray, pairs: np.ndarray, closest: np.ndarray, farther: np.ndarray, is_mirrored: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns which pairs show one picture, and how far they are apart. closest: how near each image's
    copies are at most. farther: the neighbour that no copy comes near to."""
    parts = [
        distances(_mirrored(small[some[:, 0]]), np.stack([np.arange(len(some)), some[:, 1]], 1), small)
        if is_mirrored
        else distances(small, some)
        for some in np.array_split(pairs, max(1, len(pairs) // 20_000))
    ]
    apart = np.concatenate(parts)
    within = apart <= np.minimum(closest[pairs[:, 0]], closest[pairs[:, 1]])
    pairs, apart = pairs[within], apart[within]
    ends = [distances(small, np.stack([pairs[:, k], farther[pairs[:, k]]], 1)) for k in (0, 1)]
    kept = (apart <= COPY) | (apart <= ALONE * np.minimum(*ends))
    return pairs[kept], apart[kept]


def _mirrored(small: np.ndarray) -> np.ndarray:
    """Returns the signatures of the mirror images."""
    size = 3 * GRID * GRID
    turned = small[:, :size].reshape(-1, 3, GRID, GRID)[..., ::-1].reshape(-1, size)
    return np.concatenate([turned, small[:, size:]], axis=1)


def _copies_before(small: np.ndarray) -> np.ndarray:
    """Returns the pairs that show one picture as rule 5 has them."""
    axes = _principal(small, _AXES)
    projected = small @ axes
    # A projection brings two signatures never farther apart than they are.
    radius = COPY * np.sqrt(small.shape[1])
    neighbours = min(_NEIGHBOURS + 1, len(small))
    _, found = cKDTree(projected).query(projected, neighbours, distance_upper_bound=radius, workers=-1)
    first = np.repeat(np.arange(len(small)), neighbours)
    pairs = np.stack([first, found.ravel()], 1)
    pairs = pairs[(pairs[:, 1] < len(small)) & (pairs[:, 0] != pairs[:, 1])]
    return pairs[distances(small, pairs) <= COPY]


def _principal(small: np.ndarray, axes: int) -> np.ndarray:
    """Returns the axes along which signatures vary most (3 GRID² + 3, axes)."""
    some = small[np.linspace(0, len(small) - 1, min(len(small), 5000)).astype(int)]
    some = some - some.mean(0)
    _, vectors = np.linalg.eigh(some.T @ some)
    return vectors[:, -axes:].astype(np.float32)


_NO_PAIRS = np.empty((0, 2), np.int64)


def _unrelated(small: np.ndarray, order: np.ndarray) -> np.ndarray | None:
    """Returns how far each image is from the nearest of unrelated ones, float32 (N,); None where there
    are too few images to know. order: of the images by their names."""
    count = len(small)
    if count < 2 * _NEIGHBOURS:
        return None
    sample = np.random.default_rng(0).choice(count, min(_SAMPLE, count), replace=False)
    places = np.argsort(order)
    closest = np.empty(count, np.float32)
    for start in range(0, count, _CHUNK):
        some = small[start : start + _CHUNK]
        squares = (some**2).mean(1)[:, None] + (small[sample] ** 2).mean(1)
        products = some @ small[sample].T / small.shape[1]
        apart = np.maximum(squares - 2 * products, 0) ** 0.5
        # What is near in the order of names may be of the same burst.
        steps = np.abs(places[start : start + len(some), None] - places[sample])
        apart[steps <= min(_BURST, count // 4)] = np.nan
        closest[start : start + len(some)] = np.nanquantile(apart, UNRELATED, axis=1)
    return closest


def _frames(small: np.ndarray, order: np.ndarray, unrelated: np.ndarray | None) -> np.ndarray:
    """Returns the pairs of images that follow each other and are closer than unrelated ones. order: of
    the images by their names. unrelated: see `_unrelated`."""
    if unrelated is None:
        return _NO_PAIRS
    pairs = np.concatenate([np.stack([order[:-k], order[k:]], 1) for k in range(1, FRAMES + 1)])
    limit = CLOSER * np.minimum(unrelated[pairs[:, 0]], unrelated[pairs[:, 1]])
    return pairs[distances(small, pairs) <= limit]


def _ordered(names: list[str]) -> np.ndarray:
    """Returns the order of names in which numbers count as such: 2 before 10."""

    def key(index: int) -> list[tuple[int, int, str]]:
        parts = re.split(r"([0-9]{1,18})", names[index])
        # Every second part is a number.
        return [(0, int(part), "") if i % 2 else (1, 0, part) for i, part in enumerate(parts)]

    return np.array(sorted(range(len(names)), key=key), dtype=np.int64)


def _joined(pairs: np.ndarray, apart: np.ndarray, count: int, most: int) -> np.ndarray:
    """Returns the number of each image's group, of images that are joined by pairs, where groups of more
    than `most` images are joined by their closer pairs only."""
    joined, widest = components(pairs, count), apart.max(initial=0)
    for part in (0.7, 0.5, 0.35, 0.25, 0.15, 0.0):
        too_large = np.bincount(joined)[joined[pairs[:, 0]]] > most
        if not too_large.any():
            break
        kept = ~too_large | (apart <= part * widest)
        pairs, apart = pairs[kept], apart[kept]
        joined = components(pairs, count)
    return joined
