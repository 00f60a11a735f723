"""Chooses images that cover the others: MaxHerding and UHerding.

Bae, Noh, Sutherland, Generalized Coverage for More Robust Low-Budget Active Learning, ECCV 2024: each
image is covered as well as its most similar labelled image is similar to it, and the next image to label
is the one that adds most to the sum of this over all images (equation 4, algorithm 1). With each image
weighted by the classifier's uncertainty it is UHerding (Bae, Sutherland, Oliveira, Uncertainty Herding,
ICLR 2025, section 3).

The sum is over a sample of the images, the reference. What each candidate adds is kept, and after each
choice it is reduced by what those images of the reference count less that are covered better now: all in
all about five times the work of computing it once, for a hundred choices or a thousand.

Shape suffixes: N candidates, R images of the reference, L labelled images, A axes.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clfew.selection.codes import STEPS, as_numbers, kernel
from clfew.selection.pool import Turns

WEIGHTS = 16
"""The largest weight of an image of the reference."""

_BLOCK = 1000
"""So many images of the reference are summed in float32: WEIGHTS * STEPS * _BLOCK < 2^24 is exact."""

_AT_ONCE = 2**20
"""So many values of the kernel are computed at a time."""


@dataclass(frozen=True)
class Reference:
    """The images to cover.

    codes: float32 (R, A). weights: float32 (R,), integers from 0 to WEIGHTS. covered: float32 (R,),
    integers from 0 to STEPS. power: of the kernel.
    """

    codes: Tensor
    weights: Tensor
    covered: Tensor
    power: int


def reference_of(
    codes_RxA: np.ndarray, labelled_LxA: np.ndarray, power: int, uncertainty_R: np.ndarray | None = None
) -> Reference:
    """Returns the images to cover, and how well labelled images cover them. uncertainty: from 0 to 1,
    None for 1 everywhere."""
    codes, labelled = as_numbers(codes_RxA), as_numbers(labelled_LxA)
    covered = torch.zeros(len(codes))
    for part in labelled.split(_rows_at_once(len(codes))) if len(labelled) else ():
        covered = torch.maximum(covered, kernel(part, codes, power).amax(0))
    weights = torch.ones(len(codes))
    if uncertainty_R is not None:
        weights = torch.from_numpy(np.round(WEIGHTS * uncertainty_R).astype(np.float32))
    return Reference(codes, weights, covered, power)


def herded(codes_NxA: np.ndarray, reference: Reference, budget: int, turns: Turns) -> list[int]:
    """Returns the rows of the candidates to label, at most `budget`, the first one first.

    Where several add the same, the first row is taken: what is chosen depends on the order of the
    candidates, and on nothing else. turns: which candidates may be taken; it is changed.
    """
    candidates, covered = as_numbers(codes_NxA), reference.covered
    chosen: list[int] = []
    added = _sums(candidates, reference, covered, torch.full_like(covered, math.inf))
    while len(chosen) < min(budget, len(candidates)):
        best = int(np.where(turns.open, added, -1).argmax())
        chosen.append(best)
        turns.take(best)
        near = kernel(candidates[best : best + 1], reference.codes, reference.power)[0]
        better = near > covered
        part = Reference(
            reference.codes[better], reference.weights[better], covered[better], reference.power
        )
        added -= _sums(candidates, part, part.covered, near[better])
        covered = torch.maximum(covered, near)
    return chosen


def _sums(candidates: Tensor, reference: Reference, low_R: Tensor, high_R: Tensor) -> np.ndarray:
    """Returns for each candidate the weighted sum of what its kernel has between `low` and `high` over
    the images of the reference: int64 (N,)."""
    total = np.zeros(len(candidates), np.int64)
    blocks = [slice(first, first + _BLOCK) for first in range(0, len(reference.codes), _BLOCK)]
    step, done = _rows_at_once(min(_BLOCK, len(reference.codes))), 0
    for part in candidates.split(step):
        for rows in blocks:
            near = kernel(part, reference.codes[rows], reference.power)
            between = near.minimum(high_R[rows]).sub_(low_R[rows]).relu_()
            total[done : done + len(part)] += (
                (between @ reference.weights[rows]).numpy().astype(np.int64)
            )
        done += len(part)
    return total


def _rows_at_once(columns: int) -> int:
    return max(1, _AT_ONCE // max(1, columns))


assert WEIGHTS * STEPS * _BLOCK < 2**24
