"""Fits a classifier to each label sample: chooses its start and mode, fits, calibrates and tests it."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from clfew import console
from clfew.data.source import Source
from clfew.finetuning.calibration import fit_temperature
from clfew.finetuning.fit import FullSettings, Start, Task, fit, pool_logits, predict_cached
from clfew.finetuning.label_propagation import propagated_probabilities
from clfew.finetuning.model_selection import Decision, decide, held_out_accuracy, is_clearly_better
from clfew.models.classifier import Classifier
from clfew.models.drift import alarm
from clfew.models.features import features_of
from clfew.runs.files import write_csv
from clfew.runs.folders import Run
from clfew.training.saving import Trainings


def fit_label_samples(
    candidates: list[tuple[Start, Task]],
    source: Source,
    label_samples: list[np.ndarray],
    test: np.ndarray,
    mode: str,
    seed: int,
    settings: FullSettings,
    run: Run,
    trainings: Trainings,
) -> tuple[list[dict[str, Any]], tuple[Start, Classifier, dict[str, Any], np.ndarray]]:
    """Fits a classifier to each label sample.

    candidates: the starts to choose from, each with its task. label_samples: the indices of the labelled
    images, for each sample. test: indices of the test images. Returns a row of results for each sample;
    and, of the first one, the start, the classifier, the decisions and the indices of the labelled
    images.
    """
    kept: list[tuple[Start, Classifier, dict[str, Any], np.ndarray]] = []

    def row_of(number: int, labelled: np.ndarray) -> dict[str, Any]:
        log = run.log if number == 0 else lambda row: None
        start, task, decision = _decide(candidates, mode, labelled, seed + number, settings)
        classifier, extra = fit(start, task, labelled, decision.mode, seed + number, settings, log)
        decided = decision.as_row() | extra
        if number == 0:  # This classifier is kept. Its accuracy does not change with the temperature.
            arguments = (start, task, labelled, seed, settings)
            decided["temperature"] = _calibrate(classifier, decision, *arguments)
            kept.append((start, classifier, decided, labelled))
            if decision.mode == "propagate":
                _write_pool_labels(run, source, task, labelled)
        accuracy = None
        if len(test):
            logits = _test_logits(classifier, start, task, decision.mode, test)
            accuracy = float((logits.argmax(1) == source.labels[test]).mean())
        return {"seed": seed + number, "labels": len(labelled), "accuracy": accuracy, **decided}

    results = []
    with console.progress_bar("finetune") as update:
        for number, labelled in enumerate(label_samples):
            update(number, len(label_samples), f"label sample {number + 1} of {len(label_samples)}")
            row = partial(row_of, number, labelled)
            # The first sample is fitted on resume too, as its classifier is returned. Of the others only
            # the row is needed, which a resumed run has kept.
            results.append(trainings.once(f"draw-{number + 1}", row) if number else row())
        update(len(label_samples), len(label_samples))
    return results, kept[0]


def _decide(
    candidates: list[tuple[Start, Task]],
    mode: str,
    labelled: np.ndarray,
    seed: int,
    settings: FullSettings,
) -> tuple[Start, Task, Decision]:
    """Chooses the mode for a label sample, and the start.

    The start is the pretrained encoder, unless the weights that its pretraining started from are clearly
    better in cross-validation. Where cross-validation is not possible, it is the pretrained encoder,
    unless its drift raised the alarm.
    """
    decisions = [
        (start, task, decide(mode, start, task, labelled, seed, settings)) for start, task in candidates
    ]
    first = decisions[0]
    if len(decisions) == 1:
        return first
    before = decisions[1]
    correct, correct_before = first[2].correct, before[2].correct
    if correct is None or correct_before is None:
        drifted = first[0].metadata.training.get("pretrain", {}).get("drift")
        return before if drifted and alarm(drifted) else first
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
    seed: int,
    settings: FullSettings,
) -> float:
    """Sets the temperature so that the mean confidence matches the cross-validated accuracy.

    Returns the temperature; it stays 1 where some class has one label and cross-validation is not
    possible.
    """
    expected = held_out_accuracy(decision, start, task, labelled, seed, settings)
    if expected is not None:
        logits = pool_logits(classifier, task, decision.mode != "full")
        classifier.temperature = fit_temperature(logits, expected)
    return classifier.temperature


def _write_pool_labels(run: Run, source: Source, task: Task, labelled: np.ndarray) -> None:
    """Writes pool_labels.csv, with the propagated label of each image of the pool.

    It is for users who need labels of these images rather than a classifier. Its column `share` is the
    probability of the likeliest class, not calibrated.
    """
    rows = np.searchsorted(task.pool, labelled)
    probabilities = propagated_probabilities(task.graph, rows, task.labels[labelled], task.classes)
    # Rows after those of the pool belong to further unlabelled images.
    probabilities = probabilities[: len(task.pool)]
    write_csv(
        run.folder / "pool_labels.csv",
        ["path", "label", "share"],
        [
            (source.identities[i], source.classes[c], f"{probability:.4f}")
            for i, c, probability in zip(
                task.pool, probabilities.argmax(1), probabilities.max(1), strict=True
            )
        ],
    )
