"""What a training objective is given at each step."""

from dataclasses import dataclass

from torch import Tensor

from clfew.randomness import ImageRandom


@dataclass(frozen=True)
class Batch:
    """B images as stored, with what is needed to draw views of them.

    images: uint8, (B, S, S, 3). aspects: float32, (B,), width / height before storing.
    random: the draws of these images in this epoch. labels: int64, (B,), where the objective
    learns from labels. progress: share of the training done, in [0, 1].
    """

    images: Tensor
    aspects: Tensor
    random: ImageRandom
    labels: Tensor | None = None
    progress: float = 0.0
