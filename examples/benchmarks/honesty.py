"""How true the numbers are that clfew says about its classifiers.

    python examples/benchmarks/honesty.py DATA [--runs FOLDER] [--only SET ...]
        [--results FILE] [--table]

DATA holds cifar10/, aerial/, sign-digits/ and fashion-mnist-6k/, each with train/CLASS/ and test/CLASS/.
Needs clfew[lite]. At most 2,000 training and 2,000 test images of each are used. The pretraining runs
are those of few_labels.py, made first where they are missing. Then, for SimCLR from scratch, from the
pretrained start and both side by side, for 1, 2, 5, 10 and 50 labels a class and the same ten label
samples for every mode (three where the whole network is trained), it measures on the test split:

- the expected calibration error (ECE) before and after calibration, less what a perfectly calibrated
  classifier of the same accuracy shows on as many images by chance (simulated);
- Brier score and log loss before and after calibration;
- the accuracy to expect by cross-validation on the labels less that on the test split;
- how often the interval of `eval`, of 50 and of 100 test images, covers the accuracy on the others, and
  how often that of `finetune --repeat 5` covers the accuracy of five other label samples on them. The
  others are so few that their own accuracy is partly chance; so it also counts how often the interval of
  images drawn with replacement covers the accuracy on the whole split, as if it were all images.

Nothing is chosen on the test split. Results go to results/honesty.json, or to FILE; what the file
contains is not measured again.
"""

import argparse
import hashlib
from collections import Counter, defaultdict
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from common import Results
from few_labels import SETS, Bench
from scipy.special import softmax

from clfew.data.image_cache import open_image_cache
from clfew.data.labels import parse_labels, sample_labels
from clfew.data.sources import open_source
from clfew.data.splits import evenly_spaced
from clfew.finetuning import model_selection
from clfew.finetuning.calibration import fit_temperature, prior_of
from clfew.finetuning.fit import FullSettings, Task, fit, predict_cached
from clfew.finetuning.label_samples import SampleFitting, choose
from clfew.finetuning.labelled_data import labelled_data
from clfew.finetuning.metrics import (
    accuracy_interval,
    expected_accuracy,
    expected_calibration_error,
    packed,
    unpacked,
    wilson_interval,
)
from clfew.finetuning.model_selection import Decision, decide, fitted_fraction, held_out_logits
from clfew.finetuning.start import side_by_side, start_from_artifact
from clfew.models.features import features_of
from clfew.runs.folders import Run
from clfew.training.device import choose_precision

HERE = Path(__file__).parent / "results"
BUDGETS = (1, 2, 5, 10, 50)
KINDS = ("simclr", "pretrained", "both")
PROBES = ("linear", "knn", "propagate")
SAMPLES, FULL_SAMPLES = 10, 3
MOST_POOL, MOST_TEST = 2_000, 2_000
CPU = torch.device("cpu")


def network_settings(budget):
    """Returns the settings of mode "full": with many labels fewer epochs than by default, for time."""
    return FullSettings(epochs=20 if budget >= 50 else None)


NAMES = {}
"""The name of each task, by its id."""


def remember_folds(folder):
    """Lets `auto` take the cross-validation of a mode that was measured by itself, which is the same,
    and a stopped benchmark that of before. folder: where the outputs are kept."""
    compute = model_selection.fold_by_fold

    def fold_by_fold(mode, start, task, labelled, seed, settings, parts):
        digest = hashlib.sha256(labelled.tobytes()).hexdigest()[:12]
        path = folder / f"{NAMES[id(task)]} {mode} {seed} {parts} {digest}.npy"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            logits = compute(mode, start, task, labelled, seed, settings, parts)
            temporary = path.with_suffix(".tmp")
            with open(temporary, "wb") as file:
                np.save(file, logits)
            temporary.replace(path)
        return np.load(path)

    model_selection.fold_by_fold = fold_by_fold


