"""Features as vectors of small integers, whose products are the same on every machine.

What is chosen must not depend on the processor, the number of threads or the size of a chunk. Sums of
rounded numbers do, and with them which of two nearly equal images is taken. So features become integers:
their products and the sums of these are exact in float32, in any order.

Shape suffixes: N images, D features, A axes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clfew.finetuning.probes import mean_and_std

SCALE = 2048
"""The length of a vector. Products of two are integers of at most SCALE² = 2^22, a quarter of what
float32 counts to: by Cauchy and Schwarz' inequality this holds for each part of the sum, too."""

AXES = 128
"""The most axes, those along which the images vary most. With 32, 64, 128 and 256 the images that were
chosen were as good (training splits of aerial photographs and hand signs)."""

STEPS = 1024
"""The kernel's values are multiples of 1 / STEPS."""


@dataclass(frozen=True)
class Projection:
    """From features to axes: features are standardised, scaled to length 1 and projected.

    mean, std: float32 (D,). axes: float32 (D, A).
    """

    mean: np.ndarray
    std: np.ndarray
    axes: np.ndarray


def projection_of(features_NxD: np.ndarray, is_scaled: bool) -> Projection:
    """Returns the projection on the axes along which a sample of images varies most. is_scaled: see
    `probes.mean_and_std`."""
    mean, std = mean_and_std(features_NxD, is_scaled)
    unit = _unit((features_NxD - mean) / std).astype(np.float64)
    _, axes = np.linalg.eigh(unit.T @ unit)
    return Projection(mean, std, np.ascontiguousarray(axes[:, ::-1][:, :AXES], np.float32))


def codes_of(features_NxD: np.ndarray, projection: Projection) -> np.ndarray:
    """Returns vectors of integers, int16 (N, A), of length SCALE but for rounding."""
    unit = _unit((features_NxD - projection.mean) / projection.std)
    codes: np.ndarray = np.round(_unit(unit @ projection.axes) * SCALE).astype(np.int16)
    return codes


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Scales each row to length 1. Rows of zeros stay."""
    scaled: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)
    return scaled


def as_numbers(codes_NxA: np.ndarray) -> Tensor:
    """Returns codes as float32, to multiply."""
    return torch.from_numpy(np.asarray(codes_NxA, np.float32))


def kernel(one_NxA: Tensor, other_MxA: Tensor, power: int) -> Tensor:
    """Returns how similar images are: float32 (N, M), integers from 0 to STEPS.

    It is ((1 + cosine) / 2) to the power of `power`, a power of two. That is close to a Gaussian kernel
    of the distance d between unit vectors, exp(-(d / σ)²), with σ = 2 / sqrt(power), and needs only
    products, which are rounded alike everywhere.
    """
    near = one_NxA @ other_MxA.T
    near.mul_(0.5 / SCALE**2).add_(0.5).clamp_(0, 1)  # Lengths are rounded.
    for _ in range(power.bit_length() - 1):
        near.square_()
    return near.mul_(STEPS).round_()
