"""CIE Lab, which separates lightness from colour: L in [0, 100], a and b within ±110 for any sRGB.

sRGB (IEC 61966-2-1) to XYZ to Lab (CIE 1976) with the white point D65, as in scikit-image and OpenCV.
"""

import functools

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in the brightness of a pixel (ITU-R Rec. 601), with which
torchvision and Pillow make images grey."""

_RGB_TO_XYZ = torch.tensor(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)
_WHITE = torch.tensor([0.95047, 1.0, 1.08883])
_LINEAR_BELOW = 6 / 29
AB_REACH = 110.0
"""|a| and |b| of every sRGB colour are below this."""


@functools.cache
def _matrices(device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns RGB to XYZ, relative to white, and its inverse, on a device. They are copied once, as a
    GPU finishes its work before such a copy."""
    to_xyz = _RGB_TO_XYZ / _WHITE[:, None]
    return to_xyz.to(device), torch.linalg.inv(to_xyz).to(device)


def rgb_to_lab(images_NxCxHxW: Tensor) -> Tensor:
    """Converts sRGB in [0, 1] of shape (N, 3, H, W) to L, a, b of the same shape, in float32."""
    rgb = images_NxCxHxW.float()
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055).clamp(min=0) ** 2.4, rgb / 12.92)
    to_xyz = _matrices(rgb.device)[0]
    with torch.autocast(rgb.device.type, enabled=False):  # bf16 is too coarse for colours.
        xyz = torch.einsum("dc,nchw->ndhw", to_xyz, linear)
    root = torch.where(
        xyz > _LINEAR_BELOW**3,
        xyz.clamp(min=1e-6) ** (1 / 3),
        xyz / (3 * _LINEAR_BELOW**2) + 4 / 29,
    )
    x, y, z = root.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def lab_to_rgb(lab_NxCxHxW: Tensor) -> Tensor:
    """The inverse of `rgb_to_lab`; colours outside sRGB are clipped to [0, 1]."""
    lightness, a, b = lab_NxCxHxW.float().unbind(1)
    y = (lightness + 16) / 116
    root = torch.stack([y + a / 500, y, y - b / 200], dim=1)
    xyz = torch.where(root > _LINEAR_BELOW, root**3, 3 * _LINEAR_BELOW**2 * (root - 4 / 29))
    to_rgb = _matrices(root.device)[1]
    with torch.autocast(root.device.type, enabled=False):
        linear = torch.einsum("dc,nchw->ndhw", to_rgb, xyz).clamp(0, 1)
    curved = 1.055 * linear.clamp(min=1e-8) ** (1 / 2.4) - 0.055
    return torch.where(linear > 0.0031308, curved, 12.92 * linear).clamp(0, 1)
