"""BYOL: a network predicts the output of a slowly moving copy of itself for another view of the image,
without negative pairs.

Grill et al., Bootstrap Your Own Latent, NeurIPS 2020 (equation 2, section 3.3; views: appendix B).

Shape suffixes: B images in the batch, D features, P projected features.
"""

import copy
import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clfew.data.augment import Recipe, random_views
from clfew.methods.base import Method, Pictures
from clfew.methods.collapse import health
from clfew.models.encoder import Encoder, freeze_statistics
from clfew.training.batch import Batch

MOMENTUM = 0.97
"""The target's momentum at the start. The paper's 0.996 is for 1000 epochs of ImageNet; its code uses
0.99 for 100 and 300 epochs and 0.97 for 40. What counts is the number of steps, and the runs here have
thousands at most."""


def byol_loss(prediction_BxP: Tensor, target_BxP: Tensor) -> Tensor:
    """Returns the squared distance of the unit vectors (equation 2), 2 - 2 cos, averaged over the batch,
    in float32."""
    with torch.autocast(prediction_BxP.device.type, enabled=False):
        return (2 - 2 * F.cosine_similarity(prediction_BxP.float(), target_BxP.float(), dim=1)).mean()


def momentum_at(progress: float, start: float = MOMENTUM) -> float:
    """Returns τ = 1 - (1 - τ₀)·(cos(π·progress) + 1) / 2, which rises from τ₀ to 1 (section 3.3)."""
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2


def layers(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Returns the layers of the projector and of the predictor: linear, BatchNorm, ReLU, linear
    (section 3.3)."""
    return nn.Sequential(
        nn.Linear(inputs, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )


class BYOL(Method):
    """The online network (encoder, projector, predictor) and its target, a moving average of the encoder
    and the projector.

    The target's BatchNorm estimates its own running statistics from the batches, as the online network's
    does, so they fit the target's weights. Each network gets the two views in separate passes: the views
    have different statistics, which BatchNorm would mix in a common pass.
    """

    def __init__(self, encoder: Encoder, recipe: Recipe, gentle: bool = False) -> None:
        # Appendix B, table 6: at most half of SimCLR's jitter, and half of that for saturation. The
        # first view is always blurred; the second one is rarely blurred and sometimes solarised.
        recipe = replace(
            recipe, jitter=min(0.5, recipe.jitter), saturation=0.5, blur=1.0 if recipe.blur else 0
        )
        super().__init__(encoder, recipe, gentle)
        hidden = min(4096, 4 * encoder.dim)
        self.projector = layers(encoder.dim, hidden, 256)
        self.predictor = layers(256, hidden, 256)
        self.target = copy.deepcopy(nn.Sequential(encoder, self.projector)).requires_grad_(False)
        self.second = replace(recipe, blur=0.1 * recipe.blur, solarise=0.2)

    def train(self, mode: bool = True) -> "BYOL":
        super().train(mode)
        if self.gentle:
            freeze_statistics(self.target)
        return self

    def views(self, batch: Batch) -> tuple[Tensor, Tensor]:
        arguments = batch.images, batch.aspects, self.encoder.size
        first = random_views(*arguments, self.recipe, batch.random, views=1)
        return first, random_views(*arguments, self.second, batch.random, views=1, first=1)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        views = self.views(batch)
        projected = [self.projector(self.encoder(view)) for view in views]
        predicted = [self.predictor(projection) for projection in projected]
        with torch.no_grad():
            target = [self.target(view) for view in views]
        loss = byol_loss(predicted[0], target[1]) + byol_loss(predicted[1], target[0])
        return loss, health(torch.cat(projected))

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        online = [*self.encoder.parameters(), *self.projector.parameters()]
        step = 1 - momentum_at(progress)
        for average, value in zip(self.target.parameters(), online, strict=True):
            average.lerp_(value, step)

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Pictures:
        first, second = self.views(batch)
        return [("one view", first), ("another view", second)]
