"""The one training loop: pretraining and fine-tuning both run here.

An objective is an `nn.Module` whose `loss(batch)` returns a scalar and tensors to log. What it
draws is a function of (seed, epoch, index), so a run that is stopped and resumed takes exactly
the steps it would have taken.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from clfew.errors import Stopped, UserError, is_out_of_memory
from clfew.training.batch import Batch, Batches, TrainingData
from clfew.training.compilation import compiled
from clfew.training.convolution import TrainingConvolutions
from clfew.training.device import keep_freed_memory
from clfew.training.guard import Kept, NotFinite, diverged, require_finite
from clfew.training.optim import build_optimizer, learning_rate, parameter_groups
from clfew.training.plan import Plan
from clfew.training.saving import DIVERGED, Saving, next_saving
from clfew.training.signals import StopRequest
from clfew.training.state import load_state, save_state

SAVE_SECONDS = 120
LOG_SECONDS = 1.0
WORTH_KEEPING_SECONDS = 5.0
"""A training that took less is repeated rather than kept when it has ended."""
_TRIAL_FRACTION, _TRIAL_STEPS = 0.05, 12


class Objective(Protocol):
    """What is trained; one with a moving average has `after_step(progress)` too."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]: ...


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
    reports) about once a second and at the end. Where `saving` is given, or the command can be gone on
    with (see `saving.resumable`), a state found there is continued, the state is kept every two minutes,
    and SIGINT or SIGTERM saves it and raises Stopped. `lr_scale` maps a parameter's name to a factor on
    its learning rate.
    Raises UserError when the loss or the gradient is not finite, before that step is taken, and where
    the batch does not fit into memory.
    """
    saving = saving or next_saving()
    try:
        _train(objective, data, plan, device, log, saving, lr_scale)
        return
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Not in the handler: the error holds on to the tensors of the step that failed.
    raise _does_not_fit(objective, data, plan, device)


def _train(
    objective: nn.Module,
    data: TrainingData,
    plan: Plan,
    device: torch.device,
    log: Callable[[dict[str, float]], None],
    saving: Saving | None,
    lr_scale: Callable[[str], float],
) -> None:
    _prepare(objective, device)
    groups = parameter_groups(objective, plan.weight_decay, lr_scale)
    optimizer = build_optimizer(plan.optimizer, groups, plan.learning_rate)
    done, seconds_before = 0, 0.0
    if saving is not None and saving.file.exists():
        position = load_state(saving.file, objective, optimizer, plan, data.digest())
        done, seconds_before = int(position["step"]), position["seconds"]
    meter = _Meter(plan, len(data), done)
    kept = Kept(objective)
    started = saved = time.monotonic()
    with (
        StopRequest() as stop,
        compiled(objective, plan.compile),
        Batches(data, plan, device, done) as batches,
    ):
        for step in range(done, plan.steps):
            batch = meter.waiting(batches)
            kept.take()
            try:
                loss, extras = _step(objective, optimizer, batch, plan, step)
            except NotFinite as wrong:
                kept.put_back()
                path = saving.folder / DIVERGED if saving else None
                raise diverged(wrong, path, objective, optimizer, plan, batch, step) from None
            meter.count(len(batch.images))
            is_last = step + 1 == plan.steps
            seconds = seconds_before + time.monotonic() - started
            if is_last or meter.due():
                row = meter.row(step + 1, loss, extras, optimizer)
                log(row | {"seconds": round(seconds, 2)})
            if saving is None:
                if stop.signal and not is_last:
                    raise Stopped(stop.signal, "")
            elif _is_due(is_last, stop.signal, time.monotonic() - saved, seconds):
                position = {"step": step + 1, "seconds": seconds, "data": data.digest()}
                # One that has ended needs its optimizer no more.
                save_state(saving.file, objective, None if is_last else optimizer, plan, position)
                saved = time.monotonic()
                if stop.signal:
                    raise Stopped(stop.signal, saving.resume_command)


def _is_due(is_last: bool, signal: int, since: float, seconds: float) -> bool:
    """Whether the state is to be saved after a step. The last one's too: the command has more to do."""
    return bool(signal) or (seconds > WORTH_KEEPING_SECONDS if is_last else since > SAVE_SECONDS)


def _does_not_fit(
    objective: nn.Module, data: TrainingData, plan: Plan, device: torch.device
) -> UserError:
    """The error for a batch that does not fit into memory, with one that does, found by trying."""
    batch = plan.batch // 2
    while batch >= 2:
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            _trial(objective, data, replace(plan, batch=batch), device, budget=0)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        batch //= 2
    return UserError(
        f"A batch of {plan.batch} images does not fit into the memory of the {device.type.upper()}.",
        f"a batch of {batch} fits: --batch {batch}. What was saved before is untouched."
        if batch >= 2
        else "not even two images fit: take a smaller --size or another --encoder.",
    )


def seconds_per_step(
    objective: nn.Module, data: TrainingData, plan: Plan, device: torch.device, budget: float
) -> float:
    """The time a step takes, from a few trial steps whose effect is undone.

    The trial takes at most a twentieth of `budget` seconds, but no fewer than three steps. Raises
    UserError where the batch does not fit into memory.
    """
    try:
        return _trial(objective, data, plan, device, budget)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    raise _does_not_fit(objective, data, plan, device)


def _trial(
    objective: nn.Module, data: TrainingData, plan: Plan, device: torch.device, budget: float
) -> float:
    _prepare(objective, device)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    groups = parameter_groups(objective, plan.weight_decay)
    optimizer = build_optimizer(plan.optimizer, groups, plan.learning_rate)
    times: list[float] = []
    # The first step allocates, picks kernels and compiles.
    try:
        with compiled(objective, plan.compile), Batches(data, plan, device, 0) as batches:
            while len(times) < 3 or (
                len(times) < _TRIAL_STEPS and sum(times[1:]) < _TRIAL_FRACTION * budget
            ):
                started = time.monotonic()
                with contextlib.suppress(NotFinite):  # What it takes is what is asked.
                    _step(objective, optimizer, next(batches), plan, 0)
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
    with bf16, TrainingConvolutions(own_gradients=not plan.compile):
        loss, extras = objective.loss(batch)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    require_finite(loss, optimizer)
    optimizer.step()
    if hasattr(objective, "after_step"):
        objective.after_step((step + 1) / plan.steps)
    return loss.detach(), extras


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
        elapsed = max(time.monotonic() - self._since, 1e-9)
        row = {
            "step": step,
            "epoch": round(step / self._per_epoch, 3),
            "loss": loss.item(),
            "lr": max(group["lr"] for group in optimizer.param_groups),
            "images_per_second": round(self._images / elapsed, 1),
            "data_wait": round(self._waited / elapsed, 4),
        }
        row.update({name: extra.item() for name, extra in extras.items()})
        self._restart()
        return row
