"""Detects a loss or gradient that is not finite before the optimizer takes its step."""

import contextlib
import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clfew.errors import UserError, is_out_of_memory
from clfew.training.batch import Batch
from clfew.training.schedule import Schedule
from clfew.training.state import save_state


class NotFinite(Exception):
    """The loss or the gradient norm is not finite. Raised before the optimizer's step."""

    def __init__(self, loss: float, norm: float) -> None:
        super().__init__(f"loss {loss}, gradient norm {norm}")
        self.loss, self.norm = loss, norm


def finite(loss: Tensor, optimizer: torch.optim.Optimizer) -> tuple[Tensor, Tensor]:
    """Returns on the device whether the loss and the norm of all gradients are finite, and the norm."""
    gradients = [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]
    norm = torch.nn.utils.get_total_norm(gradients)
    return torch.isfinite(norm) & torch.isfinite(loss.detach()), norm


def require_finite(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Raises NotFinite if the loss or the norm of all gradients is not finite. Called before the
    optimizer takes its step."""
    is_finite, norm = finite(loss, optimizer)
    if not bool(is_finite):
        raise NotFinite(loss.item(), norm.item())


class Guard:
    """Sees to it that no step whose loss or gradient is not finite is kept.

    Reading a number from a GPU waits until the GPU has done all its work, so there the result of the
    check stays on the device and is read when a row is logged or a state saved. If a step since then was
    not finite, the training goes back to where it was then and takes the same steps again, checking each
    at once (`is_deferred` False): copies of weights, buffers and the optimizer's state are kept on the
    device.
    Where these would take more than MOST_OF_MEMORY, and on a CPU, where reading costs nothing, each step
    is checked before it is taken, and only buffers are copied: a forward pass changes running averages.
    """

    def __init__(
        self, objective: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
    ) -> None:
        self._objective, self._optimizer = objective, optimizer
        self.can_defer = self.is_deferred = _can_defer(objective, device)
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        saved = objective.state_dict(keep_vars=True)
        buffers = [buffer for name, buffer in objective.named_buffers() if name in saved]
        self._buffers = [(buffer, buffer.clone()) for buffer in buffers]
        self._kept: tuple[int, dict[str, Any], dict[str, Any]] | None = None
        self._noticed = 0

    def keep(self, step: int) -> None:
        """Copies what a step changes, if checks are deferred. Called before steps are taken from `step`
        on, and after each check that found all steps before it finite."""
        if not self.can_defer or step < self._noticed:
            return
        self._kept = None  # Not twice the memory.
        try:
            state, optimizer = self._objective.state_dict(), self._optimizer.state_dict()
            self._kept = step, copy.deepcopy(state), copy.deepcopy(optimizer)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.can_defer = False
        self.is_deferred = self.can_defer

    @torch.no_grad()
    def before(self) -> None:
        """Called before each step."""
        if not self.is_deferred:
            for buffer, kept in self._buffers:
                kept.copy_(buffer)

    def note(self, loss: Tensor) -> None:
        """Called before the optimizer takes its step, if checks are deferred."""
        self._finite &= finite(loss, self._optimizer)[0]

    @torch.no_grad()
    def undo(self) -> None:
        """Called after NotFinite: puts the buffers back as they were before the step."""
        for buffer, kept in self._buffers:
            buffer.copy_(kept)

    def look(self) -> bool:
        """Returns whether all steps since the last call of `keep` were finite."""
        return not self.is_deferred or bool(self._finite)

    def go_back(self, step: int) -> int:
        """Puts everything back as it was at the last call of `keep`; returns the number of steps then.
        Until `step` steps have been taken again, each is checked at once."""
        assert self._kept is not None
        kept, state, optimizer = self._kept
        self._objective.load_state_dict(state)
        self._optimizer.load_state_dict(copy.deepcopy(optimizer))
        self._finite.fill_(True)
        self.is_deferred, self._noticed = False, step
        return kept


MOST_OF_MEMORY = 0.05
"""The fraction of a GPU's memory that the copies of a `Guard` may take."""


def _can_defer(objective: nn.Module, device: torch.device) -> bool:
    """Returns whether copies of the weights and of an optimizer's state, which is at most twice as
    large, take no more than MOST_OF_MEMORY of the GPU."""
    if device.type != "cuda":
        return False
    tensors = objective.state_dict().values()
    copies = 3 * sum(each.numel() * each.element_size() for each in tensors)
    return copies <= MOST_OF_MEMORY * torch.cuda.get_device_properties(device).total_memory


def diverged(
    wrong: NotFinite,
    path: Path | None,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
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
            "replanned": schedule.replanned,
            "loss": str(wrong.loss),
            "gradient_norm": str(wrong.norm),
            "epoch": batch.random.epoch,
            "images": batch.random.indices.tolist(),
        }
        with contextlib.suppress(UserError):  # The disk may be full: the error to report is the loss.
            save_state(path, objective, optimizer, schedule.plan, position)
            hint += f" The state before that step and its batch are in {path}."
    return UserError(
        f"The {what} is {value} at step {step + 1}: the training has diverged, and the step was not "
        "taken.",
        hint,
    )
