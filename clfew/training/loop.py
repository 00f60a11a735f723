"""The one training loop: pretraining and fine-tuning both run here.

An objective is an `nn.Module` whose `loss(batch)` returns a scalar and tensors to log. What it
draws is a function of (seed, epoch, index), so a run that is stopped and resumed takes exactly
the steps it would have taken.
"""

import contextlib
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from clfew.errors import Stopped, UserError
from clfew.training.batch import Batch, Batches, TrainingData
from clfew.training.compilation import compiled
from clfew.training.convolution import MatrixWeightGradients
from clfew.training.device import keep_freed_memory
from clfew.training.optim import build_optimizer, learning_rate, parameter_groups
from clfew.training.plan import Plan
from clfew.training.signals import StopRequest
from clfew.training.state import FILE, load_state, save_state

SAVE_SECONDS = 120
LOG_SECONDS = 1.0
_TRIAL_SHARE, _TRIAL_STEPS = 0.05, 12


class Objective(Protocol):
    """What is trained; one with a moving average has `after_step(progress)` too."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]: ...


@dataclass(frozen=True)
class Saving:
    """Where the state of a training is kept while it can be resumed, and the command that resumes."""

    folder: Path
    resume_command: str

    def discard(self) -> None:
        """Removes the state of a training that has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)


def train(
    objective: nn.Module,
    data: TrainingData,
    plan: Plan,
    device: torch.device,
    log: Callable[[dict[str, float]], None] = lambda row: None,
    saving: Saving | None = None,
    lr_scale: Callable[[str], float] = lambda name: 1.0,
) -> None:
    """Trains `objective` in place for `plan.steps` steps.

    `log` is given a row (step, epoch, loss, lr, images_per_second, data_wait, and what the objective
    reports) about once a second and at the end. Where `saving` is given, a state found there is
    continued, the state is kept every two minutes, and SIGINT or SIGTERM saves it and raises
    Stopped. `lr_scale` maps a parameter's name to a factor on its learning rate.
    Raises UserError when the loss is not finite.
    """
    _prepare(objective, device)
    groups = parameter_groups(objective, plan.weight_decay, lr_scale)
    optimizer = build_optimizer(plan.optimizer, groups, plan.learning_rate)
    done, seconds_before = 0, 0.0
    if saving is not None and (saving.folder / FILE).exists():
        position = load_state(saving.folder, objective, optimizer)
        done, seconds_before = int(position["step"]), position["seconds"]
    meter = _Meter(plan, len(data), done)
    started = saved = time.monotonic()
    with (
        StopRequest() as stop,
        compiled(objective, plan.compile),
        Batches(data, plan, device, done) as batches,
    ):
        for step in range(done, plan.steps):
            batch = meter.waiting(batches)
            loss, extras = _step(objective, optimizer, batch, plan, step)
            meter.count(len(batch.images))
            is_last = step + 1 == plan.steps
            if is_last or meter.due():
                row = meter.row(step + 1, loss, extras, optimizer)
                row["seconds"] = round(seconds_before + time.monotonic() - started, 2)
                log(row)
            if saving is not None and not is_last:
                if stop.signal or time.monotonic() - saved > SAVE_SECONDS:
                    _finite(loss, step + 1)
                    seconds = seconds_before + time.monotonic() - started
                    save_state(
                        saving.folder, objective, optimizer, {"step": step + 1, "seconds": seconds}
                    )
                    saved = time.monotonic()
                if stop.signal:
                    raise Stopped(stop.signal, saving.resume_command)
            elif stop.signal and not is_last:
                raise Stopped(stop.signal, "")


def seconds_per_step(
    objective: nn.Module, data: TrainingData, plan: Plan, device: torch.device, budget: float
) -> float:
    """The time a step takes, from a few trial steps whose effect is undone.

    The trial takes at most a twentieth of `budget` seconds, but no fewer than three steps.
    """
    _prepare(objective, device)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    groups = parameter_groups(objective, plan.weight_decay)
    optimizer = build_optimizer(plan.optimizer, groups, plan.learning_rate)
    times: list[float] = []
    # The first step allocates, picks kernels and compiles.
    try:
        with compiled(objective, plan.compile), Batches(data, plan, device, 0) as batches:
            while len(times) < 3 or (
                len(times) < _TRIAL_STEPS and sum(times[1:]) < _TRIAL_SHARE * budget
            ):
                started = time.monotonic()
                loss, _ = _step(objective, optimizer, next(batches), plan, 0)
                loss.item()  # Waits for the device.
                times.append(time.monotonic() - started)
    finally:
        objective.load_state_dict(before)
        for parameter in objective.parameters():
            parameter.grad = None
    return float(np.median(times[1:]))


def _prepare(objective: nn.Module, device: torch.device) -> None:
    keep_freed_memory(device)
    objective.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]


def _step(
    objective: Any, optimizer: torch.optim.Optimizer, batch: Batch, plan: Plan, step: int
) -> tuple[Tensor, dict[str, Tensor]]:
    rate = learning_rate(step, plan.steps, plan.warmup_steps, plan.learning_rate)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    # Dropout and stochastic depth, in encoders that have them, resume exactly too.
    torch.manual_seed((plan.seed * 1_000_003 + step) % 2**63)
    bf16 = torch.autocast(batch.images.device.type, torch.bfloat16, enabled=plan.precision == "bf16")
    # A compiled network has gradients of its own.
    gradients = contextlib.nullcontext() if plan.compile else MatrixWeightGradients()
    with bf16, gradients:
        loss, extras = objective.loss(batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    if hasattr(objective, "after_step"):
        objective.after_step((step + 1) / plan.steps)
    return loss.detach(), extras


def _finite(loss: Tensor, step: int) -> float:
    """The value of the loss. Raises UserError where it is not finite."""
    value = loss.item()
    if not math.isfinite(value):
        raise UserError(
            f"The loss is {value} at step {step}: the training has diverged.",
            "start a new run with a smaller --lr, or with --precision fp32.",
        )
    return value


class _Meter:
    """Counts images and waiting between two rows of the log."""

    def __init__(self, plan: Plan, images: int, done: int) -> None:
        self._per_epoch = plan.steps_per_epoch(images)
        self._first = done == 0
        self._restart()

    def _restart(self) -> None:
        self._since, self._images, self._waited = time.monotonic(), 0, 0.0

    def waiting(self, batches: Iterator[Batch]) -> Batch:
        started = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - started
        return batch

    def count(self, images: int) -> None:
        self._images += images

    def due(self) -> bool:
        first, self._first = self._first, False
        return first or time.monotonic() - self._since >= LOG_SECONDS

    def row(
        self, step: int, loss: Tensor, extras: dict[str, Tensor], optimizer: torch.optim.Optimizer
    ) -> dict[str, float]:
        value = _finite(loss, step)
        elapsed = max(time.monotonic() - self._since, 1e-9)
        row = {
            "step": step,
            "epoch": round(step / self._per_epoch, 3),
            "loss": value,
            "lr": max(group["lr"] for group in optimizer.param_groups),
            "images_per_second": round(self._images / elapsed, 1),
            "data_wait": round(self._waited / elapsed, 4),
        }
        row.update({name: extra.item() for name, extra in extras.items()})
        self._restart()
        return row
