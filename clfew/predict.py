"""`clfew predict` and `clfew embed`: images in, labels or features out, in bounded memory."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from clfew.artifacts import load_classifier
from clfew.data.decode import BadImage, load_square, read_bytes
from clfew.features import apply
from clfew.training.device import choose_device, choose_precision, set_threads

BATCH = 64
_AHEAD = 4 * BATCH
"""Images decoded or waiting to be, at most: this bounds the memory."""

T = TypeVar("T")


@dataclass(frozen=True)
class Prediction:
    """path: the image, as found. top: (label, probability) of the likeliest classes, best first, or
    empty where `error` says why the image cannot be read."""

    path: str
    top: list[tuple[str, float]]
    error: str | None = None

    def as_row(self) -> dict[str, Any]:
        """The row that --format json and jsonl print."""
        if self.error is not None:
            return {
                "path": self.path,
                "label": None,
                "probability": None,
                "top": [],
                "error": self.error,
            }
        label, probability = self.top[0]
        return {"path": self.path, "label": label, "probability": probability, "top": self.top}


def predict(
    images: Iterable[str],
    artifact: Path,
    *,
    top: int = 3,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
) -> Iterator[Prediction]:
    """Predictions for files, in order, while they are read. Raises UserError for the artifact."""
    set_threads(threads)
    classifier, about, _ = load_classifier(artifact)
    chosen, _ = choose_device(device)
    kind, _ = choose_precision(chosen, precision)
    classifier.to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
    paths = ((path, path) for path in images)
    read = lambda path: read_bytes(Path(path))  # noqa: E731
    return _predictions(
        classifier, about.classes, about.size, about.side, paths, read, top, chosen, kind
    )


def _predictions(
    classifier: nn.Module, classes: list[str], size: int, side: int, paths: Iterable[tuple[str, str]],
    read: Any, top: int, device: torch.device, precision: str,
) -> Iterator[Prediction]:  # fmt: skip
    for batch in batched(decoded(paths, read, side), BATCH):
        positions, pixels, aspects = stacked(batch)
        found: dict[int, list[tuple[str, float]]] = {}
        if positions:
            logits = apply(classifier, size, pixels, aspects, device, precision)
            probabilities = torch.softmax(torch.from_numpy(logits), dim=1)
            values, order = probabilities.topk(min(top, len(classes)), dim=1)
            for i, row, which in zip(positions, values.tolist(), order.tolist(), strict=True):
                found[i] = [(classes[c], p) for c, p in zip(which, row, strict=True)]
        for i, (name, image) in enumerate(batch):
            error = str(image) if isinstance(image, BadImage) else None
            yield Prediction(name, found.get(i, []), error)


def decoded(
    items: Iterable[tuple[str, T]], read: Any, side: int
) -> Iterator[tuple[str, tuple[np.ndarray, float] | BadImage]]:
    """Decodes (name, reference) items on a few threads ahead of whoever consumes them, in order."""

    def one(reference: T) -> tuple[np.ndarray, float] | BadImage:
        try:
            return load_square(read(reference), side)
        except BadImage as error:
            return error

    waiting: deque[tuple[str, Future[tuple[np.ndarray, float] | BadImage]]] = deque()
    with ThreadPoolExecutor(max(2, torch.get_num_threads())) as pool:
        for name, reference in items:
            waiting.append((name, pool.submit(one, reference)))
            if len(waiting) >= _AHEAD:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()


def stacked(
    batch: list[tuple[str, tuple[np.ndarray, float] | BadImage]],
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """The positions in `batch` of the images that could be read, their pixels (N, S, S, 3) and their
    aspect ratios (N,)."""
    good = [(i, image) for i, (_, image) in enumerate(batch) if not isinstance(image, BadImage)]
    pixels = np.stack([image[0] for _, image in good]) if good else np.empty((0, 0, 0, 3), np.uint8)
    return [i for i, _ in good], pixels, np.array([image[1] for _, image in good], dtype=np.float32)


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, the last one shorter."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
