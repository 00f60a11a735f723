"""The plan of a training: everything that determines it besides its data and its objective."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """The settings of a training.

    compile: whether the encoder is compiled. Its results are rounded differently then.
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

    def steps_per_epoch(self, images: int) -> int:
        return max(1, images // self.batch)
