"""Measures how fast a training is, for the rows of its log."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from clfew.training.batch import Batch
from clfew.training.plan import Plan


class Meter:
    """Measures the images a second and the time spent waiting for data between two rows of the log."""

    def __init__(self, plan: Plan, images: int, done: int) -> None:
        self._per_epoch = plan.steps_per_epoch(images)
        self._first = done == 0
        self._restart()

    def _restart(self) -> None:
        self._since, self._images, self._waited = time.monotonic(), 0, 0.0

    def next_batch(self, batches: Iterator[Batch]) -> Batch:
        started = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - started
        return batch

    def count(self, images: int) -> None:
        self._images += images

    def is_due(self, seconds: float) -> bool:
        """Returns whether the last row is `seconds` old, or this is the first step."""
        first, self._first = self._first, False
        return first or time.monotonic() - self._since >= seconds

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
