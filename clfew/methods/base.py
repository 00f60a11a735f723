"""What every pretraining method has: an encoder, a loss, and a few things that only some need."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from clfew.data.augment import Recipe, random_views
from clfew.data.colour import LUMA
from clfew.models.encoder import RGB, Encoder, freeze_statistics
from clfew.training.batch import Batch

Pictures = list[tuple[str, Tensor]]
"""Titles, and the images (N, 3, H, W) in [0, 1] below each."""


class Method(nn.Module):
    """A pretraining method: subclasses define `loss`, and override the rest where they need it.

    encoder: learns. recipe: how random views suit these images; a method takes from it what its paper
    has. gentle: the encoder starts from weights worth keeping: its BatchNorm keeps the statistics it
    has. `projector` holds layers on the features whose first one fine-tuning starts from, if any.
    """

    input = RGB
    """What the encoder is given of the images (see `clfew.models.encoder`)."""

    large_batches = False
    learning_rate: float | None = None
    """AdamW's, where the optimizers that suit the others do not suit it."""

    shows_whole_images = True
    """False where the encoder learns from pieces of images or damaged ones: BatchNorm's statistics are
    then estimated on whole images afterwards."""

    def __init__(self, encoder: Encoder, recipe: Recipe, gentle: bool = False) -> None:
        super().__init__()
        self.encoder, self.recipe, self.gentle = encoder, recipe, gentle
        self.projector = nn.Sequential()

    @staticmethod
    def encoder_name(name: str) -> str:
        """The network to build where the user asks for `name`."""
        return name

    def train(self, mode: bool = True) -> "Method":
        super().train(mode)
        if self.gentle:
            freeze_statistics(self.encoder)
        return self

    def one_view(self, batch: Batch, size: int | None = None) -> Tensor:
        """A random view of each image, (B, 3, size, size) in [0, 1]; of the encoder's size by itself."""
        arguments = batch.images, batch.aspects, size or self.encoder.size
        return random_views(*arguments, self.recipe, batch.random, views=1)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a batch of stored images, and what to log beside it."""
        raise NotImplementedError

    def look_at(self, images_NxSxSx3: Tensor, aspects_N: Tensor) -> None:
        """Called once before training with some of the images, the same ones when a run is resumed."""

    def after_step(self, progress: float) -> None:
        """Called after each step of the optimizer; progress in (0, 1] is the share of the run done."""

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Pictures:
        """What the method makes of a few images, column by column."""
        raise NotImplementedError


def crops_and_flips(recipe: Recipe, grey: float = 0.0) -> Recipe:
    """Views as a recipe has them, without changes of colour and without blur; a share of them grey."""
    return replace(recipe, jitter=0, grey=grey, blur=0)


def without_colour(images_NxCxHxW: Tensor) -> Tensor:
    """The brightness of each pixel in all three channels (ITU-R 601)."""
    weights = images_NxCxHxW.new_tensor(LUMA).view(1, 3, 1, 1)
    return (images_NxCxHxW * weights).sum(1, keepdim=True).expand_as(images_NxCxHxW)


def decoder(channels: int, outputs: int, start: int, end: int) -> nn.Sequential:
    """Maps of `start` pixels a side to maps (N, outputs, end, end): convolutions with upsampling between
    them, half as many channels each time, down to 16: the largest maps cost most."""
    layers: list[nn.Module] = []
    side, width = start, channels
    while side < end:
        side, narrower = min(end, 2 * side), max(16, width // 2)
        layers += [
            nn.Upsample((side, side), mode="bilinear", align_corners=False),
            nn.Conv2d(width, narrower, 3, 1, 1, bias=False),
            nn.BatchNorm2d(narrower),
            nn.ReLU(),
        ]
        width = narrower
    return nn.Sequential(*layers, nn.Conv2d(width, outputs, 3, 1, 1))


METHODS: dict[str, type[Method]] = {}
"""The pretraining methods, by the name that --method takes."""


def register_method(name: str, method: type[Method]) -> None:
    """Makes `method` what --method NAME takes, and `pretrain` and `compare` with it."""
    METHODS[name] = method
