"""Patches of images, for methods that train the encoder on pieces of images."""

import torch
from torch import Tensor

from clfew.errors import UserError
from clfew.models.encoder import Encoder


def require_side(encoder: Encoder, side: int) -> None:
    """Raises UserError if the network cannot take patches of `side` pixels, on which it is trained."""
    backbone, was_training = encoder.backbone, encoder.backbone.training
    try:
        with torch.no_grad():
            backbone.eval()(torch.zeros(2, 3, side, side))
    except (RuntimeError, AssertionError, ValueError):
        raise UserError(
            f"{encoder.name} cannot take patches of {side} pixels, which this method trains it on.",
            "use a convolutional encoder, such as resnet8-w32 or resnet18, or a larger --size.",
        ) from None
    finally:
        backbone.train(was_training)


def patches(images_NxCxHxW: Tensor, corners_NxTx2: Tensor, side: int) -> Tensor:
    """Cuts squares of `side` pixels with their top left corners at (y, x): (N, T, C, side, side)."""
    steps = torch.arange(side, device=images_NxCxHxW.device)
    rows = (corners_NxTx2[..., :1] + steps)[..., :, None]
    columns = (corners_NxTx2[..., 1:] + steps)[..., None, :]
    image = torch.arange(len(images_NxCxHxW), device=images_NxCxHxW.device)[:, None, None, None]
    return images_NxCxHxW.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 1, 4, 2, 3)


def standardised(patches_NxCxHxW: Tensor) -> Tensor:
    """Scales each channel of each patch to mean 0 and standard deviation 1."""
    mean = patches_NxCxHxW.mean((-2, -1), keepdim=True)
    std = patches_NxCxHxW.std((-2, -1), keepdim=True, correction=0)
    return (patches_NxCxHxW - mean) / (std + 1e-4)
