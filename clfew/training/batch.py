"""The batches a training objective is given, one a step, loaded ahead of time."""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from clfew.data.cache_arrays import RowReader
from clfew.data.randomness import ImageRandom, epoch_order
from clfew.data.to_device import to_device
from clfew.group.tensors import rows_of
from clfew.training.plan import Plan

_REPEAT_BITS = 40
"""More images than 2 to this power are in no source."""

_ROWS_PER_COPY = 4096
"""The number of images that are copied to the GPU at a time."""


@dataclass(frozen=True)
class Batch:
    """B images from the image cache, with what is needed to make random views of them. Of several
    processes each has a part of the batch.

    images: uint8, (B, S, S, 3), or whatever the data holds in their place (for an adapter, the features
    of views). aspects: float32, (B,), width / height of the original images.
    random: the random numbers of these images in this epoch. labels: int64, (B,), if the objective
    learns from labels. progress: the fraction of the training that is done, in [0, 1], which the loop
    sets: a new plan changes it while batches are loaded ahead. in_all: how many images the batch has in
    all processes.
    """

    images: Tensor
    aspects: Tensor
    random: ImageRandom
    labels: Tensor | None = None
    progress: float = 0.0
    in_all: int = 0


@dataclass(frozen=True)
class TrainingData:
    """The images a run trains on: the rows `indices` of an image cache's arrays, or of an array of
    features.

    labels: int64, one for each of `indices`, if the objective learns from labels.
    """

    pixels: np.ndarray
    aspects: np.ndarray
    indices: np.ndarray
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def keys(self) -> np.ndarray:
        """What the random numbers of each row depend on: its index in the source, not which other images
        the run trains on; where an index is repeated, also which of the repeats it is."""
        order = np.argsort(self.indices, kind="stable")
        ordered = self.indices[order]
        first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        repeat = np.empty_like(order)
        repeat[order] = np.arange(len(order)) - np.repeat(first, np.diff(np.r_[first, len(order)]))
        return self.indices + (repeat << _REPEAT_BITS)

    def digest(self) -> str:
        """Returns a hash that differs between trainings on other images or with other labels."""
        digest = hashlib.blake2b(self.indices.tobytes(), digest_size=16)
        digest.update(b"" if self.labels is None else self.labels.tobytes())
        return digest.hexdigest()


def on_gpu_of_thread(device: torch.device) -> Callable[[], None]:
    """Returns what a new thread calls first, so that "cuda" means there the GPU that it means here."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return lambda: None
    current = torch.cuda.current_device()
    return lambda: torch.cuda.set_device(current)


class Batches:
    """The batches from step `start` on. The next batch is gathered while the current step computes."""

    def __init__(self, data: TrainingData, plan: Plan, device: torch.device, start: int) -> None:
        self._data, self._plan, self._device = data, plan, device
        self._steps = itertools.count(start)
        self._pool = ThreadPoolExecutor(1, initializer=on_gpu_of_thread(device))
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))
        self._read = RowReader(data.pixels)
        self._resident = self._on_device()

    def __enter__(self) -> Iterator[Batch]:
        return self._iterate()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._read.close()

    def _iterate(self) -> Iterator[Batch]:
        upcoming = self._pool.submit(self.gather, next(self._steps))
        while True:
            batch = upcoming.result()
            upcoming = self._pool.submit(self.gather, next(self._steps))
            yield batch

    def _on_device(self) -> Tensor | None:
        """Returns all images in GPU memory if they take at most half of what is free, else None."""
        if self._device.type != "cuda":
            return None
        free, _ = torch.cuda.mem_get_info(self._device)
        images = self._data.pixels
        image_bytes = math.prod(images.shape[1:]) * images.dtype.itemsize
        if image_bytes * len(self._data) > free // 2:
            return None
        # PyTorch's name for NumPy's data type.
        dtype = torch.from_numpy(np.empty(0, images.dtype)).dtype
        shape = (len(self._data), *images.shape[1:])
        resident = torch.empty(shape, dtype=dtype, device=self._device)
        for start in range(0, len(self._data), _ROWS_PER_COPY):
            rows = self._data.indices[start : start + _ROWS_PER_COPY]
            resident[start : start + _ROWS_PER_COPY] = to_device(self._read(rows), self._device)
        return resident

    def gather(self, step: int) -> Batch:
        """Returns the batch of a step, on the device."""
        data, plan = self._data, self._plan
        per_epoch = plan.steps_per_epoch(len(data))
        epoch, position = divmod(step, per_epoch)
        if self._order[0] != epoch:
            self._order = (epoch, epoch_order(plan.seed, epoch, len(data)))
        whole = self._order[1][position * plan.batch : (position + 1) * plan.batch]
        part = rows_of(len(whole))
        chosen = whole[part.start : part.start + part.count]
        rows = data.indices[chosen]
        if self._resident is not None:
            images = self._resident[to_device(chosen, self._device)]
        else:
            images = to_device(self._read(rows), self._device)
        labels = None if data.labels is None else to_device(data.labels[chosen], self._device)
        aspects = to_device(data.aspects[rows], self._device)
        first = int(data.keys[whole[0]]) if part.count < part.total else None
        random = ImageRandom(plan.seed, epoch, data.keys[chosen], first)
        return Batch(images, aspects, random, labels, in_all=len(whole))
