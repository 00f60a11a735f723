"""Computes a network's outputs for image files while they are read. Several processes share them out."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import nn

from clfew import console
from clfew.data.decode import BadImage, read_bytes
from clfew.data.elsewhere import Part, described, found_here
from clfew.data.pixel_scale import PixelScale
from clfew.data.source import Source
from clfew.data.workers import decode_ahead, decoders
from clfew.group import command as groups
from clfew.group.command import everywhere
from clfew.group.group import Group
from clfew.models.features import apply, batch_size
from clfew.training.device import keep_freed_memory

T = TypeVar("T")
Output = tuple[list[T], list[BadImage | None], np.ndarray]
"""A batch: the references, the error of each (None for a good image), and the network's float32 results
for the good images."""


@dataclass(frozen=True)
class Applied:
    """What is applied to images: a network, in eval mode. size: of its input. side: to which images are
    decoded. workers: how many are decoded at a time."""

    network: nn.Module
    size: int
    side: int
    device: torch.device
    precision: str
    scale: PixelScale | None
    workers: int = field(default_factory=lambda: min(decoders(), torch.get_num_threads()))

    @property
    def step(self) -> int:
        return batch_size(self.size, self.device)


def apply_to_paths(applied: Applied, paths: Iterable[str]) -> Iterator[Output[str]]:
    """Applies a network to files while later ones are decoded on all cores, in order and in bounded
    memory. Yields batches."""
    return _outputs(applied, paths, _content_of, None)


def apply_to_source(applied: Applied, source: Source) -> Iterator[Output[int]]:
    """Does the same for all images of a source; references are their indices."""
    parts = described(source) if groups.is_together() else None
    return _outputs(applied, range(len(source)), source.content, parts)


def _content_of(path: str) -> bytes:
    return read_bytes(Path(path))


def _outputs(
    applied: Applied, references: Iterable[T], read: Callable[[T], bytes], parts: list[Part] | None
) -> Iterator[Output[T]]:
    group = groups.current()
    if group is None:
        yield from _applied(applied, references, read)
        return
    task = f"files/{group.next_number()}"
    everywhere(_apply_to_share, applied, task, parts)
    with group.unsettled():
        shared = _SharedOut(references, applied.step, task, group)
        lost = 0
        try:
            for number, output in enumerate(_applied(applied, shared.own(), read)):
                yield output
                for rank in range(1, group.size):
                    if batch := shared.taken(number, rank):
                        errors, results = group.take(rank)
                        yield (again := _tried_again(applied, batch, errors, results, read))
                        lost += sum(map(bool, errors)) - sum(map(bool, again[1]))
                shared.forget(number)
        except GeneratorExit:  # Whoever iterates has seen enough.
            shared.end()
            raise
    if lost:
        console.say(f"note       {lost:,} of the images could be read by the first process only")


_AHEAD = 4
"""How many batches further than the leader has come the others are told what to read. They decode as far
ahead as it does, and wait for no more than that."""


class _SharedOut(Generic[T]):
    """Shares references out: of each round of batches, one for each process.

    rounds: the batches of each round that has been told, empty where the outputs have been taken.
    """

    def __init__(self, references: Iterable[T], step: int, task: str, group: Group) -> None:
        self._remaining, self._step, self._task, self._group = iter(references), step, task, group
        self.rounds: list[list[list[T]]] = []
        self._is_more = True

    def own(self) -> Iterator[T]:
        """Yields the leader's references, and tells the others theirs, a little ahead."""
        number = 0
        while self._is_more or number < len(self.rounds):
            while self._is_more and len(self.rounds) <= number + _AHEAD:
                self._tell()
            if number < len(self.rounds):
                yield from self.rounds[number][0]
            number += 1

    def forget(self, number: int) -> None:
        """Removes a round whose outputs have been taken, so that memory stays bounded."""
        if number < len(self.rounds) - 1:  # All have a batch of it, and so have read it.
            self._group.store.delete_key(f"{self._task}/{number}")
        self.rounds[number] = []

    def taken(self, number: int, rank: int) -> list[T]:
        """Returns the batch of a process, whose outputs are taken now."""
        batch, self.rounds[number][rank] = self.rounds[number][rank], []
        return batch

    def end(self) -> None:
        """Ends before all references have been told: waits until the others have done what they were."""
        if self._is_more:
            self._group.post(f"{self._task}/{len(self.rounds)}", None)
        for batches in self.rounds:
            for rank, batch in enumerate(batches):
                if rank and batch:
                    self._group.take(rank)
        self._group.is_settled = True

    def _tell(self) -> None:
        """Tells the next round, or that there is none."""
        batches = [list(islice(self._remaining, self._step)) for _ in range(self._group.size)]
        key = f"{self._task}/{len(self.rounds)}"
        self._is_more = bool(batches[0])
        if self._is_more:
            self.rounds.append(batches)
        self._group.post(key, batches if self._is_more else None)


def _apply_to_share(applied: Applied, task: str, parts: list[Part] | None) -> None:
    """What the others do: they read the references that they are told, and give the leader the errors
    and the results."""
    group = groups.current()
    assert group is not None
    read: list[Callable[[Any], bytes]] = [_content_of]

    def find() -> None:
        if parts is not None and group.rank:
            read[0] = found_here(parts, applied.scale, group.own_source).content

    group.agree(find)
    if group.rank == 0:
        return

    def references() -> Iterator[Any]:
        number = 0
        while (batches := group.fetch(f"{task}/{number}")) is not None:
            yield from batches[group.rank]
            number += 1

    for _, errors, results in _applied(applied, references(), read[0]):
        group.give((errors, results))


def _tried_again(
    applied: Applied,
    batch: list[T],
    errors: list[BadImage | None],
    results: np.ndarray,
    read: Callable[[T], bytes],
) -> Output[T]:
    """Returns the outputs of another process, and those of images that only the leader can read."""
    if not any(errors):
        return batch, errors, results
    rows, own = iter(results), list[BadImage | None]()
    kept = []
    for reference, error in zip(batch, errors, strict=True):
        row = next(rows) if error is None else None
        if error is not None:
            _, (error,), again = next(_applied(applied, [reference], read))
            row = again[0] if error is None else None
        own.append(error)
        kept += [] if row is None else [row]
    return batch, own, np.stack(kept) if kept else np.empty((0, 1), np.float32)


def _applied(
    applied: Applied, references: Iterable[T], read: Callable[[T], bytes]
) -> Iterator[Output[T]]:
    keep_freed_memory(applied.device)
    network = applied.network
    network.to(applied.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    decoded = decode_ahead(references, read, applied.side, applied.workers, applied.scale)
    while batch := list(islice(decoded, applied.step)):
        errors = [image if isinstance(image, BadImage) else None for _, image in batch]
        good = [image for _, image in batch if not isinstance(image, BadImage)]
        results = np.empty((0, 1), np.float32)
        if good:
            pixels = np.stack([image.pixels for image in good])
            aspects = np.array([image.aspect for image in good], np.float32)
            results = apply(network, applied.size, pixels, aspects, applied.device, applied.precision)
        yield [reference for reference, _ in batch], errors, results
