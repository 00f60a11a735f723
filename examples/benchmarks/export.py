"""Exports ten classifiers and measures what it brings: images a second, agreement and file size, for
PyTorch, ONNX Runtime and ONNX Runtime with 8 bits.

    python examples/benchmarks/export.py ../data/photos --work export --out results/export.json

Each classifier is a linear head, fitted to five labels of each class, on a network with random weights,
or with ImageNet weights where the package that has them is installed. So the accuracies mean little; the
agreement is of real margins. A line of PyTorch is what `clfew predict` does with a decoded image: Pillow
makes it smaller, then the network; ONNX does both. Both sides run in turn, in single precision; a row is
the median of the rounds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Results

from clfew import finetune
from clfew.data.decode import decode, to_square
from clfew.data.sources import open_source
from clfew.exporting.int8 import quantized
from clfew.exporting.parity import IMAGES, MARGIN, files_of, parity_of
from clfew.exporting.runtime import Session
from clfew.exporting.to_onnx import onnx_model
from clfew.models.artifacts import load_classifier
from clfew.models.features import apply

ENCODERS = (
    ("resnet8-w32", 32),
    ("resnet18", 64),
    ("resnet18", 224),
    ("resnet50", 224),
    ("mobilenet_v3_large", 224),
    ("efficientnet_b0", 224),
    ("regnet_y_400mf", 224),
    ("convnext_tiny", 224),
    ("swin_t", 224),
    ("timm:tf_efficientnet_lite0", 224),
)
BATCHES, ROUNDS, SECONDS = (1, 32), 5, 2.0
"""Batch sizes, rounds, and the least seconds of a round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="labelled images")
    parser.add_argument("--work", type=Path, required=True, help="folder for the classifiers")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    results = Results(arguments.out)
    for encoder, size in ENCODERS:
        measure = partial(measured, arguments.source, arguments.work, encoder, size)
        row = results.get(f"{encoder} {size}", measure)
        print(encoder, size, json.dumps(row), flush=True)


def measured(source: str, work: Path, encoder: str, size: int) -> dict[str, Any]:
    """Returns the row of one encoder."""
    folder = work / f"{encoder.replace(':', '-')}-{size}"
    if not (folder / "classifier.safetensors").exists():
        start = "imagenet" if "lite0" in encoder else "scratch"
        names = {"init": start} if start == "imagenet" else {"origin": ["scratch"]}
        finetune(
            source, labels="5/class", mode="linear", encoder=encoder, size=size, out=folder, **names
        )
    classifier, metadata, _ = load_classifier(folder / "classifier.safetensors")
    files = files_of(open_source(source), IMAGES)
    started = time.perf_counter()
    model = onnx_model(classifier, metadata.side, metadata.size)
    seconds = time.perf_counter() - started
    session = Session(model.SerializeToString())
    parity = parity_of(session.probabilities, classifier, metadata, files, "", len(files))
    images = [np.asarray(decode(content, None, scale)) for content, scale in files]
    small = quantized(model, images[::2])
    small_session = Session(small.SerializeToString())
    agreement = agreement_of(session, small_session, images[1::2])

    def torch_side(batch_NxHxWx3: np.ndarray) -> np.ndarray:
        from PIL import Image

        squares = [to_square(Image.fromarray(each), metadata.side) for each in batch_NxHxWx3]
        pixels = np.stack([pixels for pixels, _ in squares])
        aspects = np.array([aspect for _, aspect in squares], np.float32)
        return apply(classifier, metadata.size, pixels, aspects, torch.device("cpu"))

    sides = {
        "pytorch": torch_side,
        "onnx": session.probabilities,
        "int8": small_session.probabilities,
    }
    return {
        "export_seconds": seconds,
        "images_per_second": {str(batch): speeds(sides, images[0], batch) for batch in BATCHES},
        "parity": parity.as_row(),
        "int8_agreement": agreement,
        "bytes": {
            "pytorch": (folder / "classifier.safetensors").stat().st_size,
            "onnx": model.ByteSize(),
            "int8": small.ByteSize(),
        },
    }


def agreement_of(session: Session, small: Session, images: list[np.ndarray]) -> dict[str, float]:
    """Returns how often a model of 8 bits names the class of the other one: of all images, and of those
    with a margin between the two likeliest classes."""
    pairs = [(session.probabilities(i[None])[0], small.probabilities(i[None])[0]) for i in images]
    is_same = np.array([a.argmax() == b.argmax() for a, b in pairs])
    is_clear = np.array([np.diff(np.sort(a)[-2:])[0] > MARGIN for a, _ in pairs])
    return {"all": float(is_same.mean()), "clear": float(is_same[is_clear].mean())}


def speeds(
    sides: dict[str, Callable[[np.ndarray], np.ndarray]], image: np.ndarray, size: int
) -> dict[str, float]:
    """Returns the median images a second of each side, which run in turn."""
    batch = np.stack([image] * size)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side(batch)
    for _ in range(ROUNDS):
        for name, side in sides.items():
            count, started = 0, time.perf_counter()
            while (spent := time.perf_counter() - started) < SECONDS / ROUNDS or count < 2:
                side(batch)
                count += 1
            found[name].append(count * size / spent)
    return {name: statistics.median(values) for name, values in found.items()}


if __name__ == "__main__":
    main()
