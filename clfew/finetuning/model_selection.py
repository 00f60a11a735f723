"""Chooses the best mode for a classifier, and estimates its accuracy, by cross-validation on few
labels."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from clfew.finetuning.calibration import believable
from clfew.finetuning.fit import FullSettings, Task, fit_full, fit_probe, predict_cached
from clfew.finetuning.label_propagation import propagated_probabilities
from clfew.finetuning.probes import folds
from clfew.finetuning.start import Start
from clfew.training.optim import SMALL_NETWORK

FINE_TUNE_FROM = 10
"""Labels per class from which `auto` also tries mode "full". With fewer labels, its gain over a linear
probe is too small for cross-validation to detect, while its cost is not small."""

CLEAR = 2.0
"""The number of standard errors by which another choice must beat the default in cross-validation.

Choosing among three modes and two starts by the score alone was worse than always propagating labels: on
CIFAR-10 .44 against .50 at 2 labels per class, .57 against .60 at 5, .60 against .62 at 10 (means of six
label samples, on a held-out part of the training split). With one standard error it was .46, .59 and
.62, with two .50, .60 and .62."""

FOLDS = {"full": 2}
"""The number of folds of a mode that trains a network for each fold; the others use five."""


@dataclass(frozen=True)
class Decision:
    """The mode to fit, and the reason for it.

    accuracy: the cross-validated accuracy of this mode on the labelled images, None where modes were not
    compared. scores: the cross-validated accuracy of each mode tried. correct: 1.0 for each labelled
    image that this mode predicted correctly, else 0.0; None where modes were not compared.
    """

    mode: str
    reason: str
    accuracy: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    correct: np.ndarray | None = field(default=None, compare=False)

    def as_row(self) -> dict[str, Any]:
        """Returns the part of it that results and artifacts keep."""
        row: dict[str, Any] = {"mode": self.mode, "reason": self.reason}
        return row | ({"cross_validation": self.scores} if self.scores else {})


def decide(
    mode: str, start: Start, task: Task, labelled: np.ndarray, seed: int, settings: FullSettings
) -> Decision:
    """Returns the mode asked for. For "auto" it is label propagation, unless another mode is clearly
    better in cross-validation.

    Where some class has one label, cross-validation is not possible. Then "auto" propagates labels:
    with one label per class this was better than a linear probe on Fashion-MNIST and no worse on hand
    signs (held-out parts of their training splits).
    """
    if mode != "auto":
        return Decision(mode, "as asked for")
    if not start.is_pretrained:
        return Decision("full", "from scratch there are no features to probe")
    if _fewest(task, labelled) < 2:
        return Decision("propagate", "one label in some class: nothing to compare modes on")
    modes = ["propagate", "linear", "knn"]
    if _fewest(task, labelled) >= FINE_TUNE_FROM and _is_cheap(start, task):
        modes = ["full", *modes]
    correct = {m: _held_out_correct(m, start, task, labelled, seed, settings) for m in modes}
    scores = {m: round(float(h.mean()), 4) for m, h in correct.items()}
    baseline = correct["propagate"]
    better = [m for m in modes if m == "propagate" or is_clearly_better(correct[m], baseline)]
    best = max(better, key=lambda m: scores[m])
    reason = "cross-validated: " + ", ".join(f"{m} {score:.2f}" for m, score in scores.items())
    if scores[best] < max(scores.values()):
        reason += f" (no clear win over {best})"
    return Decision(
        best, reason, believable(float(correct[best].sum()), len(correct[best])), scores, correct[best]
    )


def is_clearly_better(correct_L: np.ndarray, baseline_L: np.ndarray) -> bool:
    """Returns whether a choice beats the baseline in cross-validation: it must be correct on more of the
    same labelled images, by CLEAR standard errors of the paired difference."""
    gain = correct_L - baseline_L
    return bool(gain.mean() > CLEAR * gain.std() / len(gain) ** 0.5)


def held_out_accuracy(
    decision: Decision,
    start: Start,
    task: Task,
    labelled: np.ndarray,
    seed: int,
    settings: FullSettings,
) -> float | None:
    """Returns the cross-validated accuracy of the mode decided on, None where some class has one label,
    so that none can be held out."""
    if decision.accuracy is not None or _fewest(task, labelled) < 2:
        return decision.accuracy
    correct = _held_out_correct(decision.mode, start, task, labelled, seed, settings)
    return believable(float(correct.sum()), len(correct))


def _fewest(task: Task, labelled: np.ndarray) -> int:
    """Returns the number of labels of the class that has the fewest."""
    return int(np.unique(task.labels[labelled], return_counts=True)[1].min())


def _is_cheap(start: Start, task: Task) -> bool:
    """Returns whether training the whole network several times takes no more than minutes."""
    parameters = sum(parameter.numel() for parameter in start.encoder.parameters())
    return task.device.type != "cpu" or parameters <= SMALL_NETWORK


def _held_out_correct(
    mode: str, start: Start, task: Task, labelled: np.ndarray, seed: int, settings: FullSettings
) -> np.ndarray:
    """Returns, for each labelled image, 1.0 if a classifier fitted without its fold predicts it
    correctly, else 0.0."""
    correct = np.zeros(len(labelled))
    for fitted, held_out in folds(task.labels[labelled], seed, FOLDS.get(mode, 5)):
        sides = labelled[fitted], labelled[held_out]
        correct[held_out] = _fold_correct(mode, start, task, *sides, seed, settings)
    return correct


def _fold_correct(
    mode: str,
    start: Start,
    task: Task,
    fitted: np.ndarray,
    held_out: np.ndarray,
    seed: int,
    settings: FullSettings,
) -> np.ndarray:
    """Returns 1.0 for each held-out image that a classifier fitted to the others predicts correctly,
    else 0.0."""
    rows = np.searchsorted(task.pool, held_out)
    if mode == "full":
        classifier, _ = fit_full(start, task, fitted, seed, settings, lambda row: None)
        scores = predict_cached(classifier, task, held_out)
    elif mode == "propagate":
        known = np.searchsorted(task.pool, fitted)
        scores = propagated_probabilities(task.graph, known, task.labels[fitted], task.classes)[rows]
    else:
        head, _ = fit_probe(mode, task, fitted, seed)
        assert task.features is not None
        with torch.no_grad():
            scores = head(torch.from_numpy(task.features[rows])).numpy()
    return (scores.argmax(1) == task.labels[held_out]).astype(np.float64)
