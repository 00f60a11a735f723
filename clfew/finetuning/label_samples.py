"""Fits a classifier to each label sample: chooses its start and mode, fits, calibrates and tests it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from scipy.special import softmax

from clfew import console
from clfew.data.source import Source
from clfew.finetuning.asked import ACCURACY, EQUAL
from clfew.finetuning.calibration import fit_temperature, prior_of
from clfew.finetuning.find_shares import with_shares
from clfew.finetuning.fit import FullSettings, Task, fit
from clfew.finetuning.label_propagation import mean_entropy, propagated_probabilities
from clfew.finetuning.metric import metric_of
from clfew.finetuning.model_selection import (
    CLEAR,
    Decision,
    best_of,
    decide,
    fitted_fraction,
    held_out_logits,
    logits_to_compare,
)
from clfew.finetuning.probes import smallest_class
from clfew.finetuning.start import Start
from clfew.finetuning.tested import tested
from clfew.models.classifier import Classifier
from clfew.models.drift import alarm
from clfew.runs.files import write_csv
from clfew.runs.folders import START, Run, from_here
from clfew.training.saving import Trainings

BEFORE = "the weights that pretraining started from"

UNDECIDED = 0.8
"""Above this fraction of the entropy of chance, labels spread so undecidedly that the entropies of
several starts say nothing. With one label per class, that of SimCLR from scratch was the smallest on 72
photos (.91) and on 70 hand signs (.94), where its predictions were 9 and 11 points worse than those of
the pretrained start (15 label samples, held-out images, `examples/benchmarks/few_images.py`); on all
1,651 hand signs (.48), where it is the better start, it was the smallest too.
"""


@dataclass(frozen=True)
class SampleFitting:
    """What classifiers are fitted with, whatever the label sample.

    candidates: the starts to choose from, each with its task. test: indices of the test images. mode:
    "auto" or one of MODES. run: the run whose log and files are written for the first sample. shares,
    hows: what is expected of the classes' shares, and how the labels of some images came about (see
    `with_shares`). metric: see `metric_of`.
    """

    candidates: list[tuple[Start, Task]]
    source: Source
    test: np.ndarray
    mode: str
    seed: int
    settings: FullSettings
    run: Run
    shares: str | dict[str, float] = EQUAL
    hows: Callable[[np.ndarray], list[str]] = lambda labelled: []
    metric: str = ACCURACY

    def expecting_shares(self, labelled: np.ndarray) -> tuple["SampleFitting", str, str]:
        """Returns the same for one label sample, with the class shares that it lets expect in each task
        and the metric, and both in words: the shares are those of the first task."""
        classes, hows = self.source.classes, self.hows(labelled)
        found = [
            (start, *with_shares(task, self.shares, classes, labelled, hows))
            for start, task in self.candidates
        ]
        metric, why = metric_of(self.metric, classes, found[0][1].shares is not None)
        candidates = [(start, replace(task, metric=metric)) for start, task, _ in found]
        return replace(self, candidates=candidates), found[0][2], f"{metric.name}, {why}"


@dataclass(frozen=True)
class Fitted:
    """A classifier with the start and the decisions that it comes from, and the indices of the labelled
    images. task: with what was expected of the classes. held_out: calibrated probabilities of the
    labels, float64 (L, C), each of a classifier that was not fitted to it; None where there are none.
    test_logits: float32 (T, C), None without test images."""

    start: Start
    classifier: Classifier
    decided: dict[str, Any]
    labelled: np.ndarray
    task: Task
    held_out: np.ndarray | None
    test_logits: np.ndarray | None


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
    fitting, shares, metric = fitting.expecting_shares(labelled)
    console.say(f"shares     {shares}")
    if fitting.mode == "auto":
        console.say(f"metric     {metric}")
    start, task, decision = choose(fitting, labelled, fitting.seed)
    classifier, extra = fit(
        start, task, labelled, decision.mode, fitting.seed, fitting.settings, fitting.run.log
    )
    decided = decision.as_row() | extra | {"metric": task.metric.name}
    if task.shares is not None:
        decided["shares"] = task.shares.as_row(fitting.source.classes)
    held_out = _calibrate(classifier, decision, start, task, labelled, fitting)
    decided["temperature"] = classifier.temperature
    if decision.mode == "propagate":
        _write_pool_labels(fitting.run, fitting.source, task, labelled)
    found, logits = tested(
        *(classifier, start, task, decision.mode, labelled),
        *(fitting.test, fitting.seed, fitting.source),
    )
    row = {"seed": fitting.seed, "labels": len(labelled), **found, **decided}
    decided |= {"baselines": found["baselines"]} if "baselines" in found else {}
    return row, Fitted(start, classifier, decided, labelled, task, held_out, logits)


def _row_of_sample(fitting: SampleFitting, number: int, labelled: np.ndarray) -> dict[str, Any]:
    """Fits a classifier of which only the results are kept."""
    seed = fitting.seed + number
    fitting, _, _ = fitting.expecting_shares(labelled)
    start, task, decision = choose(fitting, labelled, seed)
    classifier, extra = fit(start, task, labelled, decision.mode, seed, fitting.settings)
    found, _ = tested(
        classifier, start, task, decision.mode, labelled, fitting.test, seed, fitting.source
    )
    decided = decision.as_row() | extra | {"metric": task.metric.name}
    return {"seed": seed, "labels": len(labelled), **found, **decided}


def choose(fitting: SampleFitting, labelled: np.ndarray, seed: int) -> tuple[Start, Task, Decision]:
    """Chooses the mode for a label sample, and the start.

    The start is the first candidate, unless another one is clearly better in cross-validation. The first
    is the pretrained encoder rather than the weights that its pretraining started from. Of several
    starts that were named, it is the one on whose features labels spread most decidedly; where they
    spread undecidedly on all (see UNDECIDED), one with published weights.
    """
    names = names_of([start for start, _ in fitting.candidates])
    candidates, words = dict(zip(names, fitting.candidates, strict=True)), ""
    # In this order, whatever is found: trainings are resumed by their number.
    decisions = {
        name: (start, task, decide(fitting.mode, start, task, labelled, seed, fitting.settings))
        for name, (start, task) in candidates.items()
    }
    if len(decisions) == 1:
        return decisions[names[0]]
    is_named, order = BEFORE not in names, names
    if is_named:
        order, words = _most_decided_first(candidates, labelled)
    best = order[0]
    compared = logits_to_compare([*decisions.values()], labelled, seed, fitting.settings)
    if compared is not None:
        logits, fraction = compared
        by_name = dict(zip(names, logits, strict=True))
        labels = candidates[best][1].labels[labelled]
        task = candidates[best][1]
        ordered, weights = {name: by_name[name] for name in order}, task.weights_of(labelled)
        best, _, accuracies = best_of(ordered, labels, fraction, CLEAR, weights, task.metric)
        words += f"cross-validated: {accuracies}" if words else accuracies
    elif not is_named:
        drifted = decisions[best][0].metadata.training.get("pretrain", {}).get("drift")
        if drifted and alarm(drifted):
            best, words = BEFORE, f"{BEFORE}, as it has changed the features too much"
    elif not words:
        words = f"one label in some class: nothing to compare starts on, {best} is the first"
    start, task, decision = decisions[best]
    if words:
        decision = replace(decision, reason=f"{decision.reason}; {words.removesuffix('; ')}")
    return start, task, replace(decision, start=best) if is_named else decision


Candidates = dict[str, tuple[Start, Task]]


def _most_decided_first(candidates: Candidates, labelled: np.ndarray) -> tuple[list[str], str]:
    """Returns the names of the candidates, best first (see `choose`), and why in words; as they are, and
    nothing, where there are no features, or nothing that labels could spread to."""
    found, chance = {}, 0.0
    for name, (_, task) in candidates.items():
        if task.features is None or len(task.features) <= len(labelled):
            return list(candidates), ""
        rows, labels = np.searchsorted(task.pool, labelled), task.labels[labelled]
        found[name] = mean_entropy(task.graph, rows, labels, task.classes, task.shares)
        chance = float(np.log(len(np.unique(labels))))
    order = sorted(found, key=found.__getitem__)
    words = ", ".join(f"{name} {found[name]:.2f}" for name in order)
    words = f"labels spread with an entropy of: {words}, by chance {chance:.2f}"
    published = [name for name in order if _is_published_alone(candidates[name][0])]
    if published and found[order[0]] > UNDECIDED * chance:
        order.sort(key=lambda name: name not in published)
        words += f": too undecided to choose, so {order[0]} comes first"
    return order, f"{words}; "


def _is_published_alone(start: Start) -> bool:
    return start.is_published and not start.metadata.parts


def names_of(starts: list[Start]) -> list[str]:
    """Returns a name for each of several starts to choose from."""
    files = [start.artifact for start in starts]
    folders = [None if file is None else file.parent.resolve() for file in files]
    if len(files) == 2 and files[1] is not None and files[1].name == START and folders[0] == folders[1]:
        return ["the pretrained encoder", BEFORE]
    return [
        "side by side"
        if file is None
        else str(from_here(file if folders.count(file.parent.resolve()) > 1 else file.parent))
        for file in files
    ]


def _calibrate(
    classifier: Classifier,
    decision: Decision,
    start: Start,
    task: Task,
    labelled: np.ndarray,
    fitting: SampleFitting,
) -> np.ndarray | None:
    """Sets the temperature by the logits of labels that were held out in turn, and returns their
    probabilities with it (L, C). Where some class has one label, none can be held out: the temperature
    is the usual one of the mode, and it returns None."""
    labels = task.labels[labelled]
    prior = prior_of(decision.mode, smallest_class(labels))
    logits = held_out_logits(decision, start, task, labelled, fitting.seed, fitting.settings)
    if logits is None:
        classifier.temperature = prior.temperature
        return None
    fraction = fitted_fraction(decision.mode, labels, task.groups_of(labelled))
    weights = task.weights_of(labelled)
    classifier.temperature = fit_temperature(logits, labels, prior, fraction, weights)
    probabilities: np.ndarray = softmax(logits / classifier.temperature, axis=1)
    return probabilities


def _write_pool_labels(run: Run, source: Source, task: Task, labelled: np.ndarray) -> None:
    """Writes pool_labels.csv, with the propagated label of each image of the pool.

    It is for users who need labels of these images rather than a classifier. Its column `share` is the
    probability of the likeliest class, not calibrated. An image that no label reaches has no label.
    """
    rows = np.searchsorted(task.pool, labelled)
    labels = task.labels[labelled]
    probabilities = propagated_probabilities(task.graph, rows, labels, task.classes, task.shares)
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