class Images:
    """The images of one set, and what is computed once for all cells: its starts with their tasks and
    the features of the test images."""

    def __init__(self, bench):
        self.bench = bench

    @cached_property
    def opened(self):
        """Returns the source, the test images, and each start with its task and its test features."""
        starts = {
            kind: start_from_artifact(Path(self.bench.pretrained(kind)) / "encoder.safetensors", None)
            for kind in ("pretrained", "simclr")
        }
        source = open_source(self.bench.source)
        cache = open_image_cache(source, max(start.metadata.side for start in starts.values()))
        data = labelled_data(source, cache, None, 0)
        pool, test = evenly_spaced(data.pool, MOST_POOL), evenly_spaced(data.test, MOST_TEST)
        precision, _ = choose_precision(CPU, "auto")
        arrays = (cache.pixels, cache.aspects)

        def own(encoder):
            return features_of(encoder, *arrays, pool, CPU, precision, standardised=False)

        starts["both"] = side_by_side([*starts.values()], own)
        found = {}
        for kind, start in starts.items():
            features, of_test = (
                features_of(start.encoder, *arrays, rows, CPU, precision) for rows in (pool, test)
            )
            task = Task(
                *arrays, pool, source.labels, len(source.classes), features, CPU, precision,
                is_scaled=kind == "both",
            )  # fmt: skip
            NAMES[id(task)] = f"{self.bench.name} {kind}"
            found[kind] = start, task, of_test
        return source, test, found

    def labelled(self, budget, sample):
        """Returns the indices of the labelled images of a sample."""
        source, _, found = self.opened
        return sample_labels(source, found["both"][1].pool, parse_labels(f"{budget}/class"), sample)


class Cells:
    """The cells of one set and one start."""

    def __init__(self, images, kind, results):
        self.images, self.kind, self.results = images, kind, results
        self.name = f"{images.bench.name} {kind}"

    def has_small_network(self):
        return self.kind == "simclr"

    def samples_of(self, mode, budget):
        """Returns the number of label samples: fewer where the whole network is trained."""
        trains = mode == "full" or (mode == "auto" and budget >= 10)
        return FULL_SAMPLES if trains and self.has_small_network() else SAMPLES

    def modes(self, budget):
        if budget == 1:
            return ("auto",)
        return (*PROBES, *(["full"] if self.has_small_network() and budget >= 10 else []), "auto")

    def cell(self, mode, budget, sample):
        """Returns what is measured with one label sample."""
        key = f"{self.name} {budget} {mode} {sample}"
        return self.results.get(key, lambda: self.measure(mode, budget, sample))

    def measure(self, mode, budget, sample):
        source, test, found = self.images.opened
        start, task, test_features = found[self.kind]
        labelled, network = self.images.labelled(budget, sample), network_settings(budget)
        decision = Decision(mode, "")
        if mode == "auto":
            decision = decide("auto", start, task, labelled, sample, network)
            measured = self.cell(decision.mode, budget, sample)
            return measured | {"mode": decision.mode, "reason": decision.reason}
        held_out = held_out_logits(decision, start, task, labelled, sample, network)
        classifier, _ = fit(start, task, labelled, mode, sample, network)
        if mode == "full":
            logits = predict_cached(classifier, task, test)
        else:
            with torch.no_grad():
                logits = classifier.from_features(torch.from_numpy(test_features)).numpy()
        labels, prior = task.labels[labelled], prior_of(mode, budget)
        cross_validated, temperature = None, prior.temperature
        if held_out is not None:
            fraction = fitted_fraction(mode, labels)
            temperature = fit_temperature(held_out, labels, prior, fraction)
            right = float((held_out.argmax(1) == labels).mean())
            cross_validated = expected_accuracy(right, fraction)
        truth = source.labels[test]
        correct = logits.argmax(1) == truth
        return {
            "accuracy": float(correct.mean()),
            "cross_validated": cross_validated,
            "temperature": temperature,
            "before": scores(logits, truth),
            "after": scores(logits / temperature, truth),
            "correct": packed(correct),
            "images": len(test),
        }


