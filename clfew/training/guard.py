"""Detects a loss or gradient that is not finite before the optimizer takes its step."""

import contextlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clfew.errors import UserError
from clfew.training.batch import Batch
from clfew.training.plan import Plan
from clfew.training.state import save_state


class NotFinite(Exception):
    """The loss or the gradient norm is not finite. Raised before the optimizer's step."""

    def __init__(self, loss: float, norm: float) -> None:
        super().__init__(f"loss {loss}, gradient norm {norm}")
        self.loss, self.norm = loss, norm


def require_finite(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Raises NotFinite if the loss or the norm of all gradients is not finite. Called before the
    optimizer takes its step."""
    gradients = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    norm = torch.nn.utils.get_total_norm(gradients)
    if not bool(torch.isfinite(norm) & torch.isfinite(loss.detach())):
        raise NotFinite(loss.item(), norm.item())


class Kept:
    """Copies of a network's buffers from before a step. A forward pass changes running averages, and a
    value that is not finite would stay in them."""

    def __init__(self, module: nn.Module) -> None:
        saved = module.state_dict(keep_vars=True)
        self._buffers = [b for name, b in module.named_buffers() if name in saved]
        self._copies = [buffer.clone() for buffer in self._buffers]

    @torch.no_grad()
    def take(self) -> None:
        for copy, buffer in zip(self._copies, self._buffers, strict=True):
            copy.copy_(buffer)

    @torch.no_grad()
    def put_back(self) -> None:
        for copy, buffer in zip(self._copies, self._buffers, strict=True):
            buffer.copy_(copy)


def diverged(
    wrong: NotFinite,
    path: Path | None,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    batch: Batch,
    step: int,
) -> UserError:
    """Returns the error for a step that was not taken. Writes to `path` the state before that step and
    the indices of the images of its batch, so that the same loss can be computed again."""
    what = "loss" if not math.isfinite(wrong.loss) else "gradient norm"
    value = wrong.loss if what == "loss" else wrong.norm
    hint = "start a new run with a smaller --lr, or with --precision fp32."
    if path is not None:
        position: dict[str, Any] = {
            "step": step,
            "seconds": 0.0,
            "loss": str(wrong.loss),
            "gradient_norm": str(wrong.norm),
            "epoch": batch.random.epoch,
            "images": batch.random.indices.tolist(),
        }
        with contextlib.suppress(UserError):  # The disk may be full: the error to report is the loss.
            save_state(path, objective, optimizer, plan, position)
            hint += f" The state before that step and its batch are in {path}."
    return UserError(
        f"The {what} is {value} at step {step + 1}: the training has diverged, and the step was not "
        "taken.",
        hint,
    )
