"""Where a training is in its plan, and new plans for a training that is given a time.

A training of a given time is planned by the speed of a few steps. Later steps may be faster or slower,
as when another program starts or ends. So the speed is measured all along, and where the training would
miss its end it gets a new plan. What is recorded of the new plans is enough to repeat every step.
"""

from typing import NamedTuple

from clfew.training.optim import learning_rate
from clfew.training.plan import Plan, warmup_steps

CHECKS, FEW_STEPS = 200, 4
"""How often, in a training, the speed is measured and the end forecast. It is measured over FEW_STEPS at
least, as single ones vary, unless these take FEW_STEPS times as long."""

MISS, MISS_OF_REST = 0.01, 0.2
"""There is a new plan if the end is forecast to miss its time by more than both: a fraction of the whole
time, and of what is left of it, as the speed varies a little by chance and what is far away can still be
mended."""


class Stretch(NamedTuple):
    """The steps of one plan.

    first: the number of steps before it. progress: the fraction of the training that was done then.
    last: the number of steps after which the training ends by this plan.
    """

    first: int
    progress: float
    last: int


class Schedule:
    """The plan of a training, and those that replaced it.

    images: the number of images in an epoch.
    """

    def __init__(self, plan: Plan, images: int) -> None:
        self.plan, self._per_epoch = plan, plan.steps_per_epoch(images)
        self.restore(plan.replanned)
        self._step_seconds: float | None = None
        self._since: tuple[int, float] | None = None

    def restore(self, replanned: list[list[float]]) -> None:
        """Takes up the new plans of a training that is resumed or repeated."""
        self._stretches = [Stretch(0, 0.0, self.plan.steps)]
        self._stretches += [Stretch(int(first), done, int(last)) for first, done, last in replanned]

    @property
    def last(self) -> int:
        """The number of steps after which the training ends, by the newest plan."""
        return self._stretches[-1].last

    @property
    def replanned(self) -> list[list[float]]:
        """The stretches after the first one, as JSON keeps them."""
        return [list(stretch) for stretch in self._stretches[1:]]

    def progress(self, step: int, taken: int = 0) -> float:
        """Returns the fraction of the training that is done before step `step`, counted from 0, or
        `taken` steps later by the plan of that step."""
        position, length, _ = self._position(step)
        return min(1.0, (position + taken) / length)

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step, that of a training with this progress."""
        return learning_rate(*self._position(step), self.plan.learning_rate)

    def _position(self, step: int) -> tuple[float, float, int]:
        """Returns where a step lies in a training that goes at its plan's speed from start to end: the
        steps before it, all steps, and those of the warm-up."""
        first, progress, last = next(s for s in reversed(self._stretches) if s.first <= step)
        length = (last - first) / (1 - progress) if last > first else 1.0
        warmup = warmup_steps(length, self._per_epoch) if first else self.plan.warmup_steps
        return progress * length + (step - first), length, warmup

    def must_follow(self, step: int, seconds: float) -> bool:
        """Called after each step; returns whether `follow` is to be called after `step` steps, which
        took `seconds`."""
        if self.plan.seconds is None:
            return False
        if step >= self.last or seconds >= self.plan.seconds:
            return True
        if self._since is None:  # The first step is not counted: it compiles and allocates.
            self._since = step, seconds
        taken, elapsed = step - self._since[0], seconds - self._since[1]
        window = self.plan.seconds / CHECKS
        return elapsed >= window and (taken >= FEW_STEPS or elapsed >= FEW_STEPS * window)

    def follow(self, step: int, seconds: float) -> bool:
        """Makes a new plan if the training would not end in time; returns whether it did."""
        assert self.plan.seconds is not None
        since_step, since = self._since or (0, 0.0)
        if step > since_step:
            measured = (seconds - since) / (step - since_step)
            # Half of it from before, so that one slow step does not decide.
            before = measured if self._step_seconds is None else self._step_seconds
            self._step_seconds = max((before + measured) / 2, 1e-9)
        self._since = step, seconds
        if self._step_seconds is None:
            return False
        left = self.plan.seconds - seconds
        last = step + max(0, round(left / self._step_seconds))
        last = min(last, max(step, self.plan.most_steps or last))
        miss = abs((self.last - step) * self._step_seconds - left)
        tolerated = max(MISS * self.plan.seconds, MISS_OF_REST * left)
        if last == self.last or miss <= tolerated:
            return False
        self._stretches.append(Stretch(step, self._progress_at(step, seconds, last), last))
        return True

    def _progress_at(self, step: int, seconds: float, last: int) -> float:
        """Returns the progress at which a new plan begins after `step` steps.

        It is that of the plan before. But steps that were much faster than planned have used up progress
        and neither time nor a comparable part of the steps; it is given back.
        """
        assert self.plan.seconds is not None
        before = self.progress(step - 1, taken=1)
        return min(before, max(seconds / self.plan.seconds, step / max(1, last)), 1.0)

    def pause(self, step: int, seconds: float) -> None:
        """Leaves the time since the last call of `follow` out of the speed: something else was done."""
        if self._since is not None:
            self._since = step, seconds
