"""From a budget in epochs or minutes to a plan of steps."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from clfew import console
from clfew.errors import UsageError, UserError
from clfew.training.batch import TrainingData
from clfew.training.compilation import choose_compile
from clfew.training.loop import seconds_per_step
from clfew.training.optim import OptimizerChoice
from clfew.training.plan import Plan

_MOST_STEPS = 1e15
"""Years, at a microsecond each; the positions in a schedule of so many are still exact."""


@dataclass(frozen=True)
class Budget:
    """epochs or minutes, or neither: then `default_epochs`, but no longer than `default_minutes`."""

    epochs: float | None
    minutes: float | None
    default_epochs: float
    default_minutes: float


def plan_within(
    budget: Budget,
    objective: nn.Module,
    data: TrainingData,
    device: torch.device,
    *,
    batch: int,
    choose_optimizer: Callable[[int], OptimizerChoice],
    lr: float | None,
    seed: int,
    precision: str,
    compilation: str,
) -> Plan:
    """A plan in whole steps: of a number of epochs, else of what fits into the minutes by a trial of a
    few steps.

    choose_optimizer(steps): see `optim.choose_pretraining`. lr: None for its choice. compilation:
    "auto", "on" or "off". Says on stderr what it chose and why. Raises UserError.
    """
    epochs, minutes = budget.epochs, budget.minutes
    per_epoch = max(1, len(data) // batch)
    for option, value, most in (("epochs", epochs, _MOST_STEPS / per_epoch), ("minutes", minutes, 1e9)):
        if value is not None and not 0 < value < most:  # What is not a number is neither.
            raise UsageError(f"--{option} {value:g} is no budget.", f"give a number below {most:g}.")
    longest = round(budget.default_epochs * per_epoch)
    steps = longest if epochs is None else round(epochs * per_epoch)
    seconds = 60 * (minutes or budget.default_minutes)
    started = time.monotonic()

    @functools.cache
    def step_seconds(compile: bool) -> float:
        likely, rate, decay, _ = choose_optimizer(steps)
        trial = Plan(100, batch, likely, rate, decay, 1, seed, precision, compile)
        return seconds_per_step(objective, data, trial, device, seconds)

    if epochs is None and compilation != "on":
        fitting = max(1, int(seconds * 0.95 / step_seconds(False)))
        steps = fitting if minutes else min(steps, fitting)
    compile, why_compile = choose_compile(compilation, device, steps, step_seconds)
    if epochs is None:
        # The trial of a compiled network takes more than its twentieth of the budget.
        left = min(0.95 * seconds, seconds - (time.monotonic() - started))
        if compile and left < 0.5 * seconds:
            raise UserError(
                f"Compiling takes more than half of the {seconds / 60:g} minutes.",
                "do without: --compile off; or give more --minutes.",
            )
        fitting = max(1, int(left / step_seconds(compile)))
        steps = fitting if minutes else min(longest, fitting)
        console.say(
            f"budget     {seconds / 60:g} minutes are {fitting / per_epoch:.4g} epochs at this speed"
            + (
                ""
                if minutes
                else f"; the default is {budget.default_epochs:g} epochs or what fits in them"
            )
        )
    steps = max(1, steps)
    chosen, rate, decay, why = choose_optimizer(steps)
    console.say(f"optimizer  {chosen}, learning rate {lr or rate:.3g} ({why})")
    console.say(f"compile    {'on' if compile else 'off'} ({why_compile})")
    warmup = max(1, min(10 * per_epoch, steps // 10))
    return Plan(steps, batch, chosen, lr or rate, decay, warmup, seed, precision, compile)
