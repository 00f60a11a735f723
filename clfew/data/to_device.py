"""Copies NumPy arrays to the device that computes."""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Returns the array on the device. It does not wait for a GPU: the copy joins its queue of work."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@functools.cache
def constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Returns numbers, or tuples of them, as a float32 tensor on the device. They are copied once, as a
    GPU finishes its work before such a copy."""
    return torch.tensor(values).to(device)
