"""Turns a budget in epochs or minutes into a plan with a number of steps."""

import contextlib
import functools
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import torch
from torch import nn

from clfew import console
from clfew.errors import UsageError, UserError
from clfew.runs.folders import read_config
from clfew.training.batch import TrainingData
from clfew.training.compilation import FEWEST_TIMES, SHORTEST_RUN, choose_compile
from clfew.training.loop import trial_times
from clfew.training.optim import OptimizerChoice
from clfew.training.plan import Plan, warmup_steps

_MOST_STEPS = 1e15
"""Years of training at a microsecond a step. Up to here, positions in the schedule are exact floats."""


@dataclass(frozen=True)
class Recorded:
    """What a run records of its trainings, so that their steps can be taken again.

    place: the run. plan: the first plan of each training. replanned: of each training, the plans that
    replaced it; empty if none of them had a time. images: the number of images in an epoch.
    """

    place: str
    plan: Plan
    replanned: list[list[list[float]]]
    images: int

    def of_training(self, number: int) -> list[list[float]]:
        """Returns the plans that replaced the first one in a training, counted from 0. Raises UserError
        if there was no such training."""
        if not self.replanned:
            return []
        if number >= len(self.replanned):
            raise UserError(
                f"{self.place} had {len(self.replanned)} trainings, and this run has more.",
                "give a number of epochs.",
            )
        return self.replanned[number]


