"""Chooses the best mode for a classifier by cross-validation on few labels, and computes the logits by
which it is calibrated.

What is scored is what is shipped: in each fold a classifier is fitted in the same way, to fewer labels.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from clfew.finetuning.asked import MACRO_F1
from clfew.finetuning.fit import FullSettings, Task, fit_full, fit_probe, predict_cached
from clfew.finetuning.metric import BY_ACCURACY, Metric, win_by_exchange
from clfew.finetuning.metrics import expected_accuracy
from clfew.finetuning.probes import folds, smallest_class
from clfew.finetuning.start import Start
from clfew.training.optim import SMALL_NETWORK

FINE_TUNE_FROM = 10
"""Labels per class from which `auto` also tries mode "full". With fewer labels, its gain over a linear
probe is too small for cross-validation to detect, while its cost is not small."""

CLEAR = 0.025
"""The probability of a win by chance below which another choice is taken instead of the default.

Choosing among three modes and two starts by the score alone was worse than always propagating labels: on
CIFAR-10 .44 against .50 at 2 labels per class, .57 against .60 at 5, .60 against .62 at 10 (means of six
label samples, on a held-out part of the training split). With wins of two standard errors, which is this
probability where labels are many, it was .50, .60 and .62."""

MANY, CLEAR_OF_MANY = 10, 0.3
"""From so many labels of the smallest class on, the default is less often the best: with this
probability in place of CLEAR, `auto` was .736 accurate instead of .732 with 10 labels per class, and
.814 instead of .806 with 50; with 5 it was .692 instead of .694 (seven kinds of features, three to six
label samples, on held-out parts of the training splits of hand signs, Fashion-MNIST, aerial photographs
and CIFAR-10)."""

FOLDS = 5
HALVES = 2
"""The number of folds, and that of mode "full", which trains a network for each: its classifiers are
fitted to half of the labels, and so are those that it is compared with."""


@dataclass(frozen=True)
class Decision:
    """The mode to fit, and the reason for it.

    logits: (L, C), the outputs for each labelled image of a classifier in this mode that was fitted
    without its fold; None where modes were not compared. in_halves: the same of one that was fitted to
    the other half, where mode "full" was tried. scores, scores_in_halves: the metric to expect
    of each mode tried, by cross-validation in folds and in halves. start: the name of the start
    that was chosen among several that were named, else "".
    """

    mode: str
    reason: str
    logits: np.ndarray | None = field(default=None, compare=False)
    in_halves: np.ndarray | None = field(default=None, compare=False)
    scores: dict[str, float] = field(default_factory=dict)
    scores_in_halves: dict[str, float] = field(default_factory=dict)
    start: str = ""

    def as_row(self) -> dict[str, Any]:
        """Returns the part of it that results and artifacts keep."""
        row: dict[str, Any] = {"mode": self.mode, "reason": self.reason}
        row |= {"cross_validation": self.scores} if self.scores else {}
        halves = self.scores_in_halves
        row |= {"cross_validation_in_halves": halves} if halves else {}
        return row | ({"start": self.start} if self.start else {})


def decide(
    mode: str, start: Start, task: Task, labelled: np.ndarray, seed: int, settings: FullSettings
) -> Decision:
    """Returns the mode asked for. For "auto" it is label propagation, or the linear head where there is
    nothing to propagate labels to, unless another mode is clearly better in cross-validation.

    Where some class has one label, cross-validation is not possible. Then "auto" takes the first of
    these: with one label per class, label propagation was better than a linear probe on Fashion-MNIST
    and no worse on hand signs (held-out parts of their training splits).
    """
    if mode != "auto":
        return Decision(mode, "as asked for")
    if not start.is_pretrained:
        return Decision("full", "from scratch there are no features to probe")
    decision = decide_probe(start, task, labelled, seed, settings)
    labels, groups = task.labels[labelled], task.groups_of(labelled)
    few = smallest_class(labels) < FINE_TUNE_FROM
    if decision.logits is None or few or not _is_cheap(start, task):
        return decision
    # On the same halves of the labels, so that the difference is not that of the numbers of labels.
    halves = {
        m: fold_by_fold(m, start, task, labelled, seed, settings, HALVES)
        for m in (decision.mode, "full")
    }
    fraction = fitted_fraction("full", labels, groups)
    weights = task.weights_of(labelled)
    best, in_halves, compared = best_of(halves, labels, fraction, _clear(labels), weights, task.metric)
    logits = halves["full"] if best == "full" else decision.logits
    return Decision(
        best,
        f"{decision.reason}; fitted to half of the labels: {compared}",
        logits,
        halves[best],
        decision.scores,
        in_halves,
    )


def decide_probe(
    start: Start, task: Task, labelled: np.ndarray, seed: int, settings: FullSettings
) -> Decision:
    """Returns the best mode on frozen features (see `decide`).

    For another metric than the accuracy, logistic regression takes the place of label propagation where
    no shares are known, as propagation then takes classes to be equally frequent: with 5 % of the class
    sought and 40 and 100 random labels its average precision was .17 and .23, that of regression .82 and
    .94. And with weighted classes it does for macro F1 of several classes: with a tail of 50 to 1 it
    reached .49 and propagation told the shares .46, while of two classes, one of 5 %, it was .82 and .86
    (held-out parts of the training splits of aerial photographs, the last two with hand signs).
    """
    assert task.features is not None
    modes = ["propagate", "linear", "knn"] if len(task.features) > len(labelled) else ["linear", "knn"]
    counts = np.unique(task.labels[labelled], return_counts=True)[1]
    # Where each image counts as much, to weight classes can only be worse.
    is_other = task.metric != BY_ACCURACY
    if is_other and counts.min() < counts.max():
        modes.append("weighted")
    if is_other and (task.shares is None or (task.metric.name == MACRO_F1 and len(counts) > 2)):
        modes.sort(key=lambda mode: ("weighted", "linear", "propagate", "knn").index(mode))
    if not _can_hold_out(task, labelled, seed):
        return Decision(modes[0], _too_few(task, labelled))
    labels, groups = task.labels[labelled], task.groups_of(labelled)
    logits = {m: fold_by_fold(m, start, task, labelled, seed, settings, FOLDS) for m in modes}
    fraction = fitted_fraction(modes[0], labels, groups)
    weights = task.weights_of(labelled)
    best, scores, reason = best_of(logits, labels, fraction, _clear(labels), weights, task.metric)
    by = "" if task.metric == BY_ACCURACY else f" {task.metric.name}"
    return Decision(best, f"cross-validated{by}: {reason}", logits[best], scores=scores)


def _clear(labels_L: np.ndarray) -> float:
    return CLEAR if smallest_class(labels_L) < MANY else CLEAR_OF_MANY


def _can_hold_out(task: Task, labelled: np.ndarray, seed: int) -> bool:
    """Returns whether labels of every class can be held out, in whole groups."""
    groups = task.groups_of(labelled)
    return all(folds(task.labels[labelled], seed, parts, groups) for parts in (HALVES, FOLDS))


def _too_few(task: Task, labelled: np.ndarray) -> str:
    what = "label" if smallest_class(task.labels[labelled]) < 2 else "group of labelled images"
    return f"one {what} in some class: nothing to compare modes on"


def fitted_fraction(mode: str, labels_L: np.ndarray, groups_L: np.ndarray | None = None) -> float:
    """Returns the fraction of the labels to which classifiers are fitted in cross-validation. groups_L:
    see `folds`."""
    parts = HALVES if mode == "full" else FOLDS
    return 1 - 1 / max(2, min(parts, smallest_class(labels_L, groups_L)))


def best_of(
    logits: dict[str, np.ndarray],
    labels_L: np.ndarray,
    fraction: float,
    clear: float = CLEAR,
    weights_L: np.ndarray | None = None,
    metric: Metric = BY_ACCURACY,
) -> tuple[str, dict[str, float], str]:
    """Returns the first choice, or the best of those that are clearly better; the metric to expect of
    each; and these in words. logits: for each choice, by its name, the outputs (L, C) for held-out
    labels, of classifiers fitted to a fraction of all labels. clear: the probability of a win by chance
    below which one is. weights: how many images each label stands for, None for one each."""
    first = next(iter(logits))
    outputs = {name: metric.outputs(each) for name, each in logits.items()}
    stands_for_L = np.ones(len(labels_L)) if weights_L is None else weights_L
    values = {n: float(metric.of(each[None], labels_L, stands_for_L)[0]) for n, each in outputs.items()}
    if metric.is_accuracy:
        values = {name: expected_accuracy(value, fraction) for name, value in values.items()}
    scores = {name: round(value, 4) for name, value in values.items()}

    def is_better(name: str) -> bool:
        if metric.is_accuracy and weights_L is None:
            return is_clearly_better(outputs[name] == labels_L, outputs[first] == labels_L, clear)
        pair = outputs[name], outputs[first]
        return win_by_exchange(metric, *pair, labels_L, stands_for_L) < clear

    better = [name for name in logits if name == first or is_better(name)]
    best = max(better, key=lambda name: scores[name])
    words = ", ".join(f"{name} {score:.2f}" for name, score in scores.items())
    unclear = f" (no clear win over {best})" if scores[best] < max(scores.values()) else ""
    return best, scores, words + unclear


def is_clearly_better(correct_L: np.ndarray, baseline_L: np.ndarray, clear: float = CLEAR) -> bool:
    """Returns whether a choice beats the baseline in cross-validation: of the labelled images that only
    one of the two predicts correctly, it predicts more than chance would (the exact sign test, McNemar
    1947, one-sided at `clear`)."""
    one, other = correct_L.astype(bool), baseline_L.astype(bool)
    return win_by_chance(int((one & ~other).sum()), int((other & ~one).sum())) < clear


def win_by_chance(wins: int, losses: int) -> float:
    """Returns the probability of so many wins, or more, if both sides were as likely to win."""
    from scipy.stats import binomtest

    if not wins:
        return 1.0
    return float(binomtest(wins, wins + losses, alternative="greater").pvalue)


def held_out_logits(
    decision: Decision,
    start: Start,
    task: Task,
    labelled: np.ndarray,
    seed: int,
    settings: FullSettings,
) -> np.ndarray | None:
    """Returns `Decision.logits`, computed now where modes were not compared; None where some class has
    one label, so that none can be held out."""
    if decision.logits is not None or not _can_hold_out(task, labelled, seed):
        return decision.logits
    parts = HALVES if decision.mode == "full" else FOLDS
    return fold_by_fold(decision.mode, start, task, labelled, seed, settings, parts)


def logits_to_compare(
    decisions: list[tuple[Start, Task, Decision]],
    labelled: np.ndarray,
    seed: int,
    settings: FullSettings,
) -> tuple[list[np.ndarray], float] | None:
    """Returns the logits by which decisions for several starts are compared, and the fraction of the
    labels to which their classifiers were fitted: half for all, where one of them is mode "full". None
    where some class has one label."""
    labels = decisions[0][1].labels[labelled]
    if not _can_hold_out(decisions[0][1], labelled, seed):
        return None
    parts = HALVES if any(decision.mode == "full" for _, _, decision in decisions) else FOLDS
    logits = []
    for start, task, decision in decisions:
        known = decision.logits if parts == FOLDS else decision.in_halves
        if known is None:
            known = fold_by_fold(decision.mode, start, task, labelled, seed, settings, parts)
        logits.append(known)
    return logits, fitted_fraction(
        "full" if parts == HALVES else "", labels, decisions[0][1].groups_of(labelled)
    )


def fold_by_fold(
    mode: str,
    start: Start,
    task: Task,
    labelled: np.ndarray,
    seed: int,
    settings: FullSettings,
    parts: int,
) -> np.ndarray:
    """Returns the logits (L, C) of each labelled image, of a classifier that was fitted without its
    fold."""
    logits = np.zeros((len(labelled), task.classes))
    for fitted, held_out in folds(task.labels[labelled], seed, parts, task.groups_of(labelled)):
        sides = labelled[fitted], labelled[held_out]
        logits[held_out] = _fold_logits(mode, start, task, *sides, seed, settings)
    return logits


def _is_cheap(start: Start, task: Task) -> bool:
    """Returns whether training the whole network several times takes no more than minutes. Several
    networks side by side are not trained together."""
    if start.metadata.parts:
        return False
    parameters = sum(parameter.numel() for parameter in start.encoder.parameters())
    return task.device.type != "cpu" or parameters <= SMALL_NETWORK


def _fold_logits(
    mode: str,
    start: Start,
    task: Task,
    fitted: np.ndarray,
    held_out: np.ndarray,
    seed: int,
    settings: FullSettings,
) -> np.ndarray:
    """Returns the logits of the held-out images, of a classifier fitted to the others."""
    both = np.concatenate([fitted, held_out])
    if mode == "full":
        classifier, _ = fit_full(start, task, fitted, seed, settings, lambda row: None, both)
        return predict_cached(classifier, task, held_out)
    head, _ = fit_probe(mode, task, fitted, seed, both)
    assert task.features is not None
    with torch.no_grad():
        return head(torch.from_numpy(task.features[np.searchsorted(task.pool, held_out)])).numpy()
