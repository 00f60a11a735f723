"""The one training loop: pretraining and fine-tuning both run here.

An objective is an `nn.Module` whose `loss(batch)` returns a scalar and tensors to log. Its random
numbers are a function of (seed, epoch, index), so a run that is stopped and resumed takes exactly
the steps it would have taken.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from clfew.errors import Stopped, UserError, is_out_of_memory
from clfew.group.command import everywhere, is_together, on_its_own, size, words_of
from clfew.training.batch import Batch, Batches, TrainingData
from clfew.training.compilation import NothingCompiled
from clfew.training.guard import NotFinite, diverged
from clfew.training.meter import Meter
from clfew.training.plan import Plan
from clfew.training.saving import DIVERGED, Saving
from clfew.training.schedule import Schedule
from clfew.training.signals import StopRequest
from clfew.training.state import load_state, save_state
from clfew.training.steps import STEP, Order, Stepper, in_all_processes

SAVE_SECONDS = 120
LOG_SECONDS = 1.0
WORTH_KEEPING_SECONDS = 5.0
"""The final state of a shorter training is not saved: if the command is resumed, it trains again."""
_TRIAL_FRACTION, _TRIAL_STEPS = 0.02, 11


class Objective(Protocol):
    """What `train` trains. An objective with a moving average also has `after_step(progress)`."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]: ...


def train(
    objective: nn.Module,
    data: TrainingData,
    plan: Plan,
    device: torch.device,
    log: Callable[[dict[str, float]], None] = lambda row: None,
    saving: Saving | None = None,
    lr_scale: Callable[[str], float] = lambda name: 1.0,
    stop: StopRequest | None = None,
) -> Plan:
    """Trains `objective` in place for `plan.steps` steps, or for `plan.seconds` seconds.

    `log` is called with a row (step, epoch, loss, lr, images_per_second, data_wait, seconds, and the
    tensors that the objective logs) about once a second and at the end; where the training has a time,
    also with each new plan, and with the steps that are planned as `steps`. If `saving` is given,
    training resumes from a state that was saved there, and the state is saved every two minutes. SIGINT
    or SIGTERM saves it and raises Stopped; so does a signal that `stop`, of a command that trains
    several times, has recorded. `lr_scale` maps a parameter's name to a factor on its learning rate.
    Raises UserError if the loss or the gradient is not finite, with the state before that step, and if
    the batch does not fit into memory. Returns the plan by which the same steps can be taken again.
    """
    schedule = Schedule(plan, len(data))
    is_split = plan.batch >= size()
    try:
        with contextlib.nullcontext() if is_split else on_its_own():
            _train(objective, data, schedule, device, log, saving, lr_scale, stop)
        return replace(plan, seconds=None, most_steps=None, replanned=schedule.replanned)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    # Not inside the except block: there the error would keep the tensors of the failed step in memory.
    raise _does_not_fit(objective, data, plan, device)


def _train(
    objective: nn.Module,
    data: TrainingData,
    schedule: Schedule,
    device: torch.device,
    log: Callable[[dict[str, float]], None],
    saving: Saving | None,
    lr_scale: Callable[[str], float],
    outer_stop: StopRequest | None,
) -> None:
    plan = schedule.plan
    state, done, seconds = None, 0, 0.0
    if saving is not None and saving.file.exists():
        position, state = load_state(saving.file, objective, plan, data.digest())
        done, seconds = int(position["step"]), position["seconds"]
        schedule.restore(position.get("replanned", plan.replanned))
    scales = {name: lr_scale(name) for name, _ in objective.named_parameters()}

    def lead(stepper: Stepper, is_called: Callable[[], bool]) -> None:
        training = _Training(stepper, data, schedule, log, saving, done, seconds)
        with contextlib.nullcontext(outer_stop) if outer_stop else StopRequest() as stop:
            stepper.keep(done)
            while training.step < schedule.last:  # Once, but again after a step that was not finite.
                with Batches(data, plan, device, training.step) as batches:
                    training.take_steps(batches, stop)
                del batches  # Its images, which may be on the GPU, before those of the next ones.

    everywhere(in_all_processes, objective, data, plan, device, scales, state, done, lead=lead)


