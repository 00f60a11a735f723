"""The plan of a training: everything that determines it besides its data and its objective."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Plan:
    """The settings of a training.

    steps: the number of steps; of a training that has a time, the first estimate. compile: whether the
    encoder is compiled. Its results are rounded differently then. seconds: the time that the training
    has, None if it takes as many steps as are planned, however long they take. most_steps: a limit to
    the steps of a training that has a time. replanned: the plans that replace this one on the way, in a
    training whose steps are taken again (see `schedule.Stretch`).
    """

    steps: int
    batch: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    seed: int
    precision: str
    compile: bool = False
    seconds: float | None = None
    most_steps: int | None = None
    replanned: list[list[float]] = field(default_factory=list)

    def steps_per_epoch(self, images: int) -> int:
        return max(1, images // self.batch)

    def last_step(self) -> int:
        """Returns the number of steps of a training that has ended or is repeated."""
        return int(self.replanned[-1][2]) if self.replanned else self.steps


def warmup_steps(steps: float, per_epoch: int) -> int:
    """Returns the steps of a warm-up: ten epochs, but no more than a tenth of the training."""
    return max(1, min(10 * per_epoch, int(steps // 10)))
