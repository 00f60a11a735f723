"""Batched augmentation: parameters are drawn per image, operations run once per batch.

Crop, flip, resize and blur are linear in the pixels and separable, so together they are one pair
of small matrices per image (`resampling_matrix`, `blur_matrix`); brightness, contrast, saturation,
hue and greyscale are (nearly) affine in the colours, so together they are one 3×4 matrix per image
(`colour_matrix`). A view costs two batched matrix products and two passes over the pixels.

Two approximations follow: values are clipped to [0, 1] once at the end rather than after each colour
operation, and hue is a rotation about the grey axis in YIQ instead of in HSV. On real images, against
torchvision's four operations with the same factors, the mean absolute difference is 0.001 without hue
and 0.019 with it, where the jitter itself moves values by 0.110
(examples/benchmarks/augmentation.py, which also shows what that does to accuracy).

Shape suffixes: N images, S side of the stored image, R side of the result, P = R·R pixels.
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

# RGB to YIQ (NTSC 1953): hue turns the I-Q plane.
_RGB_TO_YIQ = torch.tensor([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])

# Aspect ratios of random crops (SimCLR, appendix A; torchvision's default).
CROP_RATIO = (3 / 4, 4 / 3)
_CROP_ATTEMPTS = 10


@dataclass(frozen=True)
class Recipe:
    """How random views are made.

    crop_area: smallest share of the image that a crop covers (the largest is 1).
    flip: mirror half of the views.
    jitter: strength s of SimCLR's colour jitter: 0.8 s for brightness, contrast and saturation,
        0.2 s for hue, applied with probability 0.8 (SimCLR, appendix A). 0 turns it off.
    saturation: the saturation's share of that strength.
    grey: probability of a view without colour.
    blur: probability of a Gaussian blur with sigma in [0.1, 2] and a kernel of a tenth of the side.
    solarise: probability of inverting all values of 0.5 and more (BYOL, appendix B).
    """

    crop_area: float = 0.08
    flip: bool = True
    jitter: float = 1.0
    saturation: float = 1.0
    grey: float = 0.2
    blur: float = 0.5
    solarise: float = 0.0


def random_views(
    images_NxSxSx3: Tensor,
    aspects_N: Tensor,
    size: int,
    recipe: Recipe,
    random: ImageRandom,
    views: int = 2,
    first: int = 0,
) -> Tensor:
    """Random views of uint8 images, in [0, 1], of shape (views·N, 3, size, size): float32, or bf16 in
    autocast.
    The first N results are view `first` of each image, the next N the one after it: each number is
    another draw. `aspects_N` holds each image's width / height before it was stored as a square.
    """
    device = images_NxSxSx3.device
    side = images_NxSxSx3.shape[1]
    numbers = range(first, first + views)
    drawn = np.concatenate([random.uniform(view, 2 * _CROP_ATTEMPTS + 12) for view in numbers])
    draws = to_device(drawn, device)
    u_crop, u = draws[:, : 2 * _CROP_ATTEMPTS + 2], draws[:, 2 * _CROP_ATTEMPTS + 2 :]

    box = crop_boxes(u_crop, aspects_N.repeat(views), recipe.crop_area) * side
    rows = resampling_matrix(box[:, 1], box[:, 3], side, size)
    columns = resampling_matrix(box[:, 0], box[:, 2], side, size)
    if recipe.flip:
        columns = torch.where((u[:, 0] < 0.5)[:, None, None], columns.flip(1), columns)
    if recipe.blur:
        blur = blur_matrix(0.1 + 1.9 * u[:, 1], size, u[:, 2] < recipe.blur)
        rows, columns = blur @ rows, blur @ columns

    pixels_Nx3xP = resample(images_NxSxSx3, rows, columns, views)
    if recipe.jitter or recipe.grey:
        mean_Nx3 = pixels_Nx3xP.mean(dim=2)
        matrix_Nx3x4 = colour_matrix(u[:, 3:9], mean_Nx3, recipe.jitter, recipe.grey, recipe.saturation)
        pixels_Nx3xP = torch.baddbmm(matrix_Nx3x4[:, :, 3:], matrix_Nx3x4[:, :, :3], pixels_Nx3xP)
    pixels_Nx3xP.clamp_(0, 1)
    if recipe.solarise:
        pixels_Nx3xP = solarise(pixels_Nx3xP, u[:, 9] < recipe.solarise)
    return _as_channels_last(pixels_Nx3xP, size)


def evaluation_view(images_NxSxSx3: Tensor, aspects_N: Tensor, size: int) -> Tensor:
    """The one view that features and predictions are read from: float32 (N, 3, size, size).

    It is the largest centred crop whose aspect ratio training crops have (3:4 to 4:3), so the whole
    of an ordinary photo, and no image is squeezed more than the encoder has seen.
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
    """Random crops as (x, y, width, height) in shares of the image's sides, shape (N, 4).

    Area is uniform in [smallest_area, 1], log aspect ratio uniform in log(3/4)..log(4/3), both in
    the image's true geometry; of ten attempts the first that fits is taken, else the largest
    centred crop with an allowed ratio: torchvision's RandomResizedCrop.get_params without its
    rounding to whole pixels. `u` holds uniform draws, shape (N, 22).
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


def resampling_matrix(start_N: Tensor, length_N: Tensor, side: int, size: int) -> Tensor:
    """Matrices of shape (N, size, side) that cut [start, start + length) out of a line and resize it.

    Positions are in pixels. Bilinear with antialiasing: where whole pixels are cut, the same as
    torchvision's `resized_crop(..., antialias=True)`.
    """
    length_N = length_N.clamp(min=1)
    scale = (length_N / size)[:, None, None]
    reach = scale.clamp(min=1)
    start, end = start_N[:, None, None], (start_N + length_N)[:, None, None]
    centre = start + (torch.arange(size, device=start_N.device)[:, None] + 0.5) * scale
    # No pixel further away has a weight, so only these few are computed, then put into their columns.
    taps = min(side, math.ceil(2 * max(1, side / size)) + 1)
    first = (centre - reach - 0.5).ceil().clamp(0, side - taps)
    pixel = first + torch.arange(taps, device=start_N.device) + 0.5
    weight = (1 - (pixel - centre).abs() / reach).clamp(min=0)
    # Pixels outside the crop do not bleed into it. The slack keeps a boundary pixel against rounding.
    weight = weight * ((pixel > start - 1e-3) & (pixel < end + 1e-3))
    weight = weight / weight.sum(dim=2, keepdim=True)
    matrix = weight.new_zeros(len(start_N), size, side)
    return matrix.scatter_(2, pixel.long(), weight)


def blur_matrix(sigma_N: Tensor, size: int, chosen_N: Tensor | None = None) -> Tensor:
    """Gaussian blur of a line as matrices of shape (N, size, size).

    The kernel is an odd tenth of the side (SimCLR, appendix A), at least 3, edges are reflected:
    torchvision's `gaussian_blur`, which blurs rows and columns with the same line. Those that are not
    `chosen` (all are, where it is None) get the matrix that changes nothing.
    """
    shifts_KxP = _shifts(size, sigma_N.device)
    distance = torch.arange(len(shifts_KxP), device=sigma_N.device)
    weight_NxK = torch.exp(-0.5 * (distance / sigma_N[:, None]) ** 2)
    if chosen_N is not None:
        weight_NxK = torch.where(chosen_N[:, None], weight_NxK, (distance == 0).float())
    # Every pixel has two neighbours at each distance, itself excepted.
    total = 2 * weight_NxK.sum(dim=1, keepdim=True) - weight_NxK[:, :1]
    return (weight_NxK / total @ shifts_KxP).view(-1, size, size)


@functools.cache
def _shifts(size: int, device: torch.device) -> Tensor:
    """For each distance 0, 1, … within the blur's kernel, the matrix (size, size) that adds up the
    pixels at this distance, reflected at the edges; flattened, shape (K, size·size)."""
    i = torch.arange(size)[:, None]
    j = torch.arange(size)[None, :]
    distances = torch.arange(max(size // 20, 1) + 1)[:, None, None]
    inside = (i - j).abs() == distances
    left = (i + j == distances) & (j > 0)
    right = (2 * (size - 1) - i - j == distances) & (j < size - 1)
    return (inside.float() + left.float() + right.float()).flatten(1).to(device)


def resample(images_NxSxSx3: Tensor, rows: Tensor, columns: Tensor, views: int = 1) -> Tensor:
    """Applies (V·N, R, S) matrices to the rows and columns of uint8 images.

    Returns float32 in [0, 1] of shape (V·N, 3, R·R). Colours stand between rows and columns until
    the rows are done, so that every product is large and what is moved moves in whole lines.
    """
    count, size, side = rows.shape
    lines = images_NxSxSx3.transpose(2, 3).reshape(-1, side, 3 * side).float().mul_(1 / 255)
    # The views of an image are neighbours here, so that its pixels are not copied for each of them.
    by_image = rows.view(views, -1, size, side).transpose(0, 1).reshape(-1, views * size, side)
    lines = torch.bmm(by_image, lines).view(-1, views, size, 3, side)
    lines = lines.permute(1, 0, 3, 2, 4).reshape(count, 3 * size, side)
    return torch.bmm(lines, columns.transpose(1, 2)).view(count, 3, size * size)


def solarise(pixels_Nx3xP: Tensor, chosen_N: Tensor, threshold: float = 0.5) -> Tensor:
    """Inverts the values of `threshold` and more in the chosen images: torchvision's `solarize`."""
    bright = (pixels_Nx3xP >= threshold) & chosen_N[:, None, None]
    return torch.where(bright, 1 - pixels_Nx3xP, pixels_Nx3xP)


