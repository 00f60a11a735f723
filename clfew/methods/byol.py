"""BYOL: one network predicts what a slowly moving copy of it says of another view; nothing repels.

Grill et al., Bootstrap Your Own Latent, NeurIPS 2020 (equation 2, appendices A and B).

Shape suffixes: B images in the batch, D features, P projected features.
"""

import copy
import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clfew.augment import Recipe, random_views
from clfew.encoders import Encoder, freeze_statistics
from clfew.methods.method import Method, Pictures, spread
from clfew.training.batch import Batch

MOMENTUM = 0.97
"""Of the target at the start. The paper's 0.996 is for 1000 epochs; its code takes 0.99 for 100 and 300
and 0.97 for 40, and the runs here are short."""


def byol_loss(prediction_BxP: Tensor, target_BxP: Tensor) -> Tensor:
    """Squared distance of unit vectors (equation 2), 2 - 2 cos, the mean over the batch, in float32."""
    with torch.autocast(prediction_BxP.device.type, enabled=False):
        return (2 - 2 * F.cosine_similarity(prediction_BxP.float(), target_BxP.float(), dim=1)).mean()


def momentum_at(progress: float, start: float = MOMENTUM) -> float:
    """τ = 1 - (1 - τ₀)·(cos(π·progress) + 1) / 2, from τ₀ to 1 (appendix B)."""
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2


def layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, linear: the projector and the predictor (appendix B)."""
    return nn.Sequential(
        nn.Linear(inputs, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )


class BYOL(Method):
    """The online network (encoder, projector, predictor) and its target, a moving average of the first
    two. The target's own BatchNorm sees batches, as the online network's does, so its running statistics
    are those of its own weights."""

    def __init__(self, encoder: Encoder, recipe: Recipe, gentle: bool = False) -> None:
        super().__init__(encoder, recipe, gentle)
        hidden = min(4096, 4 * encoder.dim)
        self.projector = layers(encoder.dim, hidden, 256)
        self.predictor = layers(256, hidden, 256)
        self.target = copy.deepcopy(nn.Sequential(encoder, self.projector)).requires_grad_(False)
        # Appendix B, table 6: hue and saturation vary less than SimCLR's; the second view has little
        # blur and is solarised at times.
        self.second = replace(recipe, blur=0.2 * recipe.blur, solarise=0.2)

    def train(self, mode: bool = True) -> "BYOL":
        super().train(mode)
        if self.gentle:
            freeze_statistics(self.target)
        return self

    def views(self, batch: Batch) -> Tensor:
        arguments = batch.images, batch.aspects, self.encoder.size
        first = random_views(*arguments, self.recipe, batch.random, views=1)
        return torch.cat([first, random_views(*arguments, self.second, batch.random, views=1, first=1)])

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        views_2BxCxSxS = self.views(batch)
        projected_2BxP = self.projector(self.encoder(views_2BxCxSxS))
        predicted = self.predictor(projected_2BxP).chunk(2)
        with torch.no_grad():
            target = self.target(views_2BxCxSxS).chunk(2)
        loss = byol_loss(predicted[0], target[1]) + byol_loss(predicted[1], target[0])
        return loss, {"spread": spread(projected_2BxP)}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        online = [*self.encoder.parameters(), *self.projector.parameters()]
        step = 1 - momentum_at(progress)
        for average, value in zip(self.target.parameters(), online, strict=True):
            average.lerp_(value, step)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Pictures:
        first, second = self.views(batch).chunk(2)
        return [("a view", first), ("another", second)]
