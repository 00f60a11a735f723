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


@dataclass(frozen=True)
class PlanOptions:
    """What a plan depends on besides its number of steps.

    choose_optimizer(steps): see `optim.choose_pretraining`. lr: the peak learning rate; None for the one
    that `choose_optimizer` returns. compilation: "auto", "on" or "off".
    """

    batch: int
    choose_optimizer: Callable[[int], OptimizerChoice]
    lr: float | None
    seed: int
    precision: str
    compilation: str


def plan_within(
    budget: Budget,
    objective: nn.Module,
    data: TrainingData,
    device: torch.device,
    options: PlanOptions,
) -> Plan:
    """Returns a plan with a whole number of steps.

    The steps are those of the epochs of the budget. If it gives none, they are as many as fit into its
    minutes, measured in a trial of a few steps. Prints on stderr what was chosen and why. Raises
    UserError if the budget is not valid or compilation takes too much of it.
    """
    per_epoch = max(1, len(data) // options.batch)
    _check(budget, per_epoch)
    seconds = 60 * (budget.minutes or budget.default_minutes)
    longest = round(budget.default_epochs * per_epoch)
    planned = longest if budget.epochs is None else round(budget.epochs * per_epoch)

    @functools.cache
    def step_seconds(compile: bool) -> float:
        optimizer, rate, decay, _ = options.choose_optimizer(planned)
        seed, precision = options.seed, options.precision
        trial = Plan(100, options.batch, optimizer, rate, decay, 1, seed, precision, compile)
        return seconds_per_step(objective, data, trial, device, seconds)

    if budget.epochs is None:
        steps, compile, why = _steps_in_time(budget, options, per_epoch, device, step_seconds)
    else:
        compile, why = choose_compile(options.compilation, device, planned, step_seconds)
        steps = planned
    steps = max(1, steps)
    chosen, rate, decay, why_optimizer = options.choose_optimizer(steps)
    rate = options.lr or rate
    console.say(f"optimizer  {chosen}, learning rate {rate:.3g} ({why_optimizer})")
    console.say(f"compile    {'on' if compile else 'off'} ({why})")
    warmup = max(1, min(10 * per_epoch, steps // 10))
    seed, precision = options.seed, options.precision
    return Plan(steps, options.batch, chosen, rate, decay, warmup, seed, precision, compile)


def _check(budget: Budget, per_epoch: int) -> None:
    """Raises UsageError for a budget that is no positive number, or more than can be counted."""
    for option, value, most in (
        ("epochs", budget.epochs, _MOST_STEPS / per_epoch),
        ("minutes", budget.minutes, 1e9),
    ):
        if value is not None and not 0 < value < most:  # NaN fails this comparison too.
            raise UsageError(
                f"--{option} {value:g} is not a valid budget.", f"give a number below {most:g}."
            )


def _steps_in_time(
    budget: Budget,
    options: PlanOptions,
    per_epoch: int,
    device: torch.device,
    step_seconds: Callable[[bool], float],
) -> tuple[int, bool, str]:
    """Returns how many steps fit into the minutes, whether they are compiled, and why."""
    started = time.monotonic()
    seconds = 60 * (budget.minutes or budget.default_minutes)
    longest = round(budget.default_epochs * per_epoch)

    def steps_in(available: float, compile: bool) -> tuple[int, int]:
        fitting = max(1, int(available / step_seconds(compile)))
        return fitting, fitting if budget.minutes else min(longest, fitting)

    steps = longest
    if options.compilation != "on":
        _, steps = steps_in(seconds * 0.95, False)
    compile, why = choose_compile(options.compilation, device, steps, step_seconds)
    # A trial may take a twentieth of the budget; that of a compiled network takes more.
    left = min(0.95 * seconds, seconds - (time.monotonic() - started))
    if compile and left < 0.5 * seconds:
        raise UserError(
            f"Compiling takes more than half of the {seconds / 60:g} minutes.",
            "train without compilation (--compile off), or give more --minutes.",
        )
    fitting, steps = steps_in(left, compile)
    default = f"; the default is {budget.default_epochs:g} epochs, or fewer if they do not fit"
    console.say(
        f"budget     {round(seconds / 60, 2):g} minutes are enough for {fitting / per_epoch:.4g} "
        f"epochs at this speed{'' if budget.minutes else default}"
    )
    return steps, compile, why
