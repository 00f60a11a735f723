"""Batched augmentation: parameters are random for each image, operations run once per batch.

Crop, flip, resize and blur are linear in the pixels and separable, so together they are one pair
of small matrices per image (`resampling_matrix`, `blur_matrix`); brightness, contrast, saturation,
hue and greyscale are (nearly) affine in the colours, so together they are one 3×4 matrix per image
(`colour_matrix`). A view costs two batched matrix products and two passes over the pixels.

Two approximations follow: values are clipped to [0, 1] once at the end rather than after each colour
operation, and hue is a rotation about the grey axis in YIQ instead of in HSV. On real images, against
torchvision's four operations with the same factors, the mean absolute difference is 0.001 without hue
and 0.019 with it, where the jitter itself moves values by 0.110
(examples/benchmarks/augmentation.py, which also shows what that does to accuracy).

Shape suffixes: N images, S side of the cached image, R side of the result, P = R·R pixels. B is the
number of random views, views·N; K is the number of random numbers for each.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clfew.data.colour import LUMA
from clfew.data.randomness import ImageRandom
from clfew.data.to_device import to_device

# RGB to YIQ (NTSC 1953): a hue shift rotates the I-Q plane.
_RGB_TO_YIQ = torch.tensor([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])

# Aspect ratios of random crops (SimCLR, appendix A; torchvision's default).
CROP_RATIO = (3 / 4, 4 / 3)
_CROP_ATTEMPTS = 10

_RANDOM_NUMBERS = [2 * _CROP_ATTEMPTS + 2, 1, 1, 1, 6, 1]
"""Of a view: for the crop (see `crop_boxes`), flip, sigma of the blur, whether to blur, colour (see
`colour_matrix`), whether to solarise."""


@dataclass(frozen=True)
class Recipe:
    """How random views are made.

    crop_area: smallest fraction of the image's area that a crop covers (the largest is 1).
    flip: mirror half of the views.
    jitter: strength s of SimCLR's colour jitter: 0.8 s for brightness, contrast and saturation,
        0.2 s for hue, applied with probability 0.8 (SimCLR, appendix A). 0 turns it off.
    saturation: the fraction of that strength that is used for saturation.
    grey: probability that a view is greyscale.
    blur: probability of a Gaussian blur with sigma in [0.1, 2] and a kernel of a tenth of the side.
    solarise: probability of inverting all values of 0.5 and more (BYOL, appendix B).
    crop_side: side of square crops that all have the same scale, as a fraction of the image's shorter
        side; None for crops of random area and aspect ratio.
    """

    crop_area: float = 0.08
    flip: bool = True
    jitter: float = 1.0
    saturation: float = 1.0
    grey: float = 0.2
    blur: float = 0.5
    solarise: float = 0.0
    crop_side: float | None = None


def random_views(
    images_NxSxSx3: Tensor,
    aspects_N: Tensor,
    size: int,
    recipe: Recipe,
    random: ImageRandom,
    views: int = 2,
    first: int = 0,
) -> Tensor:
    """Returns random views of uint8 images, in [0, 1], of shape (views·N, 3, size, size): float32, or
    bf16 in autocast.

    The first N results are view number `first` of each image, the next N are view number `first + 1`,
    and so on: each view number has its own random numbers. `aspects_N` holds each image's width / height
    before it was cached as a square.
    """
    device = images_NxSxSx3.device
    side = images_NxSxSx3.shape[1]
    numbers = range(first, first + views)
    uniform = np.concatenate([random.uniform(view, sum(_RANDOM_NUMBERS)) for view in numbers])
    random_BxK = to_device(uniform, device)
    crop, flip, blur_sigma, blurs, colour, solarises = random_BxK.split(_RANDOM_NUMBERS, dim=1)

    aspects = aspects_N.repeat(views)
    box = (
        crop_boxes(crop, aspects, recipe.crop_area)
        if recipe.crop_side is None
        else square_boxes(crop, aspects, recipe.crop_side)
    ) * side
    rows = resampling_matrix(box[:, 1], box[:, 3], side, size)
    columns = resampling_matrix(box[:, 0], box[:, 2], side, size)
    if recipe.flip:
        columns = torch.where(flip[:, :, None] < 0.5, columns.flip(1), columns)
    if recipe.blur:
        blur = blur_matrix(0.1 + 1.9 * blur_sigma[:, 0], size, blurs[:, 0] < recipe.blur)
        rows, columns = blur @ rows, blur @ columns

    pixels_Nx3xP = resample(images_NxSxSx3, rows, columns, views)
    if recipe.jitter or recipe.grey:
        mean_Nx3 = pixels_Nx3xP.mean(dim=2)
        matrix_Nx3x4 = colour_matrix(colour, mean_Nx3, recipe.jitter, recipe.grey, recipe.saturation)
        pixels_Nx3xP = torch.baddbmm(matrix_Nx3x4[:, :, 3:], matrix_Nx3x4[:, :, :3], pixels_Nx3xP)
    pixels_Nx3xP.clamp_(0, 1)
    if recipe.solarise:
        pixels_Nx3xP = solarise(pixels_Nx3xP, solarises[:, 0] < recipe.solarise)
    return _as_channels_last(pixels_Nx3xP, size)


def evaluation_view(images_NxSxSx3: Tensor, aspects_N: Tensor, size: int) -> Tensor:
    """Returns the view from which features and predictions are computed: float32 (N, 3, size, size).

    It is the largest centred crop whose aspect ratio is one that training crops have (3:4 to 4:3). So
    an ordinary photo is used whole, and no image is squeezed more than in training.
    """
    side = images_NxSxSx3.shape[1]
    width = (CROP_RATIO[1] / aspects_N).clamp(max=1) * side
    height = (aspects_N / CROP_RATIO[0]).clamp(max=1) * side
    rows = resampling_matrix((side - height) / 2, height, side, size)
    columns = resampling_matrix((side - width) / 2, width, side, size)
    pixels_Nx3xP = resample(images_NxSxSx3, rows, columns).clamp_(0, 1)
    return _as_channels_last(pixels_Nx3xP, size)


def _as_channels_last(pixels_Nx3xP: Tensor, size: int) -> Tensor:
    images = pixels_Nx3xP.view(-1, 3, size, size)
    return images.contiguous(memory_format=torch.channels_last)


def crop_boxes(u: Tensor, aspects_N: Tensor, smallest_area: float) -> Tensor:
    """Returns random crops as (x, y, width, height) in fractions of the image's sides, shape (N, 4).

    The area is uniform in [smallest_area, 1] and the log aspect ratio uniform in log(3/4)..log(4/3),
    both in the image's true geometry. The first of ten attempts that fits is taken, else the largest
    centred crop with an allowed ratio. This is torchvision's RandomResizedCrop.get_params without its
    rounding to whole pixels. `u` holds uniform random numbers, shape (N, 22): ten for the area, ten for
    the ratio, one each for x and y.
    """
    tries = _CROP_ATTEMPTS
    area = (smallest_area + (1 - smallest_area) * u[:, :tries]) * aspects_N[:, None]
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    ratio = torch.exp(low + (high - low) * u[:, tries : 2 * tries])
    # In units of the image's height the image is `aspect` wide and 1 high.
    width = torch.sqrt(area * ratio) / aspects_N[:, None]
    height = torch.sqrt(area / ratio)
    fits = (width <= 1) & (height <= 1)
    first = fits.int().argmax(dim=1, keepdim=True)
    width, height = width.gather(1, first)[:, 0], height.gather(1, first)[:, 0]
    any_fits = fits.any(dim=1)
    width = torch.where(any_fits, width, (CROP_RATIO[1] / aspects_N).clamp(max=1))
    height = torch.where(any_fits, height, (aspects_N / CROP_RATIO[0]).clamp(max=1))
    x = torch.where(any_fits, u[:, 2 * tries], 0.5) * (1 - width)
    y = torch.where(any_fits, u[:, 2 * tries + 1], 0.5) * (1 - height)
    return torch.stack([x, y, width, height], dim=1)


def square_boxes(u: Tensor, aspects_N: Tensor, fraction: float) -> Tensor:
    """Returns square crops at random places, as `crop_boxes` does. Their side is `fraction` of the
    image's shorter side. This is torchvision's Resize(size / fraction), then RandomCrop(size), without
    rounding to whole pixels. `u`: as for `crop_boxes`; only its last two numbers are used."""
    height = fraction * aspects_N.clamp(max=1)
    width = height / aspects_N
    return torch.stack([u[:, -2] * (1 - width), u[:, -1] * (1 - height), width, height], dim=1)


def resampling_matrix(start_N: Tensor, length_N: Tensor, side: int, size: int) -> Tensor:
    """Returns matrices of shape (N, size, side) that cut [start, start + length) out of a line of `side`
    pixels and resize it to `size`.

    Positions are in pixels. The resizing is bilinear with antialiasing. For crops of whole pixels it
    equals torchvision's `resized_crop(..., antialias=True)`.
    """
    length_N = length_N.clamp(min=1)
    scale = (length_N / size)[:, None, None]
    reach = scale.clamp(min=1)
    start, end = start_N[:, None, None], (start_N + length_N)[:, None, None]
    centre = start + (torch.arange(size, device=start_N.device)[:, None] + 0.5) * scale
    # Pixels further away have weight 0, so only these few are computed, then put into their columns.
    taps = min(side, math.ceil(2 * max(1, side / size)) + 1)
    first = (centre - reach - 0.5).ceil().clamp(0, side - taps)
    pixel = first + torch.arange(taps, device=start_N.device) + 0.5
    weight = (1 - (pixel - centre).abs() / reach).clamp(min=0)
    # Pixels outside the crop do not bleed into it. The 1e-3 keeps a boundary pixel despite rounding.
    weight = weight * ((pixel > start - 1e-3) & (pixel < end + 1e-3))
    weight = weight / weight.sum(dim=2, keepdim=True)
    matrix = weight.new_zeros(start_N.shape[0], size, side)
    return matrix.scatter_(2, pixel.long(), weight)


def blur_matrix(sigma_N: Tensor, size: int, chosen_N: Tensor | None = None) -> Tensor:
    """Returns matrices of shape (N, size, size) that apply a Gaussian blur to a line of pixels.

    The kernel's size is a tenth of the side (SimCLR, appendix A), odd and at least 3; edges are
    reflected. This is torchvision's `gaussian_blur`, which blurs rows and columns with the same kernel.
    Images that are not chosen get the identity matrix; if `chosen_N` is None, all are chosen.
    """
    shifts_KxP = _shifts(size, sigma_N.device)
    distance = torch.arange(len(shifts_KxP), device=sigma_N.device)
    weight_NxK = torch.exp(-0.5 * (distance / sigma_N[:, None]) ** 2)
    if chosen_N is not None:
        weight_NxK = torch.where(chosen_N[:, None], weight_NxK, (distance == 0).float())
    # Each distance but 0 has two neighbours, one on either side.
    total = 2 * weight_NxK.sum(dim=1, keepdim=True) - weight_NxK[:, :1]
    return (weight_NxK / total @ shifts_KxP).view(-1, size, size)


@functools.cache
def _shifts(size: int, device: torch.device) -> Tensor:
    """Returns, for each distance 0, 1, … within the blur's kernel, the matrix (size, size) that adds up
    the pixels at this distance, reflected at the edges. They are flattened: shape (K, size·size).
    """
    i = torch.arange(size)[:, None]
    j = torch.arange(size)[None, :]
    distances = torch.arange(max(size // 20, 1) + 1)[:, None, None]
    inside = (i - j).abs() == distances
    left = (i + j == distances) & (j > 0)
    right = (2 * (size - 1) - i - j == distances) & (j < size - 1)
    return (inside.float() + left.float() + right.float()).flatten(1).to(device)


def resample(images_NxSxSx3: Tensor, rows: Tensor, columns: Tensor, views: int = 1) -> Tensor:
    """Applies (V·N, R, S) matrices to the rows and columns of uint8 images.

    Returns float32 in [0, 1] of shape (V·N, 3, R·R). The colours are the middle dimension, between rows
    and columns, until the rows are resampled: so every matrix product is large and memory is moved in
    whole lines.
    """
    count, size, side = rows.shape
    lines = images_NxSxSx3.transpose(2, 3).reshape(-1, side, 3 * side).float().mul_(1 / 255)
    # An image's views are stacked into one matrix, so that its pixels are not copied for each view.
    by_image = rows.view(views, -1, size, side).transpose(0, 1).reshape(-1, views * size, side)
    lines = torch.bmm(by_image, lines).view(-1, views, size, 3, side)
    lines = lines.permute(1, 0, 3, 2, 4).reshape(count, 3 * size, side)
    return torch.bmm(lines, columns.transpose(1, 2)).view(count, 3, size * size)


def solarise(pixels_Nx3xP: Tensor, chosen_N: Tensor, threshold: float = 0.5) -> Tensor:
    """Inverts the values of `threshold` and more in the chosen images, as torchvision's `solarize`."""
    bright = (pixels_Nx3xP >= threshold) & chosen_N[:, None, None]
    return torch.where(bright, 1 - pixels_Nx3xP, pixels_Nx3xP)


