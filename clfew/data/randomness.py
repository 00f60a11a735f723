"""Random numbers as a pure function of (seed, epoch, image index).

Nothing here has a state: a run that is stopped and resumed, or that reads its batches in another
order, uses exactly the same crops and colours. The mixing function is SplitMix64
(Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014, figure 17).
"""

import hashlib
from dataclasses import dataclass

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: a bijection of uint64. Each changed bit changes half of the result's."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _keys(seed: int, epoch: int, indices: np.ndarray, stream: int) -> np.ndarray:
    """Returns one uint64 key for each image."""
    key = np.zeros(len(indices), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in (seed, epoch, stream):
            key = _mix(key + _GOLDEN + np.uint64(part % 2**64))
        return _mix(key + _GOLDEN + indices.astype(np.uint64))


@dataclass(frozen=True)
class ImageRandom:
    """The random numbers of the images `indices` in one epoch.

    `stream` separates purposes (the first and the second view, say): different streams of the
    same image are independent. first: the first image of the whole batch, where `indices` are a part of
    it.
    """

    seed: int
    epoch: int
    indices: np.ndarray
    first: int | None = None

    def once(self, stream: int, columns: int) -> np.ndarray:
        """Returns the first image's numbers, shape (columns,): for choices made once a batch."""
        first = self.indices[:1] if self.first is None else np.array([self.first])
        return ImageRandom(self.seed, self.epoch, first).uniform(stream, columns)[0]

    def uniform(self, stream: int, columns: int) -> np.ndarray:
        """Returns uniform float32 numbers in [0, 1), of shape (images, columns)."""
        counter = np.arange(1, columns + 1, dtype=np.uint64)
        with np.errstate(over="ignore"):
            keys_NxC = _keys(self.seed, self.epoch, self.indices, stream)[:, None]
            bits_NxC = _mix(keys_NxC + counter * _GOLDEN)
        return (bits_NxC >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def epoch_order(seed: int, epoch: int, images: int) -> np.ndarray:
    """Returns a permutation of range(images) that depends on seed and epoch alone."""
    keys = _keys(seed, epoch, np.arange(images), stream=-1)
    return np.argsort(keys, kind="stable")


def identity_order(seed: int, identities: list[str]) -> np.ndarray:
    """Returns indices that order `identities` by the seed and each identity, not by the order given.

    Adding or removing one identity leaves the relative order of the others as it was.
    """
    digests = [
        hashlib.blake2b(f"{seed}\0{identity}".encode("utf-8", "surrogateescape")).digest()
        for identity in identities
    ]
    return np.array(sorted(range(len(identities)), key=lambda i: digests[i]), dtype=np.int64)
