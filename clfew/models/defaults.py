"""The defaults that `auto` chooses, each with its reason in words."""

import math

import numpy as np
import torch

from clfew.data.augment import Recipe
from clfew.data.cache_folder import ImageCache
from clfew.data.splits import evenly_spaced
from clfew.errors import UserError
from clfew.models.encoder import RGB, as_input
from clfew.models.pretrained import Expected

CROP_AREA = 0.3

PRETRAINED_LEAST, PRETRAINED_MOST_ON_CPU = 96, 128
"""Pixels. Networks trained on large images recognise little in smaller ones; on a CPU larger images take
too long.
"""


def choose_size(
    size: int | None, native: int, device: torch.device, many: bool = False
) -> tuple[int, str]:
    """Chooses the side of the encoder's input images: their own side (`native`), with an upper limit by
    device.

    many: whether the encoder trains on all images for many epochs, as in pretraining. On a CPU, images
    of 25 to 40 pixels are then scaled to 24: one epoch at 32 pixels takes as long as almost two at 24,
    which in runs of minutes is worth more than the pixels.
    """
    if size is not None:
        return size, "as asked for"
    if many and device.type == "cpu" and 24 < native <= 40:
        return 24, f"the images are {native} px; at 24 a CPU trains for more epochs"
    most = 224 if device.type == "cuda" else 64
    # A multiple of four can be halved by the stages of an encoder.
    resolved = min(most, max(16, math.ceil(native / 4) * 4))
    limit = f", {most} at most on a {device.type.upper()}" if native > most else ""
    return resolved, f"the images are {native} px{limit}"


def choose_pretrained_size(
    size: int | None, native: int, expected: Expected, device: torch.device
) -> tuple[int, str]:
    """Chooses the side of a pretrained encoder's input images: their own side (`native`), enlarged to at
    least 96 pixels and limited to the side the encoder was trained at (on a CPU also to 128). Raises
    UserError if the encoder takes only one size and `size` is another."""
    if expected.fixed:
        if size not in (None, expected.size):
            raise UserError(
                f"The pretrained encoder takes images of {expected.size} pixels only.",
                f"leave out --size, or train it anew: --init scratch --size {size}.",
            )
        return expected.size, "the pretrained encoder's own"
    if size is not None:
        return size, "as asked for"
    if expected.size < PRETRAINED_LEAST:
        return expected.size or choose_size(None, native, device)[0], "as the weights were trained"
    most = min(expected.size, PRETRAINED_MOST_ON_CPU) if device.type == "cpu" else expected.size
    resolved = min(most, max(PRETRAINED_LEAST, math.ceil(native / 32) * 32))
    return resolved, f"the images are {native} px, those of the pretrained weights {expected.size}"


def cached_side(size: int, native: int) -> int:
    """Returns the side at which images are cached. Images of up to 1.5 times the encoder's input `size`
    are cached at their own size (`native`, at least 16 pixels), larger ones at 1.25 times `size`, so
    that crops stay sharp."""
    return max(16, native) if native <= 1.5 * size else math.ceil(1.25 * size)


def choose_encoder(name: str, size: int, images: int, device: torch.device) -> tuple[str, str]:
    """Chooses a network small enough for enough epochs in a usual budget on this device."""
    if name != "auto":
        return name, "as asked for"
    if device.type == "cuda":
        if size > 64 and images >= 50_000:
            return "resnet50", f"{images:,} images of {size} px on a GPU"
        return "resnet18", f"{images:,} images of {size} px on a GPU"
    return "resnet8-w32", "small enough for many epochs on a CPU"


def choose_batch(
    batch: int | None, images: int, device: torch.device, large: bool = False
) -> tuple[int, str]:
    """Chooses a batch size that gives at least a dozen steps an epoch, between 32 and 128 on a CPU,
    between 32 and 512 on a GPU, and at most the number of images. large: the trained part is so small
    that a batch of 512 costs nothing extra. Raises UserError if `batch` is larger than the number of
    images."""
    if batch is not None:
        if batch > images:
            raise UserError(
                f"--batch {batch} is larger than the number of training images, {images}.",
                f"use --batch {2 ** int(math.log2(images))}, or leave it out.",
            )
        return batch, "as asked for"
    if large:
        return min(images, 512), "trains on features of views, not on images"
    most = 512 if device.type == "cuda" else 128
    power_of_two = 2 ** int(math.log2(max(1, images / 12)))
    return min(images, max(32, min(most, power_of_two))), f"{images:,} images"


def choose_recipe(size: int, cache: ImageCache, indices: np.ndarray, flip: bool) -> tuple[Recipe, str]:
    """Chooses random views as in the SimCLR paper's appendix A, for small images as in appendix B.9:
    half the colour strength, no blur. If the cached images are grey, the strength is not halved.

    Crops cover at least 30 % of an image, not 8 %, which suits runs of fewer than a hundred epochs.
    """
    if size >= 64:
        return Recipe(CROP_AREA, flip, jitter=1.0, blur=0.5), "with blur, as for large images"
    pixels = cache.pixels[evenly_spaced(indices, 200)].astype(np.int16)
    if np.abs(pixels - pixels.mean(axis=3, keepdims=True)).mean() < 0.5:
        return Recipe(CROP_AREA, flip, jitter=1.0, blur=0.0), "grey images: only their lightness changes"
    return Recipe(CROP_AREA, flip, jitter=0.5, blur=0.0), "no blur, as for small images"


def normalisation(
    cache: ImageCache, indices: np.ndarray, input: str = RGB
) -> tuple[list[float], list[float]]:
    """Returns the mean and standard deviation of each channel of the encoder's `input`, over a thousand
    images. Standard deviations are at least 0.05."""
    pixels = cache.pixels[evenly_spaced(indices, 1000)]
    if input != RGB:
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        channels = as_input(images, input).permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
    else:
        channels = pixels.reshape(-1, 3).astype(np.float64) / 255
    return channels.mean(0).tolist(), np.maximum(channels.std(0), 0.05).tolist()
