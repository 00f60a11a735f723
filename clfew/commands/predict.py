"""`clfew predict`: labels image files, in bounded memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clfew.commands.thresholds import Thresholds, thresholds_of
from clfew.group.command import together_each
from clfew.models.artifacts import load_classifier
from clfew.models.classifier import Classifier
from clfew.models.files import Applied, apply_to_paths
from clfew.models.kept_scale import kept_scale
from clfew.models.metadata import ArtifactMetadata
from clfew.runs.folders import find_artifact
from clfew.settings import PredictSettings
from clfew.signatures import function_of
from clfew.training.device import choose_device, choose_precision, set_threads, without_traces


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    path: the image, as it was named or found. top: (label, probability) of the likeliest classes, best
    first; empty if the image cannot be read. With thresholds of classes the first is the one that it is
    taken for. error: why the image cannot be read, None if it can. decision: "accept" or "review", None
    where that is not asked.
    """

    path: str
    top: list[tuple[str, float]]
    error: str | None = None
    decision: str | None = None

    def as_row(self) -> dict[str, Any]:
        """Returns the row that --format json and jsonl print."""
        label, probability = self.top[0] if self.top else (None, None)
        row = {"path": self.path, "label": label, "probability": probability, "top": self.top}
        row |= {"decision": self.decision} if self.decision else {}
        return row if self.error is None else row | {"error": self.error}


@together_each
def run(
    settings: PredictSettings, artifact: Path | None = None, images: Iterable[str] | None = None
) -> Iterator[Prediction]:
    """Loads a classifier and returns an iterator over its predictions for files, in their order.

    The files are read while the predictions are iterated over. Raises UserError at once if there is no
    such classifier.

    artifact, images: the classifier and the files, where they have been found already.
    """
    set_threads(settings.threads)
    if artifact is None:
        hint = "make a classifier first: clfew finetune --labels 1%"
        artifact = find_artifact(settings.origin, "finetune", hint)
    classifier, metadata, _ = load_classifier(artifact)
    device, _ = choose_device(settings.device)
    precision, _ = choose_precision(device, settings.precision)
    files = settings.images if images is None else images
    thresholds = thresholds_of(settings, artifact, metadata)
    return _predictions(classifier, metadata, files, settings.top, thresholds, device, precision)


predict = function_of(PredictSettings, without_traces(run))


def _predictions(
    classifier: Classifier,
    metadata: ArtifactMetadata,
    images: Iterable[str],
    top: int,
    thresholds: Thresholds,
    device: torch.device,
    precision: str,
) -> Iterator[Prediction]:
    scale = kept_scale(metadata)
    applied = Applied(classifier, metadata.size, metadata.side, device, precision, scale)
    for paths, errors, logits in apply_to_paths(applied, images):
        # Files that cannot be read have no row of logits.
        readable = iter(torch.softmax(torch.from_numpy(logits), dim=1).numpy())
        for path, error in zip(paths, errors, strict=True):
            if error is not None:
                yield Prediction(path, [], str(error), thresholds.decision(0.0))
                continue
            probabilities_C = next(readable)
            order = thresholds.order(probabilities_C)[:top]
            best = [(metadata.classes[c], float(probabilities_C[c])) for c in order]
            yield Prediction(path, best, None, thresholds.decision(best[0][1]))
