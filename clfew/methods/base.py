"""The base class of all pretraining methods, functions that several of them use, and their registry."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from clfew.data.augment import Recipe, random_views
from clfew.data.colour import LUMA
from clfew.data.to_device import constant
from clfew.models.encoder import RGB, Encoder, freeze_statistics
from clfew.training.batch import Batch

Pictures = list[tuple[str, Tensor]]
"""Titles, each with the images (N, 3, H, W) in [0, 1] that are shown below it."""


class Method(nn.Module):
    """A pretraining method. Subclasses define `loss`, and override the rest where they need it.

    encoder: the network that is trained. recipe: how random views are made for these images; a method
    uses those of its settings that its paper uses. gentle: True if the encoder starts from weights that
    are worth keeping; its BatchNorm layers then keep their statistics. `projector` holds the layers on
    top of the features, if the method has any; fine-tuning starts from the first of them.
    """

    input = RGB
    """Which input the encoder gets: RGB, LIGHTNESS or LAB (see `clfew.models.encoder`)."""

    large_batches = False
    learning_rate: float | None = None
    """The learning rate for AdamW, if the method needs another optimizer than the default; else None."""

    crop_side: float | None = None
    """The side of its crops as a fraction of the image's shorter side, if its paper crops at one scale
    and that costs no accuracy here (examples/benchmarks/crops.py); None for crops of random area."""

    shows_whole_images = True
    """False if the encoder learns from pieces of images or from damaged images. BatchNorm's statistics
    are then estimated on whole images after training."""

    rows_by_image = False
    """Whether the network gets all pieces of an image one after the other, not those of one kind of all
    images (see `training.whole_batch`)."""

    def __init__(self, encoder: Encoder, recipe: Recipe, gentle: bool = False) -> None:
        super().__init__()
        self.encoder, self.recipe, self.gentle = encoder, recipe, gentle
        self.projector = nn.Sequential()

    @staticmethod
    def encoder_name(name: str) -> str:
        """Returns the name of the network to build if the user asks for `name`."""
        return name

    def train(self, mode: bool = True) -> "Method":
        super().train(mode)
        if self.gentle:
            freeze_statistics(self.encoder)
        return self

    def one_view(self, batch: Batch, size: int | None = None) -> Tensor:
        """Returns a random view of each image, (B, 3, size, size) in [0, 1]. size: None is the
        encoder's."""
        arguments = batch.images, batch.aspects, size or self.encoder.size
        return random_views(*arguments, self.recipe, batch.random, views=1)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of a batch of cached images, and values to log with it."""
        raise NotImplementedError

    def look_at(self, images_NxSxSx3: Tensor, aspects_N: Tensor) -> None:
        """Called once before training with some of the images. A resumed run gets the same ones."""

    def after_step(self, progress: float) -> None:
        """Called after each step of the optimizer. progress: the fraction of the run done, in (0, 1]."""

    @torch.no_grad()
    def pictures(self, batch: Batch) -> Pictures:
        """Returns columns of pictures that show what the method does with a few images."""
        raise NotImplementedError


def crops_and_flips(recipe: Recipe, grey: float = 0.0) -> Recipe:
    """Returns the recipe without colour jitter and blur. grey: the fraction of views without colour."""
    return replace(recipe, jitter=0, grey=grey, blur=0)


def without_colour(images_NxCxHxW: Tensor) -> Tensor:
    """Returns the brightness of each pixel (ITU-R 601) in all three channels."""
    weights = constant(LUMA, images_NxCxHxW.device).to(images_NxCxHxW.dtype).view(1, 3, 1, 1)
    return (images_NxCxHxW * weights).sum(1, keepdim=True).expand_as(images_NxCxHxW)


def decoder(channels: int, outputs: int, start: int, end: int) -> nn.Sequential:
    """Returns a decoder from maps of `start` pixels a side to maps (N, outputs, end, end).

    It alternates upsampling and convolutions. Each convolution halves the number of channels, down to
    16, because the largest maps cost most.
    """
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
"""All pretraining methods, by the name that --method takes."""


def register_method(name: str, method: type[Method]) -> None:
    """Registers `method` under `name`, which --method, `pretrain` and `compare` then take."""
    METHODS[name] = method
