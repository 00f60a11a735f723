"""Turns a budget in epochs or minutes into a plan with a number of steps."""

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
"""Years of training at a microsecond a step. Up to here, positions in the schedule are exact floats."""


@dataclass(frozen=True)
class Budget:
    """The length of a training.

    It is given in epochs or in minutes. If neither is given, the training takes `default_epochs`, but no
    longer than `default_minutes`.
    """

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
    """Returns a plan with a whole number of steps.

    The steps are those of the epochs of the budget. If it gives none, they are as many as fit into its
    minutes, measured in a trial of a few steps.

    choose_optimizer(steps): see `optim.choose_pretraining`. lr: the peak learning rate; None for the one
    that `choose_optimizer` returns. compilation: "auto", "on" or "off". Prints on stderr what was chosen
    and why. Raises UserError if the budget is not valid or compilation takes too much of it.
    """
    epochs, minutes = budget.epochs, budget.minutes
    per_epoch = max(1, len(data) // batch)
    for option, value, most in (("epochs", epochs, _MOST_STEPS / per_epoch), ("minutes", minutes, 1e9)):
        if value is not None and not 0 < value < most:  # NaN fails this comparison too.
            raise UsageError(
                f"--{option} {value:g} is not a valid budget.", f"give a number below {most:g}."
            )
    longest = round(budget.default_epochs * per_epoch)
    steps = longest if epochs is None else round(epochs * per_epoch)
    seconds = 60 * (minutes or budget.default_minutes)
    started = time.monotonic()

    @functools.cache
    def step_seconds(compile: bool) -> float:
        optimizer, rate, decay, _ = choose_optimizer(steps)
        trial = Plan(100, batch, optimizer, rate, decay, 1, seed, precision, compile)
        return seconds_per_step(objective, data, trial, device, seconds)

    if epochs is None and compilation != "on":
        steps_that_fit = max(1, int(seconds * 0.95 / step_seconds(False)))
        steps = steps_that_fit if minutes else min(steps, steps_that_fit)
    compile, why_compile = choose_compile(compilation, device, steps, step_seconds)
    if epochs is None:
        # A trial may take a twentieth of the budget; that of a compiled network takes more.
        left = min(0.95 * seconds, seconds - (time.monotonic() - started))
        if compile and left < 0.5 * seconds:
            raise UserError(
                f"Compiling takes more than half of the {seconds / 60:g} minutes.",
                "train without compilation (--compile off), or give more --minutes.",
            )
        steps_that_fit = max(1, int(left / step_seconds(compile)))
        steps = steps_that_fit if minutes else min(longest, steps_that_fit)
        console.say(
            f"budget     {seconds / 60:g} minutes are enough for {steps_that_fit / per_epoch:.4g} "
            "epochs at this speed"
            + (
                ""
                if minutes
                else f"; the default is {budget.default_epochs:g} epochs, or fewer if they do not fit"
            )
        )
    steps = max(1, steps)
    chosen, rate, decay, why = choose_optimizer(steps)
    console.say(f"optimizer  {chosen}, learning rate {lr or rate:.3g} ({why})")
    console.say(f"compile    {'on' if compile else 'off'} ({why_compile})")
    warmup = max(1, min(10 * per_epoch, steps // 10))
    return Plan(steps, batch, chosen, lr or rate, decay, warmup, seed, precision, compile)