def colour_matrix(
    u_Nx6: Tensor, mean_Nx3: Tensor, strength: float, grey: float, saturation: float = 1.0
) -> Tensor:
    """Returns colour jitter followed by greyscale as one affine map per image: (N, 3, 4).

    SimCLR applies the four operations of the jitter in random order. Without clipping in between they
    commute (only brightness and contrast change luma, and those treat all colours alike), so one order
    is enough. `mean_Nx3` is each image's mean colour, towards whose luma contrast pulls. `u_Nx6` holds
    uniform random numbers for, in this order: the factors of brightness, contrast and saturation, the
    hue, whether to jitter at all, and whether to make the image grey.
    """
    light_Nx2 = _factors(u_Nx6[:, :2], 0.8 * strength)
    saturation_N = _factors(u_Nx6[:, 2], 0.8 * strength * saturation)
    angle = 2 * math.pi * 0.2 * strength * (2 * u_Nx6[:, 3] - 1)
    matrix = _compose(saturation_map(saturation_N), hue_map(angle))
    matrix = _compose(contrast_map(light_Nx2[:, 1], mean_Nx3), matrix)
    matrix = _compose(brightness_map(light_Nx2[:, 0]), matrix)
    jitters = (u_Nx6[:, 4] < 0.8)[:, None, None]
    matrix = torch.where(jitters, matrix, torch.eye(3, 4, device=matrix.device))
    without_colour = _compose(saturation_map(torch.zeros(1, device=matrix.device)), matrix)
    return torch.where((u_Nx6[:, 5] < grey)[:, None, None], without_colour, matrix)


