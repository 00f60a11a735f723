"""Several encoders side by side, used as one encoder.

Shape suffixes: N images, D features.
"""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clfew.data.augment import resampling_matrix
from clfew.errors import UserError
from clfew.models.encoder import RGB, Encoder

LEAST_STD = 0.01


class SideBySide(Encoder):
    """Several encoders as one, whose features are those of all of them.

    Takes images of the size of the largest encoder, and makes them smaller for the others. The features
    of each encoder are standardised and scaled to length 1, so that each has the same part in the
    similarity of two images, however many features it has.
    """

    centre: Tensor
    std_of_features: Tensor

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        nn.Module.__init__(self)
        self.name = " + ".join(encoder.name for encoder in encoders)
        self.size, self.input, self.stage = max(encoder.size for encoder in encoders), RGB, 0
        self.backbone = nn.ModuleList(encoders)
        self.adapter = None
        self.dims = [encoder.dim for encoder in encoders]
        self.dim = sum(self.dims)
        self.register_buffer("centre", torch.zeros(self.dim))
        self.register_buffer("std_of_features", torch.ones(self.dim))

    @property
    def encoders(self) -> list[Encoder]:
        """The encoders, in the order of their features."""
        return cast(list[Encoder], list(self.backbone.children()))

    def standardise_by(self, features_NxD: np.ndarray) -> None:
        """Sets mean and standard deviation, by which features are standardised, to those of the
        encoders' own features of some images. The standard deviation of a feature that hardly varies is
        at least a hundredth of its encoder's mean one: else it would be all there is of an image in
        which it does vary, as the features of each encoder are scaled to length 1."""
        stds = np.split(features_NxD.std(0), np.cumsum(self.dims)[:-1])
        floored = [each.clip(LEAST_STD * each.mean()) for each in stds]
        with torch.no_grad():
            self.centre.copy_(torch.from_numpy(features_NxD.mean(0)))
            self.std_of_features.copy_(torch.from_numpy(np.concatenate(floored) + 1e-6))

    def backbone_features(self, images_NxCxSxS: Tensor) -> Tensor:
        views = (resized(images_NxCxSxS, encoder.size) for encoder in self.encoders)
        own = [encoder(view) for encoder, view in zip(self.encoders, views, strict=True)]
        return self.joined(torch.cat(own, dim=1))

    def joined(self, features_NxD: Tensor) -> Tensor:
        """Computes the features from the encoders' own, one after the other."""
        standardised = (features_NxD.float() - self.centre) / self.std_of_features
        parts = [F.normalize(part, dim=1) for part in standardised.split(self.dims, dim=1)]
        return torch.cat(parts, dim=1)

    def map_shapes(self) -> list[tuple[int, int]]:
        raise UserError(
            f"{self.name} are several networks, which have no common stages.",
            "name one of them: --from RUN --stage N.",
        )


class WithinLarger(nn.Module):
    """An encoder that takes larger images than its own, as it does beside a larger one."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images_NxCxSxS: Tensor) -> Tensor:
        return self.encoder(resized(images_NxCxSxS, self.encoder.size))


def resized(images_NxCxSxS: Tensor, size: int) -> Tensor:
    """Returns the images with sides of `size` pixels: averaged over areas, as larger images are."""
    side = images_NxCxSxS.shape[-1]
    if side == size:
        return images_NxCxSxS
    start, length = images_NxCxSxS.new_zeros(1).float(), torch.full((1,), float(side))
    matrix_RxS = resampling_matrix(start, length.to(start.device), side, size)[0]
    # In float32: in bfloat16 the weights would be coarse.
    with torch.autocast(images_NxCxSxS.device.type, enabled=False):
        return matrix_RxS @ images_NxCxSxS.float() @ matrix_RxS.T