class Choice:
    """The cells of one set where `finetune` chooses among both starts and both side by side."""

    def __init__(self, images, cells, results):
        self.images, self.results = images, results
        self.cells = {cell.kind: cell for cell in cells}
        self.name = f"{images.bench.name} choice"

    def cell(self, budget, sample):
        key = f"{self.name} {budget} {sample}"
        return self.results.get(key, lambda: self.measure(budget, sample))

    def measure(self, budget, sample):
        source, test, found = self.images.opened
        candidates = [found[kind][:2] for kind in ("both", "pretrained", "simclr")]
        fitting = SampleFitting(
            candidates, source, test, "auto", sample, network_settings(budget), Run(Path("unused"))
        )
        start, _, decision = choose(fitting, self.images.labelled(budget, sample), sample)
        kind = next(kind for kind in found if found[kind][0] is start)
        measured = self.cells[kind].cell(decision.mode, budget, sample)
        row = {name: measured[name] for name in ("accuracy", "correct", "images")}
        return row | {"start": kind, "mode": decision.mode}


def scores(logits, truth, simulations=200):
    """Returns ECE, the ECE of a perfectly calibrated classifier of the same accuracy, Brier score, and
    log loss."""
    probabilities = softmax(logits.astype(np.float64), axis=1)
    rows = np.arange(len(truth))
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == truth
    # At the temperature at which the mean confidence is the accuracy, the confidences are taken as true.
    low, high = np.log(1e-3), np.log(1e3)
    for _ in range(60):
        middle = (low + high) / 2
        perfect = softmax(logits.astype(np.float64) / np.exp(middle), axis=1).max(1)
        low, high = (middle, high) if perfect.mean() > correct.mean() else (low, middle)
    random = np.random.default_rng(0)
    by_chance = [
        expected_calibration_error(perfect, random.random(len(truth)) < perfect)
        for _ in range(simulations)
    ]
    return {
        "ece": expected_calibration_error(confidence, correct),
        "ece_by_chance": float(np.mean(by_chance)),
        "brier": float(((probabilities - np.eye(probabilities.shape[1])[truth]) ** 2).sum(1).mean()),
        "log_loss": float(-np.log(probabilities[rows, truth].clip(1e-12)).mean()),
    }


def drawn(random, images, size, replaced):
    """Returns the rows of a test sample, and those on which the accuracy is to be covered."""
    if replaced:
        return random.integers(0, images, size), np.arange(images)
    order = random.permutation(images)
    return order[:size], order[size:]


