"""The state of a training as a safetensors file with a checksum: weights, optimizer and position.

Nothing is pickled. Augmentation and batch order are functions of (seed, epoch, index), so there is no
random state to save. bf16 needs no loss scaling, so there is no scale to save.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from clfew.errors import UserError
from clfew.runs.checksum import Damaged, add_checksum, check_data, has_checksum, read_header
from clfew.runs.files import make_folder, write_bytes
from clfew.training.plan import Plan

FILE = "state.safetensors"


def save_state(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    plan: Plan,
    position: dict[str, Any],
) -> None:
    """Writes a state file and, if needed, its folder. `position` holds the step, the seconds already
    used, the new plans of the schedule and the digest of the data. `optimizer` is None at the end of a
    training. Raises UserError if the file cannot be written."""
    tensors = {f"module.{name}": value.contiguous() for name, value in module.state_dict().items()}
    for index, values in (optimizer.state_dict()["state"] if optimizer else {}).items():
        for name, value in values.items():
            tensors[f"optimizer.{index}.{name}"] = value.contiguous()
    make_folder(path.parent)
    metadata = {"position": json.dumps(position), "plan": json.dumps(asdict(plan))}
    write_bytes(path, add_checksum(safetensors.torch.save(tensors, metadata)))


def saved_position(path: Path) -> dict[str, Any]:
    """Returns the position of a state file, that of the beginning if there is no file. Raises UserError
    if it is damaged."""
    if not path.exists():
        return {"step": 0}
    try:
        header = read_header(path)
        check_data(path, header)
        position = _position(header)
        return position | {"step": int(position["step"])}
    except (OSError, Damaged, ValueError, TypeError, KeyError) as error:
        raise _unusable(path, error) from None


def load_state(
    path: Path, module: nn.Module, plan: Plan, data: str
) -> tuple[dict[str, Any], dict[int, dict[str, Tensor]]]:
    """Restores the module in place; returns the position and the optimizer's state. Raises UserError if
    the file is damaged or belongs to another training, with another plan or on other data."""
    try:
        header = read_header(path)
        if not has_checksum(header):
            raise Damaged("it was written by another version of clfew")
        before, position = Plan(**json.loads(header["__metadata__"]["plan"])), _position(header)
        for name, value in asdict(plan).items():
            if (had := getattr(before, name)) != value:
                raise Damaged(f"it was saved with {name} {had}, not {value}")
        if position.get("data") != data:
            raise Damaged("it was saved by a training on other images or labels")
        check_data(path, header)
        tensors = safetensors.torch.load_file(path)
        module.load_state_dict(_below(tensors, "module."))
        return position, _optimizer_state(_below(tensors, "optimizer."))
    # Damaged files raise many types of error. A state of another network fails in load_state_dict.
    except (
        OSError,
        Damaged,
        safetensors.SafetensorError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
    ) as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(
        f"The saved state {path} cannot be used: {reason}.",
        "start a new run: the command that started this one is in its config.json.",
    )


def _position(header: dict[str, Any]) -> dict[str, Any]:
    position: dict[str, Any] = json.loads(header["__metadata__"]["position"])
    return position


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _optimizer_state(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    restored: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        restored.setdefault(int(index), {})[key] = tensor
    return restored