def colour_matrix(
    u_Nx6: Tensor, mean_Nx3: Tensor, strength: float, grey: float, saturation: float = 1.0
) -> Tensor:
    """Colour jitter, then greyscale, as one affine map per image: (N, 3, 4).

    The paper draws the order of the four operations. Without clipping in between they commute (none
    but brightness and contrast changes luma, and those treat all colours alike), so any order is
    every order. `mean_Nx3` is each image's mean colour, towards whose luma contrast pulls. `u_Nx6`
    holds uniform draws: factors of brightness, contrast and saturation, hue, whether to jitter at
    all, and greyscale.
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
    """Uniform draws in [0, 1) to factors in [1 - reach, 1 + reach], not below 0."""
    low = max(0.0, 1 - reach)
    return low + (1 + reach - low) * u


def _compose(outer: Tensor, inner: Tensor) -> Tensor:
    """The affine map x → outer(inner(x)) of 3×4 matrices."""
    product = outer[:, :, :3] @ inner
    return torch.cat([product[:, :, :3], product[:, :, 3:] + outer[:, :, 3:]], dim=2)


def _with_offset(linear: Tensor, offset: Tensor | None = None) -> Tensor:
    zero = torch.zeros_like(linear[:, :, :1])
    return torch.cat([linear, zero if offset is None else offset], dim=2)


@dataclass(frozen=True)
class _Constants:
    luma: Tensor
    to_yiq: Tensor
    to_rgb: Tensor


@functools.cache
def _constants(device: torch.device) -> _Constants:
    """Copied to the device once: a GPU finishes its work before it takes such a copy."""
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
    """A turn of the I-Q plane of YIQ by `angle` (radians); luma stays as it is."""
    cos, sin = torch.cos(angle_N), torch.sin(angle_N)
    turn = torch.zeros(len(angle_N), 3, 3, device=angle_N.device)
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = cos
    turn[:, 1, 2], turn[:, 2, 1] = sin, -sin
    constants = _constants(angle_N.device)
    return _with_offset(constants.to_rgb @ turn @ constants.to_yiq)
