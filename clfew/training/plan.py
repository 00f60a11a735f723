"""What decides a training besides its data and its objective."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """compile: train a compiled encoder, whose rounding differs from the plain one's."""

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