def coverage(rows, size, replaced, draws=200):
    """Returns how often the 95 % interval of `size` test images covers the accuracy (see `drawn`)."""
    covered, random = [], np.random.default_rng(0)
    for row in rows:
        correct = unpacked(row["correct"], row["accuracy"], row["images"])
        for _ in range(draws // len(rows)):
            chosen, others = drawn(random, len(correct), size, replaced)
            low, high = wilson_interval(int(correct[chosen].sum()), size)
            covered.append(low <= correct[others].mean() <= high)
    return float(np.mean(covered))


def coverage_by_chance(rows, size, replaced, draws=200):
    """Returns what `coverage` would be if every image were predicted correctly with the same
    probability, independently of the others: on few others, less than 95 %."""
    covered, random = [], np.random.default_rng([size, *(int(1e6 * row["accuracy"]) for row in rows)])
    for row in rows:
        others = row["images"] - size
        for _ in range(draws // len(rows)):
            low, high = wilson_interval(int(random.binomial(size, row["accuracy"])), size)
            truth = row["accuracy"] if replaced else random.binomial(others, row["accuracy"]) / others
            covered.append(low <= truth <= high)
    return float(np.mean(covered))


def coverage_of_repeats(rows, size, replaced, draws=200):
    """Returns how often the interval of five label samples, tested on `size` images, covers the accuracy
    of the five others (see `drawn`); NaN with fewer samples."""
    if len(rows) < SAMPLES:
        return np.nan
    correct = np.array([unpacked(r["correct"], r["accuracy"], r["images"]) for r in rows])
    covered, random = [], np.random.default_rng(0)
    for _ in range(draws):
        chosen, others = drawn(random, correct.shape[1], size, replaced)
        first = random.permutation(len(rows)) < 5
        low, high = accuracy_interval(correct[first][:, chosen])
        covered.append(low <= correct[~first][:, others].mean() <= high)
    return float(np.mean(covered))


def summary(rows):
    """Returns one line of the table for some cells of a mode."""
    gain = [row["before"]["log_loss"] - row["after"]["log_loss"] for row in rows]
    excess = {
        when: float(np.mean([row[when]["ece"] - row[when]["ece_by_chance"] for row in rows]))
        for when in ("before", "after")
    }
    return {
        "cells": len(rows),
        "accuracy": float(np.mean([row["accuracy"] for row in rows])),
        "cv - test": float(np.mean([row["cross_validated"] - row["accuracy"] for row in rows])),
        "ECE before": excess["before"],
        "ECE after": excess["after"],
        "Brier before": float(np.mean([row["before"]["brier"] for row in rows])),
        "Brier after": float(np.mean([row["after"]["brier"] for row in rows])),
        "log loss before": float(np.mean([row["before"]["log_loss"] for row in rows])),
        "log loss after": float(np.mean([row["after"]["log_loss"] for row in rows])),
        "worse by > .02": float(np.mean([each < -0.02 for each in gain])),
    }


def table(cells):
    """Prints a line for each mode and budget, and the coverage of the intervals.

    cells: the rows by set, start, budget and mode.
    """
    grouped, intervals = defaultdict(list), defaultdict(list)
    for (_, budget, mode), rows in cells.items():
        if budget == 1:  # Nothing can be held out.
            continue
        for key in ((mode, f"{budget} a class"), (mode, "5 and more") if budget >= 5 else None):
            if key:
                grouped[key] += rows
        for size in (50, 100):
            for what, replaced in (("of the rest", False), ("of all, with replacement", True)):
                intervals[f"eval, {size} images, {what}"].append(coverage(rows, size, replaced))
                name = f"the same, {size} images, {what}, by chance"
                intervals[name].append(coverage_by_chance(rows, size, replaced))
                repeats = coverage_of_repeats(rows, size, replaced)
                if not np.isnan(repeats):
                    intervals[f"--repeat 5, {size} images, {what}"].append(repeats)
    names = list(summary(next(iter(grouped.values()))))
    print("| mode | labels | " + " | ".join(names) + " |")
    print("|---|---|" + "---|" * len(names))
    for (mode, labels), rows in sorted(grouped.items(), key=lambda item: (item[0][0], item[0][1])):
        values = [f"{v}" if isinstance(v, int) else f"{v:.3f}" for v in summary(rows).values()]
        print(f"| {mode} | {labels} | " + " | ".join(values) + " |")
    print("\n| interval | mean coverage | lowest of a set, start, budget and mode |\n|---|---|---|")
    for name, found in intervals.items():
        print(f"| {name} | {np.mean(found):.3f} | {min(found):.3f} |")


def auto_against_modes(cells):
    """Prints the mean difference of `auto` to each fixed mode on the same label samples, over all sets,
    starts and budgets; and the cells where it is worse by more than its 95 % interval allows."""
    from scipy import stats

    print("\n| auto less | mean | pairs | cells where it is clearly worse |\n|---|---|---|---|")
    for mode in (*PROBES, "full"):
        differences, worse = [], []
        for (name, budget, other), rows in cells.items():
            autos = cells.get((name, budget, "auto"))
            if other != mode or not autos:
                continue
            pairs = [a["accuracy"] - r["accuracy"] for a, r in zip(autos, rows, strict=False)]
            differences += pairs
            spread = np.std(pairs, ddof=1) if len(pairs) > 1 else 0.0
            reach = stats.t.ppf(0.975, len(pairs) - 1) * spread / len(pairs) ** 0.5
            if np.mean(pairs) + reach < 0:
                worse.append(f"{name} {budget} ({np.mean(pairs):+.3f} ± {reach:.3f})")
        if differences:
            mean = np.mean(differences)
            print(f"| {mode} | {mean:+.3f} | {len(differences)} | {'; '.join(worse) or 'none'} |")


def choice_of_start(choices, results):
    """Prints, for each set and budget, the accuracy of `auto` on each start, side by side, and where
    `finetune` chooses, on the same label samples; and the mean of the better start less the choice."""
    print(
        "\n| images | labels a class | pretrained | scratch | side by side | chosen | less the better |"
    )
    print("|---|---|---|---|---|---|---|")
    for choice in choices:
        for budget in BUDGETS:
            rows = [results.done.get(f"{choice.name} {budget} {s}") for s in range(SAMPLES)]
            rows = [row for row in rows if row]
            if not rows:
                continue
            of_start = {
                kind: [
                    results.done[key]["accuracy"]
                    for s in range(len(rows))
                    if (key := f"{choice.images.bench.name} {kind} {budget} auto {s}") in results.done
                ]
                for kind in ("pretrained", "simclr", "both")
            }
            chosen = np.array([row["accuracy"] for row in rows])
            alone = [np.mean(of_start[kind]) for kind in ("pretrained", "simclr")]
            counts = Counter(row["start"] for row in rows)
            names = ", ".join(f"{kind} {count}" for kind, count in counts.most_common())
            cells = [f"{100 * np.mean(each):.1f} ± {100 * np.std(each, ddof=1):.1f}" for each in
                     (*of_start.values(), chosen)]  # fmt: skip
            print(
                f"| {choice.images.bench.name} | {budget} | "
                + " | ".join(cells)
                + f" ({names}) | {100 * (chosen.mean() - max(alone)):+.1f} |"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/few_labels"))
    parser.add_argument("--only", nargs="*", default=list(SETS))
    parser.add_argument("--results", type=Path, default=HERE / "honesty.json")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    results = Results(arguments.results)
    remember_folds(arguments.runs / "folds")
    choices, groups = [], []
    for name in arguments.only:
        images = Images(Bench(name, arguments.data, arguments.runs, results))
        cells = [Cells(images, kind, results) for kind in KINDS]
        groups += cells
        choices.append(Choice(images, cells, results))
    if not arguments.table:
        for choice in choices:  # What a run learns in a minute depends on what else the machine does.
            for kind in ("pretrained", "simclr"):
                choice.images.bench.pretrained(kind)
        for budget in BUDGETS:
            for choice in choices:
                for group in choice.cells.values():
                    for mode in group.modes(budget):
                        count = group.samples_of(mode, budget)
                        rows = [group.cell(mode, budget, sample) for sample in range(count)]
                        mean = np.mean([row["accuracy"] for row in rows])
                        print(f"{group.name} {budget} {mode}: {mean:.3f}", flush=True)
                count = FULL_SAMPLES if budget >= 10 else SAMPLES
                rows = [choice.cell(budget, sample) for sample in range(count)]
                mean = np.mean([row["accuracy"] for row in rows])
                print(f"{choice.name} {budget}: {mean:.3f}", flush=True)
    cells = {}
    for group in groups:
        for budget in BUDGETS:
            for mode in group.modes(budget):
                keys = [
                    f"{group.name} {budget} {mode} {s}" for s in range(group.samples_of(mode, budget))
                ]
                if all(key in results.done for key in keys):
                    cells[group.name, budget, mode] = [results.done[key] for key in keys]
    table(cells)
    auto_against_modes(cells)
    choice_of_start(choices, results)


if __name__ == "__main__":
    main()