def _factors(u: Tensor, reach: float) -> Tensor:
    """Maps uniform random numbers in [0, 1) to factors in [1 - reach, 1 + reach], but not below 0."""
    low = max(0.0, 1 - reach)
    return low + (1 + reach - low) * u


def _compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Returns the affine map x → outer(inner(x)) of two 3×4 matrices."""
    product = outer[:, :, :3] @ inner
    return torch.cat([product[:, :, :3], product[:, :, 3:] + outer[:, :, 3:]], dim=2)


def _with_offset(linear: Tensor, offset: Tensor | None = None) -> Tensor:
    """Appends a column of offsets, by default 0, to 3×3 matrices: (N, 3, 4)."""
    zero = torch.zeros_like(linear[:, :, :1])
    return torch.cat([linear, zero if offset is None else offset], dim=2)


@dataclass(frozen=True)
class _Constants:
    luma: Tensor
    to_yiq: Tensor
    to_rgb: Tensor


@functools.cache
def _constants(device: torch.device) -> _Constants:
    """Returns the constants on a device. They are copied once, as a GPU finishes its work before such a
    copy."""
    to_yiq = _RGB_TO_YIQ.to(device)
    return _Constants(torch.tensor(LUMA, device=device), to_yiq, torch.linalg.inv(to_yiq))


def brightness_map(factor_N: Tensor) -> Tensor:
    """x → factor · x"""
    return _with_offset(factor_N[:, None, None] * torch.eye(3, device=factor_N.device))


def contrast_map(factor_N: Tensor, mean_Nx3: Tensor) -> Tensor:
    """x → factor · x + (1 - factor) · (mean luma of the image)"""
    luma = mean_Nx3 @ _constants(mean_Nx3.device).luma
    offset = ((1 - factor_N) * luma)[:, None, None].expand(-1, 3, 1)
    return _with_offset(factor_N[:, None, None] * torch.eye(3, device=factor_N.device), offset)


def saturation_map(factor_N: Tensor) -> Tensor:
    """x → factor · x + (1 - factor) · (luma of the pixel); factor 0 is greyscale."""
    factor = factor_N[:, None, None]
    luma = _constants(factor_N.device).luma.expand(3, 3)
    return _with_offset(factor * torch.eye(3, device=factor_N.device) + (1 - factor) * luma)


def hue_map(angle_N: Tensor) -> Tensor:
    """Rotates the I-Q plane of YIQ by `angle` (radians); luma is unchanged."""
    cos, sin = torch.cos(angle_N), torch.sin(angle_N)
    rotation = torch.zeros(len(angle_N), 3, 3, device=angle_N.device)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = cos
    rotation[:, 1, 2], rotation[:, 2, 1] = sin, -sin
    constants = _constants(angle_N.device)
    return _with_offset(constants.to_rgb @ rotation @ constants.to_yiq)
