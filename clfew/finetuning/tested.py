"""Tests the classifier of a label sample, beside what a user would think of first.

Shape suffixes: T test images, C classes.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from clfew.data.source import Source
from clfew.finetuning.fit import Task, fit_probe, predict_cached
from clfew.finetuning.metric import BY_ACCURACY, Metric, average_precision, macro_f1
from clfew.finetuning.metrics import (
    accuracy_interval,
    classification_report,
    deviation,
    packed,
    unpacked,
)
from clfew.finetuning.start import Start
from clfew.models.classifier import Classifier
from clfew.models.features import features_of

LARGEST, LOGISTIC, WEIGHTED = "always the largest class", "logistic regression", "class-weighted"


def tested(
    classifier: Classifier,
    start: Start,
    task: Task,
    mode: str,
    labelled: np.ndarray,
    test: np.ndarray,
    seed: int,
    source: Source,
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Returns the metrics on the test images (see `scores_of`), which of them are predicted correctly
    (see `metrics.packed`), and the `baselines` on the same labels; and the logits (T, C). Without test
    images `accuracy` is None, and so are the logits."""
    if not len(test):
        return {"accuracy": None}, None
    labels_T = task.labels[test]
    logits = test_logits(classifier, start, task, mode, test)
    features = None if task.features is None else _features(start, task, test)
    rows = baselines(task, labelled, labels_T, features, seed)
    rows[0]["class"] = source.classes[rows[0]["class"]]
    scores = scores_of(logits, labels_T, task.metric)
    return scores | {"correct": packed(logits.argmax(1) == labels_T), "baselines": rows}, logits


def report_of_test(
    logits_TxC: np.ndarray, labels_T: np.ndarray, classes: list[str], groups_T: np.ndarray | None
) -> dict[str, Any]:
    """Returns what `metrics.classification_report` says of the classifier that is kept, without the
    matrix of all pairs of classes; {} of one whose training went wrong, so that its logits are no
    numbers. logits: calibrated."""
    if not np.isfinite(logits_TxC).all():
        return {}
    report = classification_report(softmax(logits_TxC, axis=1), labels_T, classes, groups_T)
    return {name: value for name, value in report.items() if name not in ("confusion", "classes")}


def test_logits(
    classifier: Classifier, start: Start, task: Task, mode: str, test: np.ndarray
) -> np.ndarray:
    """Returns the logits of the test images. A head on frozen features takes these features, which are
    the same for every label sample."""
    if mode == "full":
        return predict_cached(classifier, task, test)
    return _applied(classifier.from_features, _features(start, task, test))


def _features(start: Start, task: Task, test: np.ndarray) -> np.ndarray:
    arrays = (task.pixels, task.aspects, test)
    return features_of(start.encoder, *arrays, task.device, task.precision)


def _applied(network: Callable[[Tensor], Tensor], features: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        logits: np.ndarray = network(torch.from_numpy(features)).numpy()
    return logits


def scores_of(logits_TxC: np.ndarray, labels_T: np.ndarray, metric: Metric) -> dict[str, float]:
    """Returns `accuracy`, `balanced_accuracy`, `macro_f1` and, if it is asked for and there are images
    of the class, its `average_precision`."""
    predicted_T, ones_T = logits_TxC.argmax(1), np.ones(len(labels_T))
    correct_T = predicted_T == labels_T
    recalls = [correct_T[labels_T == c].mean() for c in np.unique(labels_T)]
    scores = {
        "accuracy": float(correct_T.mean()),
        "balanced_accuracy": float(np.mean(recalls)),
        "macro_f1": float(macro_f1(predicted_T[None], labels_T, ones_T)[0]),
    }
    is_class_T = labels_T == metric.number
    if metric.number >= 0 and is_class_T.any():
        ranks = metric.outputs(logits_TxC)[None]
        scores["average_precision"] = float(average_precision(ranks, is_class_T, ones_T)[0])
    return scores


def baselines(
    task: Task, labelled: np.ndarray, labels_T: np.ndarray, features: np.ndarray | None, seed: int
) -> list[dict[str, Any]]:
    """Returns the scores of what a user would think of: the `name` of each, and what `scores_of` says;
    of the first also the number of its `class`.

    The largest class is that of the test images, the best that can always be named. Logistic
    regression, plain and with the classes weighted to count equally, is fitted to the features of the
    encoder as it came; there is none where they are not known. features: of the test images.
    """
    largest = int(np.bincount(labels_T).argmax())
    always = np.zeros((len(labels_T), task.classes))
    always[:, largest] = 1
    rows: list[dict[str, Any]] = [
        {"name": LARGEST, "class": largest, **scores_of(always, labels_T, task.metric)}
    ]
    if task.features is None or features is None:
        return rows
    plain = replace(task, shares=None, metric=BY_ACCURACY)
    for name, mode in ((LOGISTIC, "linear"), (WEIGHTED, "weighted")):
        head, _ = fit_probe(mode, plain, labelled, seed)
        rows.append({"name": name, **scores_of(_applied(head, features), labels_T, task.metric)})
    return rows


SCORES = ("accuracy", "balanced_accuracy", "macro_f1", "average_precision")


def means_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the means of the scores that all rows have: those of runs before there were more have the
    accuracy only."""
    names = [name for name in SCORES if all(row.get(name) is not None for row in rows)]
    return {name: float(np.mean([row[name] for row in rows])) for name in names}


def mean_baselines(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the mean scores of each baseline over the label samples; none where a sample has none."""
    of_samples = [sample.get("baselines", []) for sample in samples]
    means = [
        {"name": rows[0]["name"], **means_of(list(rows))} for rows in zip(*of_samples, strict=False)
    ]
    if means:
        means[0]["class"] = of_samples[0][0]["class"]  # The test images are the same.
    return means


def summary_of(
    samples: list[dict[str, Any]], tested: int, drawn: float, groups: np.ndarray | None
) -> dict[str, Any]:
    """Returns the mean, standard deviation and 95 % interval of the accuracy over the label samples, of
    which each holds the fraction `drawn` of all labels (see `metrics.accuracy_interval`). groups: of the
    test images."""
    correct = [
        unpacked(sample.pop("correct", None), sample["accuracy"], tested) for sample in samples if tested
    ]
    summary: dict[str, Any] = {"test_images": tested, "draws": samples}
    if not tested:
        return summary
    accuracies = [sample["accuracy"] for sample in samples]
    return summary | {
        "means": means_of(samples),
        "baselines": mean_baselines(samples),
        "mean": float(np.mean(accuracies)),
        "std": deviation(np.array(accuracies)),
        "ci95": list(accuracy_interval(np.stack(correct), drawn, groups)),
    }
