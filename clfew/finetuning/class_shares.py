"""The share of each class among all images, from a random sample of them that is tested on."""

from typing import Any

import numpy as np
import torch

from clfew.data.splits import evenly_spaced
from clfew.finetuning.fit import Task, predict_cached
from clfew.finetuning.label_samples import Fitted, SampleFitting
from clfew.finetuning.random_sample import share_intervals
from clfew.models.classifier import Classifier

MOST = 2_000
"""So many images of the pool are predicted where the whole network was trained; their features are not
known."""


def class_shares(fitting: SampleFitting, fitted: Fitted) -> list[dict[str, Any]]:
    """Returns a row for each class: `class`, `share`, and the 95 % interval `low` to `high` (see
    `random_sample`).

    The test images have to be a random sample. Images that belong together count once: with groups these
    are shares of groups.
    """
    source, test, mode = fitting.source, fitting.test, fitted.decided["mode"]
    task = fitted.task
    assert fitted.test_logits is not None
    of_test = _probabilities(fitted.test_logits)
    places = np.arange(len(task.pool))
    if mode == "full":
        places = evenly_spaced(places, MOST)
    of_pool = _probabilities(_pool_logits(fitted.classifier, task, mode, places))
    images, probabilities = np.concatenate([task.pool[places], test]), np.concatenate([of_pool, of_test])
    if task.groups is not None:
        firsts = np.unique(task.groups[images], return_index=True)[1]
        images, probabilities = images[firsts], probabilities[firsts]
    found = share_intervals(
        source.labels[test], len(source.classes), of_test, probabilities.mean(0), len(images)
    )
    return [
        {"class": name, "share": each.share, "low": each.low, "high": each.high}
        for name, each in zip(source.classes, found, strict=True)
    ]


def _pool_logits(classifier: Classifier, task: Task, mode: str, places: np.ndarray) -> np.ndarray:
    if mode == "full":
        return predict_cached(classifier, task, task.pool[places])
    assert task.features is not None
    with torch.no_grad():
        logits: np.ndarray = classifier.from_features(torch.from_numpy(task.features[places])).numpy()
    return logits


def _probabilities(logits: np.ndarray) -> np.ndarray:
    probabilities: np.ndarray = torch.softmax(torch.from_numpy(logits), dim=1).double().numpy()
    return probabilities
