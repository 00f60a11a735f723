"""The draws of the labels, each with the start and the mode that suit it, fitted, calibrated and
tested.
"""

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
    draws: list[np.ndarray],
    test: np.ndarray,
    mode: str,
    seed: int,
    settings: FullSettings,
    run: Run,
    trainings: Trainings,
) -> tuple[list[dict[str, Any]], tuple[Start, Classifier, dict[str, Any], np.ndarray]]:
    """A row for each draw of the labels; and the first draw's start, classifier, decisions and
    images.
    """
    kept: list[tuple[Start, Classifier, dict[str, Any], np.ndarray]] = []

    def row_of(number: int, drawn: np.ndarray) -> dict[str, Any]:
        log = run.log if number == 0 else lambda row: None
        start, task, decision = _decide(candidates, mode, drawn, seed + number, settings)
        classifier, extra = fit(start, task, drawn, decision.mode, seed + number, settings, log)
        decided = decision.as_row() | extra
        if number == 0:  # The one that is kept. Accuracy does not change with the temperature.
            arguments = (start, task, drawn, seed, settings)
            decided["temperature"] = _calibrate(classifier, decision, *arguments)
            kept.append((start, classifier, decided, drawn))
            if decision.mode == "propagate":
                _write_pool_labels(run, source, task, drawn)
        accuracy = None
        if len(test):
            logits = _test_logits(classifier, start, task, decision.mode, test)
            accuracy = float((logits.argmax(1) == source.labels[test]).mean())
        return {"seed": seed + number, "labels": len(drawn), "accuracy": accuracy, **decided}

    results = []
    with console.progress_bar("finetune") as update:
        for number, drawn in enumerate(draws):
            update(number, len(draws), f"draw {number + 1} of {len(draws)}")
            row = partial(row_of, number, drawn)
            # Of the first draw the classifier is needed again, of the others no more than the row.
            results.append(trainings.once(f"draw-{number + 1}", row) if number else row())
        update(len(draws), len(draws))
    return results, kept[0]


def _decide(
    candidates: list[tuple[Start, Task]],
    mode: str,
    drawn: np.ndarray,
    seed: int,
    settings: FullSettings,
) -> tuple[Start, Task, Decision]:
    """The mode for the labels drawn, and the pretrained encoder unless what it started from is clearly
    better in cross-validation. Where that is not possible, the pretrained encoder, unless its drift
    raised the alarm."""
    choices = [
        (start, task, decide(mode, start, task, drawn, seed, settings)) for start, task in candidates
    ]
    first = choices[0]
    if len(choices) == 1:
        return first
    before = choices[1]
    correct, correct_before = first[2].correct, before[2].correct
    if correct is None or correct_before is None:
        drifted = first[0].metadata.training.get("pretrain", {}).get("drift")
        return before if drifted and alarm(drifted) else first
    worse = is_clearly_better(correct_before, correct)
    chosen = before if worse else first
    shares = [
        float(h.mean()) for h in ((correct_before, correct) if worse else (correct, correct_before))
    ]
    name = "the weights that pretraining started from" if worse else "the pretrained encoder"
    unclear = " (no clear difference)" if shares[1] > shares[0] else ""
    reason = f"{chosen[2].reason}; {name}: {shares[0]:.2f} against {shares[1]:.2f}{unclear}"
    return chosen[0], chosen[1], replace(chosen[2], reason=reason)


def _test_logits(
    classifier: Classifier, start: Start, task: Task, mode: str, test: np.ndarray
) -> np.ndarray:
    """Logits of the test images; of a head on frozen features from these, the same for every draw."""
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
    drawn: np.ndarray,
    seed: int,
    settings: FullSettings,
) -> float:
    """Gives a classifier the temperature that cross-validation says, and returns it; 1 where one label
    in some class leaves nothing to cross-validate with."""
    expected = held_out_accuracy(decision, start, task, drawn, seed, settings)
    if expected is not None:
        logits = pool_logits(classifier, task, decision.mode != "full")
        classifier.temperature = fit_temperature(logits, expected)
    return classifier.temperature


def _write_pool_labels(run: Run, source: Source, task: Task, drawn: np.ndarray) -> None:
    """pool_labels.csv: what the labels spread to, for whoever wants labels for the images there are and
    no classifier for others. share: of the likeliest class, not calibrated."""
    rows = np.searchsorted(task.pool, drawn)
    shares = propagated_probabilities(task.graph, rows, task.labels[drawn], task.classes)[
        : len(task.pool)
    ]
    write_csv(
        run.folder / "pool_labels.csv",
        ["path", "label", "share"],
        [
            (source.identities[i], source.classes[c], f"{share:.4f}")
            for i, c, share in zip(task.pool, shares.argmax(1), shares.max(1), strict=True)
        ],
    )