@dataclass(frozen=True)
class Budget:
    """The length of a training.

    It is given in epochs or in minutes, or as a training whose steps are taken again (`repeated`). If
    nothing is given, the training takes `default_epochs`, but no longer than `default_minutes`.
    """

    epochs: float | None
    minutes: float | None
    default_epochs: float
    default_minutes: float
    repeated: Recorded | None = None


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
    minutes, by a trial of a few steps, and the training is planned again where its speed changes (see
    `schedule`). Prints on stderr what was chosen and why. Raises UserError if the budget is not valid or
    compilation takes too much of it.
    """
    started = time.monotonic()
    per_epoch = max(1, len(data) // options.batch)
    _check(budget, per_epoch)
    seconds = 60 * (budget.minutes or budget.default_minutes)
    longest = round(budget.default_epochs * per_epoch)
    planned = longest if budget.epochs is None else round(budget.epochs * per_epoch)
    if budget.repeated is not None:
        planned = _steps_again(budget.repeated, len(data), options.batch)

    may_be_long = budget.epochs is not None or seconds >= SHORTEST_RUN

    @functools.cache
    def step_times(compile: bool) -> tuple[float, ...]:
        optimizer, rate, decay, _ = options.choose_optimizer(planned)
        seed, precision = options.seed, options.precision
        trial = Plan(100, options.batch, optimizer, rate, decay, 1, seed, precision, compile)
        least = FEWEST_TIMES if may_be_long else 2
        return tuple(trial_times(objective, data, trial, device, seconds, least))

    has_time = budget.epochs is None and budget.repeated is None
    if has_time:
        steps, compile, why = _steps_in_time(budget, options, per_epoch, device, step_times, started)
    else:
        compilation = options.compilation
        if budget.repeated is not None and compilation == "auto":  # Which rounds differently.
            compilation = "on" if budget.repeated.plan.compile else "off"
        compile, why = choose_compile(compilation, device, planned, step_times)
        steps = planned
    steps = max(1, steps)
    chosen, rate, decay, why_optimizer = options.choose_optimizer(steps)
    rate = options.lr or rate
    console.say(f"optimizer  {chosen}, learning rate {rate:.3g} ({why_optimizer})")
    console.say(f"compile    {'on' if compile else 'off'} ({why})")
    seed, precision, warmup = options.seed, options.precision, warmup_steps(steps, per_epoch)
    plan = Plan(steps, options.batch, chosen, rate, decay, warmup, seed, precision, compile)
    if budget.repeated is not None:
        return replace(plan, replanned=budget.repeated.of_training(0))
    if not has_time:
        return plan
    left = max(1e-3, seconds - (time.monotonic() - started))
    return replace(plan, seconds=left, most_steps=None if budget.minutes else max(1, longest))


def _steps_again(recorded: Recorded, images: int, batch: int) -> int:
    """Returns the steps that the recorded training was first planned with. Raises UserError if this one
    has other epochs."""
    before = f"{recorded.images:,} images in batches of {recorded.plan.batch}"
    now = f"{images:,} images in batches of {batch}"
    if before != now:
        plan = replace(recorded.plan, replanned=recorded.of_training(0))
        epochs = plan.last_step() / plan.steps_per_epoch(recorded.images)
        raise UserError(
            f"The steps of {recorded.place} cannot be taken again here: an epoch was {before}, and now "
            f"it is {now}.",
            f"give a number of epochs; it had --epochs {epochs:.4g}.",
        )
    return recorded.plan.steps


def budget_of(
    epochs: float | str | Path | None,
    minutes: float | None,
    default_epochs: float,
    default_minutes: float,
    command: str,
) -> Budget:
    """Returns the budget of a command. epochs: as `--epochs` takes it, a number or a run of `command`.
    Raises UserError if it is not such a run, and UsageError for a number that is no budget and for two
    budgets."""
    if epochs is not None and minutes is not None:
        raise UsageError("--epochs and --minutes are two budgets for one run.", "give one of them.")
    if isinstance(epochs, str):  # As from a configuration file.
        with contextlib.suppress(ValueError):
            epochs = float(epochs)
    if isinstance(epochs, (str, Path)):
        again = recorded(str(epochs), command)
        return Budget(None, None, default_epochs, default_minutes, again)
    budget = Budget(epochs, minutes, default_epochs, default_minutes)
    _check(budget, 1)
    return budget


def recorded(run: str, command: str) -> Recorded:
    """Reads what a run of `command` records of its trainings. Raises UserError if it records none, or
    has not finished."""
    path = Path(run)
    if not run or not path.exists():
        raise UserError(
            f"--epochs {run} is neither a number nor a run.",
            f"for example: --epochs 20, or --epochs runs/{command}-1 for the steps of that run.",
        )
    folder = path if path.is_dir() else path.parent
    config = read_config(folder)
    try:
        plan, images = Plan(**config["plan"]), int(config.get("viewed") or config["images"])
        is_one = config["command"] == command
    except (KeyError, TypeError, ValueError):
        is_one = False
    if not is_one:
        raise UserError(
            f"--epochs {run} is not a finished run of clfew {command}.",
            f"for example: --epochs 20, or --epochs runs/{command}-1.",
        )
    if plan.seconds is not None and "replanned" not in config:
        raise UserError(
            f"{folder} has not finished, so its steps cannot be taken again.",
            f"finish it: clfew {command} --resume {shlex.quote(str(folder))}",
        )
    return Recorded(str(folder), plan, config.get("replanned", []), images)


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
    step_times: Callable[[bool], tuple[float, ...]],
    started: float,
) -> tuple[int, bool, str]:
    """Returns how many steps fit into the minutes, which have begun at `started`, whether they are
    compiled, and why."""
    seconds = 60 * (budget.minutes or budget.default_minutes)
    longest = round(budget.default_epochs * per_epoch)

    def steps_in(available: float, compile: bool) -> tuple[int, int]:
        fitting = max(1, int(available / median(step_times(compile))))
        return fitting, fitting if budget.minutes else min(longest, fitting)

    steps = longest
    if options.compilation != "on":
        _, steps = steps_in(seconds * 0.95, False)
    compile, why = choose_compile(options.compilation, device, steps, step_times)
    step_times(compile)  # Takes a fiftieth of the budget; where the network is compiled, more.
    left = seconds - (time.monotonic() - started)
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
