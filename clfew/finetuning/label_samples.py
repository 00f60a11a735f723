"""Fits a classifier to each label sample: chooses its start and mode, fits, calibrates and tests it."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from clfew import console
from clfew.data.source import Source
from clfew.finetuning.calibration import fit_temperature, prior_temperature
from clfew.finetuning.fit import FullSettings, Task, fit, predict_cached
from clfew.finetuning.label_propagation import propagated_probabilities
from clfew.finetuning.metrics import packed
from clfew.finetuning.model_selection import (
    Decision,
    decide,
    held_out_logits,
    is_clearly_better,
    logits_to_compare,
)
from clfew.finetuning.start import Start
from clfew.models.classifier import Classifier
from clfew.models.drift import alarm
from clfew.models.features import features_of
from clfew.runs.files import write_csv
from clfew.runs.folders import Run
from clfew.training.saving import Trainings


@dataclass(frozen=True)
class SampleFitting:
    """What classifiers are fitted with, whatever the label sample.

    candidates: the starts to choose from, each with its task. test: indices of the test images. mode:
    "auto" or one of MODES. run: the run whose log and files are written for the first sample.
    """

    candidates: list[tuple[Start, Task]]
    source: Source
    test: np.ndarray
    mode: str
    seed: int
    settings: FullSettings
    run: Run


@dataclass(frozen=True)
class Fitted:
    """A classifier with the start and the decisions that it comes from, and the indices of the labelled
    images."""

    start: Start
    classifier: Classifier
    decided: dict[str, Any]
    labelled: np.ndarray


def fit_label_samples(
    fitting: SampleFitting, label_samples: list[np.ndarray], trainings: Trainings
) -> tuple[list[dict[str, Any]], Fitted]:
    """Fits a classifier to each label sample: the indices of its labelled images.

    Returns a row of results for each sample, and what was fitted to the first one.
    """
    with console.progress_bar("finetune") as update:

        def report(number: int) -> None:
            update(number, len(label_samples), f"label sample {number + 1} of {len(label_samples)}")

        report(0)
        # The first sample is fitted on resume too, as its classifier is returned. Of the others only the
        # row is needed, which a resumed run has kept.
        first_row, first = _fit_first(fitting, label_samples[0])
        rows = [first_row]
        for number, labelled in enumerate(label_samples[1:], start=1):
            report(number)
            row = partial(_row_of_sample, fitting, number, labelled)
            rows.append(trainings.once(f"draw-{number + 1}", row))
        update(len(label_samples), len(label_samples))
    return rows, first


def _fit_first(fitting: SampleFitting, labelled: np.ndarray) -> tuple[dict[str, Any], Fitted]:
    """Fits the classifier that is kept, calibrates it, and writes what belongs to it."""
    start, task, decision = _decide(fitting, labelled, fitting.seed)
    classifier, extra = fit(
        start, task, labelled, decision.mode, fitting.seed, fitting.settings, fitting.run.log
    )
    decided = decision.as_row() | extra
    decided["temperature"] = _calibrate(classifier, decision, start, task, labelled, fitting)
    if decision.mode == "propagate":
        _write_pool_labels(fitting.run, fitting.source, task, labelled)
    # Its accuracy does not change with the temperature.
    tested = _tested(fitting, classifier, start, task, decision.mode)
    row = {"seed": fitting.seed, "labels": len(labelled), **tested, **decided}
    return row, Fitted(start, classifier, decided, labelled)


def _row_of_sample(fitting: SampleFitting, number: int, labelled: np.ndarray) -> dict[str, Any]:
    """Fits a classifier of which only the results are kept."""
    seed = fitting.seed + number
    start, task, decision = _decide(fitting, labelled, seed)
    classifier, extra = fit(start, task, labelled, decision.mode, seed, fitting.settings)
    tested = _tested(fitting, classifier, start, task, decision.mode)
    return {"seed": seed, "labels": len(labelled), **tested, **decision.as_row(), **extra}


def _tested(
    fitting: SampleFitting, classifier: Classifier, start: Start, task: Task, mode: str
) -> dict[str, Any]:
    """Returns the accuracy on the test images, None without any, and which of them are predicted
    correctly (see `metrics.packed`)."""
    if not len(fitting.test):
        return {"accuracy": None}
    logits = _test_logits(classifier, start, task, mode, fitting.test)
    correct = logits.argmax(1) == fitting.source.labels[fitting.test]
    return {"accuracy": float(correct.mean()), "correct": packed(correct)}


def _decide(fitting: SampleFitting, labelled: np.ndarray, seed: int) -> tuple[Start, Task, Decision]:
    """Chooses the mode for a label sample, and the start.

    The start is the pretrained encoder, unless the weights that its pretraining started from are clearly
    better in cross-validation. Where cross-validation is not possible, it is the pretrained encoder,
    unless its drift raised the alarm.
    """
    decisions = [
        (start, task, decide(fitting.mode, start, task, labelled, seed, fitting.settings))
        for start, task in fitting.candidates
    ]
    first = decisions[0]
    if len(decisions) == 1:
        return first
    before = decisions[1]
    if first[2].logits is None or before[2].logits is None:
        drifted = first[0].metadata.training.get("pretrain", {}).get("drift")
        return before if drifted and alarm(drifted) else first
    labels = first[1].labels[labelled]
    logits, logits_before = logits_to_compare(decisions, labelled, seed, fitting.settings)
    correct, correct_before = (each.argmax(1) == labels for each in (logits, logits_before))
    worse = is_clearly_better(correct_before, correct)
    chosen = before if worse else first
    accuracies = [
        float(h.mean()) for h in ((correct_before, correct) if worse else (correct, correct_before))
    ]
    name = "the weights that pretraining started from" if worse else "the pretrained encoder"
    unclear = " (no clear difference)" if accuracies[1] > accuracies[0] else ""
    reason = f"{chosen[2].reason}; {name}: {accuracies[0]:.2f} against {accuracies[1]:.2f}{unclear}"
    return chosen[0], chosen[1], replace(chosen[2], reason=reason)


def _test_logits(
    classifier: Classifier, start: Start, task: Task, mode: str, test: np.ndarray
) -> np.ndarray:
    """Returns the logits of the test images. A head on frozen features takes these features, which are
    the same for every label sample."""
    if mode == "full":
        return predict_cached(classifier, task, test)
    arrays = (task.pixels, task.aspects, test)
    features = features_of(start.encoder, *arrays, task.device, task.precision)
    with torch.no_grad():
        return classifier.from_features(torch.from_numpy(features)).numpy()


def _calibrate(
    classifier: Classifier,
    decision: Decision,
    start: Start,
    task: Task,
    labelled: np.ndarray,
    fitting: SampleFitting,
) -> float:
    """Sets the temperature by the logits of labels that were held out in turn, and returns it. Where
    some class has one label, none can be held out, and it is the usual one of the mode."""
    prior = prior_temperature(decision.mode, classifier.head)
    logits = held_out_logits(decision, start, task, labelled, fitting.seed, fitting.settings)
    if logits is None:
        classifier.temperature = prior
    else:
        classifier.temperature = fit_temperature(logits, task.labels[labelled], prior)
    return classifier.temperature


def _write_pool_labels(run: Run, source: Source, task: Task, labelled: np.ndarray) -> None:
    """Writes pool_labels.csv, with the propagated label of each image of the pool.

    It is for users who need labels of these images rather than a classifier. Its column `share` is the
    probability of the likeliest class, not calibrated. An image that no label reaches has no label.
    """
    rows = np.searchsorted(task.pool, labelled)
    probabilities = propagated_probabilities(task.graph, rows, task.labels[labelled], task.classes)
    # Rows after those of the pool belong to further unlabelled images.
    probabilities = probabilities[: len(task.pool)]
    write_csv(
        run.folder / "pool_labels.csv",
        ["path", "label", "share"],
        [
            (source.identities[i], source.classes[c] if probability else "", f"{probability:.4f}")
            for i, c, probability in zip(
                task.pool, probabilities.argmax(1), probabilities.max(1), strict=True
            )
        ],
    )
