"""Finds images that are nearly the same, by their cached pixels: copies, resized or re-encoded ones,
frames of one burst.

An image's signature is a small version of it, whose colours have mean 0 and which has standard deviation
1, and besides its mean colour, which weighs little. Two signatures are apart by the root mean square of
their difference: 0 for the same picture, next to 0 if one is brighter or of more contrast, and about 1.4
for unrelated ones.
"""

import re

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

VERSION = 1
"""Of what `near_groups` returns: another number where that changes."""

GRID = 16
"""The side of a signature's pixels."""

FLAT = 2.0
"""The standard deviation in grey levels below which an image is too flat to be like another one."""

COPY = 0.08
"""How far apart two signatures are at most that show one picture, wherever the files lie."""

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
_AXES = 8
_CHUNK = 1024


def near_groups(pixels: np.ndarray, good: np.ndarray, identities: list[str]) -> np.ndarray:
    """Returns groups of nearly identical images: int64 (N,), the index of the first image in each
    image's group, its own where it is alone.

    pixels: uint8 (N, S, S, 3), of an image cache. good: the indices of its readable images. identities:
    the names of all N.
    """
    groups = np.arange(len(identities))
    small, varied = signatures(pixels, good)
    small, rows = (small, good) if varied.all() else (small[varied], good[varied])
    if len(rows) < 2:
        return groups
    order = _ordered([identities[i] for i in rows])
    pairs = np.concatenate([_copies(small), _frames(small, order)])
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    apart = distances(small, pairs)
    most = max(2, min(MOST_IN_GROUP, int(GROUP_FRACTION * len(identities))))
    joined = _joined(pairs, apart, len(rows), most)
    firsts = np.full(joined.max() + 1, len(identities))
    np.minimum.at(firsts, joined, rows)
    groups[rows] = firsts[joined]
    return groups


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


def _copies(small: np.ndarray) -> np.ndarray:
    """Returns the pairs that show one picture, of each image with its nearest ones."""
    axes = _principal(small)
    projected = small @ axes
    # A projection brings two signatures never farther apart than they are.
    radius = COPY * np.sqrt(small.shape[1])
    neighbours = min(_NEIGHBOURS + 1, len(small))
    _, found = cKDTree(projected).query(projected, neighbours, distance_upper_bound=radius, workers=-1)
    first = np.repeat(np.arange(len(small)), neighbours)
    pairs = np.stack([first, found.ravel()], 1)
    pairs = pairs[(pairs[:, 1] < len(small)) & (pairs[:, 0] != pairs[:, 1])]
    return pairs[distances(small, pairs) <= COPY]


def _principal(small: np.ndarray) -> np.ndarray:
    """Returns the axes along which signatures vary most (3 GRID², _AXES)."""
    some = small[np.linspace(0, len(small) - 1, min(len(small), 5000)).astype(int)]
    some = some - some.mean(0)
    _, vectors = np.linalg.eigh(some.T @ some)
    return vectors[:, -_AXES:].astype(np.float32)


def _frames(small: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Returns the pairs of images that follow each other and are closer than unrelated ones. order: of
    the images by their names."""
    count = len(small)
    if count < 2 * _NEIGHBOURS:
        return np.empty((0, 2), np.int64)  # Too few to know how far apart unrelated images are.
    sample = np.random.default_rng(0).choice(count, min(_SAMPLE, count), replace=False)
    places = np.argsort(order)
    nearest = np.empty(count, np.float32)
    for start in range(0, count, _CHUNK):
        some = small[start : start + _CHUNK]
        squares = (some**2).mean(1)[:, None] + (small[sample] ** 2).mean(1)
        products = some @ small[sample].T / small.shape[1]
        apart = np.maximum(squares - 2 * products, 0) ** 0.5
        # What is near in the order of names may be of the same burst.
        steps = np.abs(places[start : start + len(some), None] - places[sample])
        apart[steps <= min(_BURST, count // 4)] = np.nan
        nearest[start : start + len(some)] = np.nanquantile(apart, UNRELATED, axis=1)
    pairs = np.concatenate([np.stack([order[:-k], order[k:]], 1) for k in range(1, FRAMES + 1)])
    limit = CLOSER * np.minimum(nearest[pairs[:, 0]], nearest[pairs[:, 1]])
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
    joined, widest = _components(pairs, count), apart.max(initial=0)
    for part in (0.7, 0.5, 0.35, 0.25, 0.15, 0.0):
        too_large = np.bincount(joined)[joined[pairs[:, 0]]] > most
        if not too_large.any():
            break
        kept = ~too_large | (apart <= part * widest)
        pairs, apart = pairs[kept], apart[kept]
        joined = _components(pairs, count)
    return joined


def _components(pairs: np.ndarray, count: int) -> np.ndarray:
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (count, count))
    return connected_components(graph, directed=False)[1]
