"""Whether an exported model with numbers of 8 bits is worth having: faster here, and as right."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clfew import console
from clfew.commands.evaluate import Prepared, prepare
from clfew.data.decode import BadImage, decode
from clfew.data.splits import evenly_spaced
from clfew.errors import UserError
from clfew.exporting.int8 import quantized
from clfew.exporting.runtime import Session
from clfew.finetuning.metrics import accuracy_interval
from clfew.settings import EvaluateSettings, ExportSettings

CALIBRATION, MOST_TESTED = 100, 1000
"""The most images that the ranges of the numbers come from, and that the model is tested on."""

BATCHES, ROUNDS = (1, 8), 7
"""The batch sizes that are timed, and how often: both models in turn."""


@dataclass(frozen=True)
class Smaller:
    """A model of 8 bits beside the one it was made from.

    is_kept: whether it is faster at each batch size, and its accuracy within the interval of the other.
    why: in words. tested: number of held-out images. accuracy, interval: of the model it was made from.
    accuracy_int8: its own. seconds, seconds_int8: the median time of a batch, in the order of `batches`.
    """

    is_kept: bool
    why: str
    model: bytes = b""
    tested: int = 0
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    accuracy_int8: float | None = None
    batches: tuple[int, ...] = BATCHES
    seconds: tuple[float, ...] = ()
    seconds_int8: tuple[float, ...] = ()


def smaller(settings: ExportSettings, artifact: Path, model: Any) -> Smaller:
    """Makes a model of 8 bits of an ONNX model, and tries whether it is worth having. artifact: of the
    classifier that it comes from."""
    try:
        held_out = prepare(EvaluateSettings(source=settings.source, origin=str(artifact)))
    except UserError as error:
        reason = error.message.removesuffix(".")
        return Smaller(False, f"no held-out images to test it on: {reason}")
    data = held_out.data
    pool = np.setdiff1d(data.cache.good, data.test)
    if not len(pool):
        return Smaller(
            False, "all images are held out: none is left to measure the ranges of numbers on"
        )
    console.say("int8       measuring the ranges of numbers on images of the pool")
    images = [image for _, image in _images(held_out, evenly_spaced(pool, CALIBRATION))]
    try:
        small = quantized(model, images).SerializeToString()
        sessions = [Session(model.SerializeToString()), Session(small)]
    except Exception as error:  # ONNX Runtime's quantization fails in many ways.
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        return Smaller(False, f"ONNX Runtime cannot quantize it ({reason})")
    test, correct = _correct(sessions, held_out)
    groups = None if data.groups is None else data.groups[test]
    low, high = accuracy_interval(correct[0], 0.0, groups)
    accuracy, accuracy_int8 = correct.mean(1).tolist()
    seconds, seconds_int8 = _timed(sessions, images)
    ratios = [before / after for before, after in zip(seconds, seconds_int8, strict=True)]
    is_right, is_faster = low <= accuracy_int8 <= high, min(ratios) > 1
    speed = " and ".join(
        f"{ratio:.2f} × at batch {size}" for ratio, size in zip(ratios, BATCHES, strict=True)
    )
    why = (
        f"{100 * accuracy_int8:.1f} % right on {len(test):,} held-out images, the other one "
        f"{100 * accuracy:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f} %); speed {speed}"
    )
    return Smaller(
        is_right and is_faster,
        why,
        small,
        len(test),
        accuracy,
        (low, high),
        accuracy_int8,
        seconds=seconds,
        seconds_int8=seconds_int8,
    )


def _correct(sessions: list[Session], held_out: Prepared) -> tuple[np.ndarray, np.ndarray]:
    """Returns the held-out images that can be read, T of them, and on which of them each of two models
    is right, bool (2, T)."""
    test: list[int] = []
    columns: list[list[bool]] = []
    chosen = evenly_spaced(held_out.data.test, MOST_TESTED)
    with console.progress_bar("testing") as update:
        for index, image in _images(held_out, chosen):
            update(len(test), len(chosen))
            label = held_out.data.source.labels[index]
            columns.append([each.probabilities(image[None])[0].argmax() == label for each in sessions])
            test.append(index)
    return np.array(test), np.array(columns).T


def _images(held_out: Prepared, indices: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
    """Yields images of a source, decoded in full, with their indices."""
    source = held_out.data.source
    for index in indices.tolist():
        try:
            yield index, np.asarray(decode(source.content(index), None, source.scale))
        except BadImage:  # It has changed since the cache was built.
            continue


def _timed(
    sessions: list[Session], images: list[np.ndarray]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the median seconds of a batch of each size, for each of two models."""
    medians = []
    for size in BATCHES:
        batch = np.stack([images[0]] * size)
        seconds = np.zeros((ROUNDS + 1, len(sessions)))
        for row in seconds:
            for number, session in enumerate(sessions):
                started = time.perf_counter()
                session.probabilities(batch)
                row[number] = time.perf_counter() - started
        medians.append(np.median(seconds[1:], axis=0).tolist())  # The first round warms up.
    first, second = zip(*medians, strict=True)
    return first, second
