"""Training state as safetensors: weights, optimizer and position, nothing pickled.

Augmentation and batch order are functions of (seed, epoch, index), so there is no random state.
"""

import json
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from clfew.errors import UserError
from clfew.files import write_bytes

FILE = "state.safetensors"


def save_state(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, position: dict[str, float]
) -> None:
    """Writes `folder/state.safetensors`. `position` holds the step and the seconds already used."""
    tensors = {f"module.{name}": value.contiguous() for name, value in module.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"optimizer.{index}.{name}"] = value.contiguous()
    folder.mkdir(exist_ok=True)
    write_bytes(folder / FILE, safetensors.torch.save(tensors, {"position": json.dumps(position)}))


def saved_step(folder: Path) -> int:
    """The step of the state in a folder, 0 where there is none that can be read."""
    try:
        with safetensors.safe_open(folder / FILE, framework="pt") as file:
            return int(json.loads(file.metadata()["position"])["step"])
    except (OSError, safetensors.SafetensorError, ValueError, TypeError, KeyError):
        return 0


def load_state(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Restores module and optimizer in place, returns the position. Raises UserError."""
    try:
        with safetensors.safe_open(folder / FILE, framework="pt") as file:
            position = json.loads(file.metadata()["position"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        module.load_state_dict(
            {n.removeprefix("module."): t for n, t in tensors.items() if n.startswith("module.")}
        )
    except (
        OSError,
        safetensors.SafetensorError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
    ) as error:
        raise UserError(
            f"The saved state in {folder} cannot be used ({str(error).splitlines()[0]}).",
            "start again without --resume.",
        ) from None
    restored: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            restored.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": restored, "param_groups": groups})
    return position
