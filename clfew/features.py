"""Features of stored images, computed once and kept: what linear probes, kNN and graphs work on."""

import numpy as np
import torch
from torch import nn

from clfew.augment import evaluation_view

BATCH = 512


@torch.no_grad()
def apply_to_store(
    network: nn.Module,
    size: int,
    pixels: np.ndarray,
    aspects: np.ndarray,
    indices: np.ndarray,
    device: torch.device,
    precision: str = "fp32",
) -> np.ndarray:
    """`network` on the evaluation view of images `indices` of a store: float32, (len(indices), D).

    The network is put into eval mode and left there.
    """
    network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    results = []
    for start in range(0, len(indices), BATCH):
        rows = indices[start : start + BATCH]
        results.append(apply(network, size, pixels[rows], aspects[rows], device, precision))
    return np.concatenate(results)


@torch.no_grad()
def apply(
    network: nn.Module,
    size: int,
    pixels_NxSxSx3: np.ndarray,
    aspects_N: np.ndarray,
    device: torch.device,
    precision: str = "fp32",
) -> np.ndarray:
    """`network`, in eval mode on `device`, on the evaluation view of a few stored images: (N, D)."""
    images = torch.from_numpy(pixels_NxSxSx3).to(device)
    aspects = torch.from_numpy(aspects_N).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        return network(evaluation_view(images, aspects, size)).float().cpu().numpy()
