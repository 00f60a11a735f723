"""Chooses images that cover the others: MaxHerding and UHerding.

Bae, Noh, Sutherland, Generalized Coverage for More Robust Low-Budget Active Learning, ECCV 2024: each
image is covered as well as its most similar labelled image is similar to it, and the next image to label
is the one that adds most to the sum of this over all images (equation 4, algorithm 1). With each image
weighted by the classifier's uncertainty it is UHerding (Bae, Sutherland, Oliveira, Uncertainty Herding,
ICLR 2025, section 3).

The sum is over a sample of the images, the reference. What is added by an image can only shrink as
others are taken, so that it is computed anew only for those that may be the next (Minoux 1978).

Shape suffixes: N candidates, R images of the reference, L labelled images, A axes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clfew.selection.codes import STEPS, Codes, as_numbers, kernel
from clfew.selection.pool import Turns

WEIGHTS = 16
"""The largest weight of an image of the reference."""

_BLOCK = 1000
"""So many images of the reference are summed in float32: WEIGHTS * STEPS * _BLOCK < 2^24 is exact."""

_CHUNK = 1024
_AT_ONCE = 256


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
    codes, covered = as_numbers(codes_RxA), torch.zeros(len(codes_RxA))
    for start in range(0, len(labelled_LxA), _CHUNK):
        near = kernel(as_numbers(labelled_LxA[start : start + _CHUNK]), codes, power)
        covered = torch.maximum(covered, near.amax(0))
    weights = torch.ones(len(codes))
    if uncertainty_R is not None:
        weights = torch.from_numpy(np.round(WEIGHTS * uncertainty_R).astype(np.float32))
    return Reference(codes, weights, covered, power)


def herded(codes: Codes, reference: Reference, budget: int, turns: Turns) -> list[int]:
    """Returns the rows of the candidates to label, at most `budget`, the first one first.

    Where several add the same, the first row is taken: what is chosen depends on the order of the
    candidates, and on nothing else. codes: of the candidates. turns: which of them may be taken. Changes
    both `turns` and how the reference is covered.
    """
    chosen: list[int] = []
    chunks = [range(start, min(start + _CHUNK, len(codes))) for start in range(0, len(codes), _CHUNK)]
    gains = [_gains(codes.read(np.array(chunk)), reference) for chunk in chunks]
    bound = np.concatenate(gains or [np.empty(0, np.int64)])
    while len(chosen) < min(budget, len(codes)):
        best = _largest(codes, reference, bound, turns.open)
        chosen.append(best)
        turns.take(best)
        near = kernel(as_numbers(codes.read(np.array([best]))), reference.codes, reference.power)[0]
        torch.maximum(reference.covered, near, out=reference.covered)
    return chosen


def _largest(codes: Codes, reference: Reference, bound_N: np.ndarray, open_N: np.ndarray) -> int:
    """Returns the first of the open rows that add most. bound: what each adds at most, which is made
    exact for those that may be the largest."""
    exact: set[int] = set()
    while True:
        most_N = np.where(open_N, bound_N, -1)
        best = int(most_N.argmax())
        if best in exact or most_N[best] <= 0:
            return best
        count = min(_AT_ONCE, len(most_N))
        rows = np.union1d(np.argpartition(-most_N, count - 1)[:count], [best])
        rows = rows[most_N[rows] > 0]
        bound_N[rows] = _gains(codes.read(rows), reference)
        exact.update(rows.tolist())


def _gains(codes_NxA: np.ndarray, reference: Reference) -> np.ndarray:
    """Returns what each candidate adds, int64 (N,)."""
    candidates, total = as_numbers(codes_NxA), np.zeros(len(codes_NxA), np.int64)
    for start in range(0, len(reference.codes), _BLOCK):
        rows = slice(start, start + _BLOCK)
        near = kernel(candidates, reference.codes[rows], reference.power)
        added = near.sub_(reference.covered[rows]).relu_() @ reference.weights[rows]
        total += added.numpy().astype(np.int64)
    return total


assert WEIGHTS * STEPS * _BLOCK < 2**24
