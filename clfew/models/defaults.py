"""What `auto` chooses, each with its reason."""

import math

import numpy as np
import torch

from clfew.data.augment import Recipe
from clfew.data.image_cache import ImageCache
from clfew.data.splits import evenly_spaced
from clfew.errors import UserError
from clfew.models.encoder import RGB, as_input
from clfew.models.pretrained import Expected

CROP_AREA = 0.3

PRETRAINED_LEAST, PRETRAINED_MOST_ON_CPU = 96, 128
"""Pixels. Networks trained on large images see little in smaller ones; larger ones take a CPU too
long.
"""


def choose_size(
    size: int | None, native: int, device: torch.device, many: bool = False
) -> tuple[int, str]:
    """The side of the images the encoder sees: their own (`native`), within what the device can do.

    many: whether it learns from all images, for many epochs, as pretraining does. On a CPU, images of
    25 to 40 pixels are then seen at 24: in the time of one epoch at 32 there are almost two, which in
    runs of minutes is worth more than the pixels.
    """
    if size is not None:
        return size, "as asked for"
    if many and device.type == "cpu" and 24 < native <= 40:
        return 24, f"the images are {native} px; a CPU gets through more of them at 24"
    most = 224 if device.type == "cuda" else 64
    # A multiple of four divides well over the stages of an encoder.
    resolved = min(most, max(16, math.ceil(native / 4) * 4))
    limit = f", {most} at most on a {device.type.upper()}" if native > most else ""
    return resolved, f"the images are {native} px{limit}"


def choose_pretrained_size(
    size: int | None, native: int, expected: Expected, device: torch.device
) -> tuple[int, str]:
    """The side at which a pretrained encoder sees images: their own, enlarged to at least 96 pixels and
    to no more than the encoder was trained at (128 on a CPU). Raises UserError for a size that an
    encoder with one size does not take."""
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
    return resolved, f"the images are {native} px, the pretrained encoder's {expected.size}"


def cached_side(size: int, native: int) -> int:
    """Images are kept larger than the encoder sees them, by a quarter or up to half where that is
    their own size, so that crops stay sharp; smaller ones at their own size."""
    return max(16, native) if native <= 1.5 * size else math.ceil(1.25 * size)


def choose_encoder(name: str, size: int, images: int, device: torch.device) -> tuple[str, str]:
    """A network that gets enough epochs in a usual budget on this device."""
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
    """At least a dozen steps an epoch, within 32 and 128 on a CPU, 512 on a GPU. large: what is trained
    is so small that a batch of 512 costs nothing."""
    if batch is not None:
        if batch > images:
            raise UserError(
                f"--batch {batch} is more than the {images} images there are to learn from.",
                f"use --batch {2 ** int(math.log2(images))}, or leave it out.",
            )
        return batch, "as asked for"
    if large:
        return min(images, 512), "features of views, not images"
    most = 512 if device.type == "cuda" else 128
    fitting = 2 ** int(math.log2(max(1, images / 12)))
    return min(images, max(32, min(most, fitting))), f"{images:,} images"


def choose_recipe(size: int, cache: ImageCache, indices: np.ndarray, flip: bool) -> tuple[Recipe, str]:
    """Random views as in the paper's appendix A, scaled for small images (appendix B.9: half the
    colour strength, no blur); at full strength where the images of the store are grey.

    Crops cover 30 % of an image or more, not 8 %: that suits runs of fewer than a hundred epochs.
    """
    if size >= 64:
        return Recipe(CROP_AREA, flip, jitter=1.0, blur=0.5), "with blur, as for large images"
    pixels = cache.pixels[evenly_spaced(indices, 200)].astype(np.int16)
    if np.abs(pixels - pixels.mean(axis=3, keepdims=True)).mean() < 0.5:
        return Recipe(CROP_AREA, flip, jitter=1.0, blur=0.0), "the images are grey, only light changes"
    return Recipe(CROP_AREA, flip, jitter=0.5, blur=0.0), "no blur, as for small images"


def normalisation(
    cache: ImageCache, indices: np.ndarray, input: str = RGB
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation, of each channel that an encoder sees, over a thousand images."""
    pixels = cache.pixels[evenly_spaced(indices, 1000)]
    if input != RGB:
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        channels = as_input(images, input).permute(0, 2, 3, 1).reshape(-1, 3).double().numpy()
    else:
        channels = pixels.reshape(-1, 3).astype(np.float64) / 255
    return channels.mean(0).tolist(), np.maximum(channels.std(0), 0.05).tolist()
