"""Which mode makes the best classifier, and how often it is right: cross-validation on the few
labels.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from clfew.finetuning.calibration import believable
from clfew.finetuning.fit import FullSettings, Start, Task, fit_full, fit_probe, predict_cached
from clfew.finetuning.label_propagation import propagated_probabilities
from clfew.finetuning.probes import folds
from clfew.training.optim import SMALL_NETWORK

FINE_TUNE_FROM = 10
"""Labels a class from which `auto` also tries to fine-tune: with fewer, its gain over a linear probe
is smaller than cross-validation can see, and its cost is not."""

CLEAR = 2.0
"""Standard errors by which another choice must beat the usual one in cross-validation. To choose among
three modes and two starts by the score alone was worse than to propagate labels always: .44 against
.50 at 2 labels a class of CIFAR-10, .57 against .60 at 5, .60 against .62 at 10 (means of six draws, a
held-out part of the training split). With one standard error it was .46, .59 and .62, with two .50, .60
and .62."""

FOLDS = {"full": 2}
"""Of a mode that trains a network for each fold; five for the others."""


@dataclass(frozen=True)
class Decision:
    """The mode to fit, and why. accuracy: the cross-validated share of hits of this mode on the labelled
    images, where modes were compared. scores: of each mode tried. hits: 1.0 for each labelled image that
    this mode got right, else 0.0."""

    mode: str
    reason: str
    accuracy: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    correct: np.ndarray | None = field(default=None, compare=False)

    def as_row(self) -> dict[str, Any]:
        """What is kept of it in results and artifacts."""
        row: dict[str, Any] = {"mode": self.mode, "reason": self.reason}
        return row | ({"cross_validation": self.scores} if self.scores else {})


def decide(
    mode: str, start: Start, task: Task, labelled: np.ndarray, seed: int, settings: FullSettings
) -> Decision:
    """The mode asked for, or of "auto" label propagation unless another is clearly better in
    cross-validation.

    With one label in some class there is nothing to cross-validate with: then "auto" propagates labels,
    which at one label a class did better than a linear probe on Fashion-MNIST and no worse on hand signs
    (held-out parts of their training splits).
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
    standing = correct["propagate"]
    better = [m for m in modes if m == "propagate" or is_clearly_better(correct[m], standing)]
    best = max(better, key=lambda m: scores[m])
    reason = "cross-validated: " + ", ".join(f"{m} {score:.2f}" for m, score in scores.items())
    if scores[best] < max(scores.values()):
        reason += f" (no clear win over {best})"
    return Decision(
        best, reason, believable(float(correct[best].sum()), len(correct[best])), scores, correct[best]
    )


def is_clearly_better(correct_L: np.ndarray, standing_L: np.ndarray) -> bool:
    """Whether cross-validation says enough to give up what stands: more hits on the same labelled images
    by CLEAR standard errors of the paired difference."""
    gain = correct_L - standing_L
    return bool(gain.mean() > CLEAR * gain.std() / len(gain) ** 0.5)


def held_out_accuracy(
    decision: Decision,
    start: Start,
    task: Task,
    labelled: np.ndarray,
    seed: int,
    settings: FullSettings,
) -> float | None:
    """The cross-validated share of hits of the mode decided on, None where some class has one label and
    nothing can be held out."""
    if decision.accuracy is not None or _fewest(task, labelled) < 2:
        return decision.accuracy
    correct = _held_out_correct(decision.mode, start, task, labelled, seed, settings)
    return believable(float(correct.sum()), len(correct))


def _fewest(task: Task, labelled: np.ndarray) -> int:
    """Labels of the class that has the fewest."""
    return int(np.unique(task.labels[labelled], return_counts=True)[1].min())


def _is_cheap(start: Start, task: Task) -> bool:
    """Whether several trainings of the whole network are a matter of minutes."""
    parameters = sum(parameter.numel() for parameter in start.encoder.parameters())
    return task.device.type != "cpu" or parameters <= SMALL_NETWORK


def _held_out_correct(
    mode: str, start: Start, task: Task, labelled: np.ndarray, seed: int, settings: FullSettings
) -> np.ndarray:
    """1.0 for each labelled image that a classifier fitted without its fold gets right, else 0.0."""
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
