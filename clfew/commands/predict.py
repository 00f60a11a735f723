"""`clfew predict`: files in, labels out, in bounded memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clfew.data.decode import read_bytes
from clfew.models.artifacts import load_classifier
from clfew.models.features import apply_to_files
from clfew.training.device import choose_device, choose_precision, set_threads


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
    classifier, metadata, _ = load_classifier(artifact)
    chosen, _ = choose_device(device)
    kind, _ = choose_precision(chosen, precision)
    outputs = apply_to_files(
        classifier,
        metadata.size,
        metadata.side,
        images,
        lambda path: read_bytes(Path(path)),
        chosen,
        kind,
    )
    for paths, results, logits in outputs:
        probabilities = torch.softmax(torch.from_numpy(logits), dim=1)
        values, order = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
        answers = iter(zip(order.tolist(), values.tolist(), strict=True))
        for path, error in zip(paths, results, strict=True):
            if error is not None:
                yield Prediction(path, [], str(error))
            else:
                best = zip(*next(answers), strict=True)
                yield Prediction(path, [(metadata.classes[c], p) for c, p in best])
