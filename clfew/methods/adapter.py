"""The adapter, a linear layer beside a pretrained encoder: SimCLR on the features of random views.

In a few minutes of training on small images, a large pretrained network forgets more than it learns. The
network's features of two views of an image differ in directions that do not matter for these images. A
linear layer beside the frozen network's own features (`clfew.models.encoder.SideLayer`) learns to leave
these directions out. The features of the views are computed once, and the pretrained weights stay
unchanged.

Shape suffixes: N images, V views of each, D features of the encoder, A adapted features, B images in the
batch.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clfew import console
from clfew.data.augment import Recipe, random_views
from clfew.data.cache_arrays import RowReader
from clfew.data.cache_folder import ImageCache
from clfew.data.randomness import ImageRandom, epoch_order
from clfew.data.to_device import to_device
from clfew.group import command as groups
from clfew.group.command import everywhere
from clfew.methods.collapse import health
from clfew.methods.simclr import nt_xent
from clfew.models.encoder import Encoder, SideLayer
from clfew.models.features import apply_to_cache, batch_size, remembered
from clfew.training.batch import Batch, TrainingData
from clfew.training.budget import Budget
from clfew.training.device import keep_freed_memory
from clfew.training.optim import OptimizerChoice

LAYER, NETWORK = "layer", "network"
"""Which part is trained of a network with pretrained weights: the values of `--adapt`."""

WIDTH = 256
"""The number of adapted features. Of the whitened features, 64 did as well on CIFAR-10."""

VIEWS = 4
MOST_IMAGES = 20_000
VIEWS_FRACTION = 0.6
"""The fraction of a budget in minutes that may be spent on computing features of views."""

_FLOOR = 3.0
"""What the whitening before the first step adds to each variance, as a multiple of their mean."""


def adapter_optimizer(name: str = "auto") -> OptimizerChoice:
    """Returns AdamW, or the optimizer `name`, at a learning rate of 3e-4, because the layer starts close
    to its final weights."""
    chosen = "adamw" if name == "auto" else name
    return chosen, 3e-4, 1e-3, "for one linear layer" if name == "auto" else "as asked for"


class Adapter(nn.Module):
    """SimCLR's loss on a linear layer over cached features (NT-Xent on its output; there is no
    projector).

    batch.images holds the features of V views of each image, (B, V, D). Each step takes two views of
    each image at random.
    """

    large_batches = True

    def __init__(self, encoder: Encoder, temperature: float, decoupled: bool) -> None:
        super().__init__()
        assert encoder.adapter is not None
        encoder.backbone.requires_grad_(False)
        self.encoder, self.projector = encoder, nn.Sequential()
        self.temperature, self.decoupled = temperature, decoupled

    @property
    def layer(self) -> SideLayer:
        """The encoder's adapter. It is a property, not a second attribute, because a saved state has
        each weight under one name only."""
        assert self.encoder.adapter is not None
        return self.encoder.adapter

    def prepare(
        self,
        cache: ImageCache,
        indices: np.ndarray,
        recipe: Recipe,
        seed: int,
        device: torch.device,
        precision: str,
        budget: Budget,
        count: int | None = None,
    ) -> tuple[TrainingData, Budget]:
        """Computes the features of views to train on, and sets the layer's initial weights.

        Returns these features and what is left of the budget. They are of MOST_IMAGES images at most,
        and of no more than VIEWS_FRACTION of a budget in minutes is enough for; in a resumed run, of
        `count` images.
        """
        seconds = 60 * (budget.minutes or budget.default_minutes)
        limit = VIEWS_FRACTION * seconds if budget.epochs is None and count is None else None
        started = time.monotonic()
        with console.progress_bar("views") as update:
            features = view_features(
                self.encoder,
                TrainingData(
                    cache.pixels, cache.aspects, learned_from(indices, seed, count or MOST_IMAGES)
                ),
                recipe,
                seed,
                device,
                precision,
                limit,
                update,
            )
        standardise(self.layer, features)
        whiten(self.layer.linear, features, seed)
        left = max(0.05 * seconds, seconds - (time.monotonic() - started)) / 60
        rest = replace(budget, minutes=budget.minutes and left, default_minutes=left)
        rows = np.arange(len(features))
        return TrainingData(features, np.ones(len(features), np.float32), rows), rest

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        features_BxVxD = batch.images.float()
        count = features_BxVxD.shape[1]
        random_Bx2 = to_device(batch.random.uniform(0, 2), features_BxVxD.device)
        first = (random_Bx2[:, 0] * count).long()
        # Never the same view as the first.
        second = (first + 1 + (random_Bx2[:, 1] * (count - 1)).long()) % count
        rows = torch.arange(len(first), device=first.device)
        pairs_2BxD = torch.cat([features_BxVxD[rows, first], features_BxVxD[rows, second]])
        adapted_2BxA = self.layer.linear(pairs_2BxD)
        loss = nt_xent(adapted_2BxA, self.temperature, self.decoupled)
        return loss, health(adapted_2BxA)


def learned_from(indices: np.ndarray, seed: int, count: int) -> np.ndarray:
    """Returns the `count` images at most, of all, that an adapter is trained on."""
    return indices[epoch_order(seed, 0, len(indices))[:count]]


def view_features(
    encoder: Encoder,
    data: TrainingData,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    precision: str,
    seconds: float | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Computes the features, without any adapter, of V random views of images: float16, (N, V, D).
    Several processes share the images out.

    seconds: when to stop. The result then holds only the first images of the data, each with all of its
    views.
    """
    count = max(1, batch_size(encoder.size, device) // VIEWS)
    views = Views(encoder, data, recipe, seed, device, precision, count)
    latest = None if seconds is None else time.monotonic() + seconds

    def is_going_on(start: int) -> bool:
        progress(start, len(data.indices))
        return latest is None or time.monotonic() <= latest or not start

    if groups.has(data.pixels) and len(data.indices) > count * groups.size():
        parts = everywhere(_view_features_of_share, views, is_going_on=is_going_on)
    else:
        with groups.on_its_own():
            parts = _view_features_of_share(views, is_going_on)
    return np.concatenate(parts)


@dataclass(frozen=True)
class Views:
    """Which views' features are computed. count: of how many images at a time."""

    encoder: Encoder
    data: TrainingData
    recipe: Recipe
    seed: int
    device: torch.device
    precision: str
    count: int

    @torch.no_grad()
    def features(self, backbone: Encoder, rows: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Returns the features of the views of some images: float16, (N, V, D)."""
        device, random = self.device, ImageRandom(self.seed, 0, rows)
        tensors = to_device(images, device), to_device(self.data.aspects[rows], device)
        views = random_views(*tensors, backbone.size, self.recipe, random, VIEWS)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            features = backbone.backbone_features(views).float()
        return features.view(VIEWS, len(rows), -1).transpose(0, 1).half().cpu().numpy()


def _view_features_of_share(
    views: Views, is_going_on: Callable[[int], bool] = lambda start: True
) -> list[np.ndarray]:
    """Computes the features of every so manieth batch in each process. Returns those of all, in order,
    in the leader, which decides before each round of batches whether to go on."""
    group = groups.current()
    rank, size = (0, 1) if group is None else (group.rank, group.size)
    keep_freed_memory(views.device)
    network: Any = views.encoder
    backbone = network.to(views.device, memory_format=torch.channels_last).eval()
    read, parts = RowReader(views.data.pixels), []
    indices = views.data.indices
    batches = [indices[start : start + views.count] for start in range(0, len(indices), views.count)]
    for first in range(0, len(batches), size):
        is_next = is_going_on(first * views.count)
        if not (is_next if group is None else group.numbers([is_next])[0]):
            break
        for rows in batches[first + rank : first + rank + 1]:
            parts.append(views.features(backbone, rows, read(rows)))
    read.close()
    if group is None:
        return parts
    own = np.concatenate([*parts, np.empty((0, *parts[0].shape[1:]), np.float16)])
    of_ranks = [
        np.split(each, range(views.count, len(each), views.count)) for each in group.collect(own)
    ]
    rounds = itertools.zip_longest(*of_ranks)
    return [part for each in rounds for part in each if part is not None and len(part)]


def views_to_teach_with(
    encoder: Encoder,
    cache: ImageCache,
    pool: np.ndarray,
    recipe: Recipe,
    seed: int,
    device: torch.device,
    precision: str,
) -> np.ndarray:
    """Computes the features, without any adapter, of the evaluation view and of V random views of each
    image of the pool: float16, (M, 1 + V, D). They are kept, and not computed again for the same images
    and weights."""
    backbone = encoder.without_adapter()

    def compute(rows: np.ndarray) -> np.ndarray:
        arrays = (cache.pixels, cache.aspects, rows)
        plain = apply_to_cache(backbone, encoder.size, *arrays, device, precision)
        with console.progress_bar("views") as update:
            random = view_features(
                backbone, TrainingData(*arrays), recipe, seed, device, precision, None, update
            )
        return np.concatenate([plain[:, None].astype(np.float16), random], axis=1)

    return remembered(backbone, cache.pixels, pool, compute, "views", recipe, seed, device, precision)


@torch.no_grad()
def standardise(layer: SideLayer, features_NxVxD: np.ndarray) -> None:
    """Sets the mean and standard deviation by which the layer standardises the encoder's features."""
    features = torch.from_numpy(features_NxVxD).flatten(0, 1).float()
    layer.centre.copy_(features.mean(0))
    layer.spread.copy_(features.std(0) + 1e-6)


def whiten(layer: nn.Linear, features_NxVxD: np.ndarray, seed: int) -> None:
    """Sets the layer's initial weights. They scale all differences between views of an image to the same
    size, and keep the directions in which images differ most.

    With W the covariance within images and mean(W) the mean of its eigenvalues, the layer computes
    x → Q P (W + 3 mean(W) I)^-1/2 (x - mean). P takes the first principal components. Q rotates them at
    random, so that no feature is a principal component by itself: the layers that follow scale features
    one by one.
    """
    features = features_NxVxD.astype(np.float32)
    centres_NxD = features.mean(1)
    within = (features - centres_NxD[:, None]).reshape(-1, features.shape[2])
    covariance = within.T @ within / max(1, len(within) - len(features))
    values, vectors = np.linalg.eigh(covariance)
    scale = 1 / np.sqrt(values.clip(0) + _FLOOR * values.mean() + 1e-12)
    whitened = (centres_NxD - centres_NxD.mean(0)) @ (vectors * scale)
    _, _, components = np.linalg.svd(whitened, full_matrices=False)
    kept = components[: layer.out_features]
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(layer.out_features, len(kept))))
    matrix_AxD = rotation @ kept @ (vectors * scale).T
    # The mean length of an image's adapted features is 1, whatever the encoder's scale.
    matrix_AxD /= np.linalg.norm(whitened @ kept.T, axis=1).mean()
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(matrix_AxD))
        layer.bias.copy_(torch.from_numpy(-matrix_AxD @ centres_NxD.mean(0)))