class _Training:
    """A training on its way. step: how many steps have been taken."""

    def __init__(
        self,
        stepper: Stepper,
        data: TrainingData,
        schedule: Schedule,
        log: Callable[[dict[str, float]], None],
        saving: Saving | None,
        step: int,
        seconds: float,
    ) -> None:
        self.step = step
        self._stepper, self._data, self._schedule = stepper, data, schedule
        self._log, self._saving = log, saving
        self._meter = Meter(schedule.plan, len(data), step)
        self._saved = time.monotonic()
        self._started = self._saved - seconds

    def take_steps(self, batches: Iterator[Batch], stop: StopRequest) -> None:
        """Takes steps until the training ends, or goes back to the last step that was known to be
        finite."""
        schedule, guard = self._schedule, self._stepper.guard
        while self.step < schedule.last:
            batch = self._meter.next_batch(batches)
            loss, extras = self._take(batch)
            self._meter.count(batch.in_all)
            self.step += 1
            has_new_plan = self._follow(loss)
            is_last, seconds = self.step >= schedule.last, time.monotonic() - self._started
            is_due = self._meter.is_due(LOG_SECONDS) or is_last or has_new_plan
            if is_due:
                if not guard.look():
                    self.step = self._stepper.go_back(self.step)
                    return
                self._log(self._row(loss, extras, seconds))
            signal = stop.signal  # It may come at any time.
            must_save = self._must_save(is_last, signal, seconds)
            if must_save:
                if not guard.look():
                    self.step = self._stepper.go_back(self.step)
                    return
                self._save(is_last, signal, seconds)
            elif signal and not is_last:
                raise Stopped(signal, "")
            if is_due or must_save:
                self._stepper.keep(self.step)

    def _take(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Takes the next step."""
        schedule, guard, step = self._schedule, self._stepper.guard, self.step
        order = Order(
            step, schedule.learning_rate(step), schedule.progress(step), schedule.progress(step, taken=1)
        )
        guard.before()
        self._stepper.tell(STEP, order)
        try:
            return _step(self._stepper, batch, order)
        except NotFinite as wrong:
            guard.undo()
            raise self._diverged(wrong, replace(batch, progress=order.progress)) from None
        except RuntimeError as error:
            is_whole = not (guard.is_deferred or self._stepper.is_changing or is_out_of_memory(error))
            if is_together() and is_whole:
                # Another process may have ended. Nothing of this step is kept, and the state is saved.
                guard.undo()
                self._save(False, 0, time.monotonic() - self._started)
            raise

    def _must_save(self, is_last: bool, signal: int, seconds: float) -> bool:
        if self._saving is None:
            return False
        # A training that has a time would not take the same steps again.
        has_time = self._schedule.plan.seconds is not None
        since_saved = time.monotonic() - self._saved
        return _must_save(is_last, signal, since_saved, seconds) or (is_last and has_time)

    def _follow(self, loss: Tensor) -> bool:
        """Makes a new plan if the training would miss its time; returns whether it did."""
        schedule = self._schedule
        if not schedule.must_follow(self.step, time.monotonic() - self._started):
            return False
        loss.item()  # Waits until the device has done its work.
        return schedule.follow(self.step, time.monotonic() - self._started)

    def _row(self, loss: Tensor, extras: dict[str, Tensor], seconds: float) -> dict[str, float]:
        row = self._meter.row(self.step, loss, extras, self._stepper.optimizer)
        schedule = self._schedule
        planned = {} if schedule.plan.seconds is None else {"steps": schedule.last}
        return row | planned | {"seconds": round(seconds, 2)}

    def _save(self, is_last: bool, signal: int, seconds: float) -> None:
        """Saves the state. After a signal raises Stopped."""
        schedule, saving = self._schedule, self._saving
        if saving is None:
            return
        position = {
            "step": self.step,
            "seconds": seconds,
            "replanned": schedule.replanned,
            "data": self._data.digest(),
        }
        # A training that has ended does not need its optimizer any more.
        optimizer = None if is_last else self._stepper.optimizer
        save_state(saving.file, self._stepper.objective, optimizer, schedule.plan, position)
        self._saved = time.monotonic()
        if signal:
            raise Stopped(signal, saving.resume_command)
        schedule.pause(self.step, self._saved - self._started)

    def _diverged(self, wrong: NotFinite, batch: Batch) -> UserError:
        path = self._saving.folder / DIVERGED if self._saving else None
        own = self._stepper.objective, self._stepper.optimizer
        return diverged(wrong, path, *own, self._schedule, batch, self.step)


def _step(stepper: Stepper, batch: Batch, order: Order) -> tuple[Tensor, dict[str, Tensor]]:
    return stepper.take(batch, order)


def _must_save(is_last: bool, signal: int, since_saved: float, seconds: float) -> bool:
    """Returns whether to save the state after a step, also after the last one, as the command goes on to
    do more."""
    return bool(signal) or (seconds > WORTH_KEEPING_SECONDS if is_last else since_saved > SAVE_SECONDS)


def _does_not_fit(
    objective: nn.Module, data: TrainingData, plan: Plan, device: torch.device
) -> UserError:
    """Returns the error for a batch that does not fit into memory. Its hint names a batch that does fit,
    found by trying."""
    if is_together():
        return UserError(
            f"A batch of {plan.batch} images ({words_of(plan.batch)}) does not fit into memory.",
            f"try --batch {max(2, plan.batch // 2)}. What was saved before is untouched.",
        )
    batch = plan.batch // 2
    while batch >= 2:
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            _trial(objective, data, replace(plan, batch=batch), device, lambda times: len(times) >= 2)
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
    """Returns the median of `trial_times`."""
    return float(np.median(trial_times(objective, data, plan, device, budget)))


def trial_times(
    objective: nn.Module,
    data: TrainingData,
    plan: Plan,
    device: torch.device,
    budget: float,
    least: int = 2,
) -> list[float]:
    """Measures the seconds that steps take, in a trial of a few whose effect is undone.

    The trial takes about a fiftieth of `budget` seconds at most, but measures no fewer than `least`
    steps, after a first one that is not counted. Raises UserError if the batch does not fit into memory.
    """

    def is_enough(times: list[float]) -> bool:
        return len(times) >= least and (
            len(times) >= _TRIAL_STEPS or sum(times) >= _TRIAL_FRACTION * budget
        )

    try:
        return _trial(objective, data, plan, device, is_enough)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    raise _does_not_fit(objective, data, plan, device)


def _trial(
    objective: nn.Module,
    data: TrainingData,
    plan: Plan,
    device: torch.device,
    is_enough: Callable[[list[float]], bool],
) -> list[float]:
    schedule = Schedule(plan, len(data))
    order = Order(0, schedule.learning_rate(0), 0.0, schedule.progress(0, taken=1))
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    times: list[float] = []

    # The first step is not counted: it allocates memory, selects kernels and compiles.
    def lead(stepper: Stepper, is_called: Callable[[], bool]) -> None:
        with Batches(data, plan, device, 0) as batches:
            while not is_enough(times[1:]):
                started = time.monotonic()
                batch = next(batches)
                stepper.tell(STEP, order)
                with contextlib.suppress(NotFinite):  # Only the time matters here.
                    loss, _ = _step(stepper, batch, order)
                    loss.item()  # Waits until the device has done its work.
                times.append(time.monotonic() - started)
                if plan.compile and not is_called():
                    raise NothingCompiled

    is_split = plan.batch >= size()
    try:
        with contextlib.nullcontext() if is_split else on_its_own():
            everywhere(in_all_processes, objective, data, plan, device, {}, None, 0, lead=lead)
    finally:
        objective.load_state_dict(before)
        for parameter in objective.parameters():
            parameter.grad = None
    return times[1:]
