"""Classes as they occur: what clfew's choice is worth where they are not equally frequent.

    python examples/benchmarks/unequal.py DATA --work DIR [--only SET ...] [--held-out]

DATA holds aerial/, sign-digits/ and cifar10/ with {train,test}/CLASS/. Needs clfew[lite]. Encoders and
features are those of selection.py, which are made in DIR where they are not there yet: SimCLR from
ImageNet weights. Heads are fitted to the axes that `select` looks at; no network is fine-tuned.

For each of five seeds the pool is a random 80 % of the training split, at most 1,500 images, in three
versions: "rare", one class against all others, 5 % of the images; "tail", the classes shrink evenly, in
a random order, to a fiftieth; and as it is. The test images have the same shares. 40, 100 and 200 labels
are drawn at random, the same number of each class, or chosen as `select` does. The classifiers:

choice        what `--mode auto --shares auto` takes, by the metric of the version: average precision of
              the rare class, macro F1 with a tail, accuracy as it is
propagate, linear, weighted, knn    each of its modes, with the same expected shares
oracle        label propagation told the true shares, to show what is left
equal         label propagation that takes shares to be equal, as without expected shares
logistic, class-weighted, always    what a user would think of first

Each is measured by accuracy, balanced accuracy, macro F1, average precision of the rare class (of which
the row says how many test images there are) and log loss. Of the expected counts of the classes it is
measured how often their intervals cover, and by what factor they err. Classes without a label count as
never found.

Results go to results/unequal.json; what the file contains is not measured again.
"""

import argparse
import itertools
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import Results
from scipy import stats
from scipy.special import log_softmax
from selection import HERDING, Draw, Images
from sklearn.metrics import average_precision_score

from clfew.finetuning.calibration import fit_temperature, prior_of
from clfew.finetuning.expected_counts import expected_counts
from clfew.finetuning.expected_shares import given_shares
from clfew.finetuning.find_shares import with_shares
from clfew.finetuning.fit import FullSettings, Task, fit_probe
from clfew.finetuning.metric import BY_ACCURACY, metric_of
from clfew.finetuning.model_selection import decide_probe, fitted_fraction, held_out_logits
from clfew.finetuning.probes import smallest_class
from clfew.finetuning.tested import scores_of

RESULTS = Path(__file__).parent / "results" / "unequal.json"
SETS = ("aerial", "sign-digits", "cifar10")
VERSIONS, DESIGNS = ("rare", "tail", "as it is"), ("random", "per class", "select")
LABELS, SEEDS, MOST, RARE, TAIL = (40, 100, 200), 5, 1500, 0.05, 50
HOWS = {"random": "random", "per class": "drawn per class", "select": "chosen (herding)"}
ASKED = {"rare": "ap:1", "tail": "macro-f1", "as it is": "accuracy"}
MEASURE = {"rare": "ap", "tail": "macro_f1", "as it is": "accuracy"}
MODES = ("propagate", "linear", "weighted", "knn")
BASELINES = ("logistic", "class-weighted", "always", "equal")
LEFT = 0.01
"""Where the oracle is not at least so much better than the best baseline, nothing is left to gain."""


def shrunk(rows: np.ndarray, labels: np.ndarray, version: str, seed: int) -> np.ndarray:
    """Returns some of the rows, with the shares of a version. labels: of all images; in the version
    "rare", 1 for the class sought. The classes that a seed makes rare are the same for pool and test."""
    chance, kept = np.random.default_rng(seed), [rows]
    classes = chance.permutation(np.unique(labels))
    if version == "rare":
        target, rest = (chance.permutation(rows[labels[rows] == c]) for c in (1, 0))
        most = min(len(target), round(RARE * min(MOST, len(rows))))
        kept = [target[:most], rest[: round(most / RARE) - most]]
    if version == "tail":
        kept = []
        for place, label in enumerate(classes):
            members = chance.permutation(rows[labels[rows] == label])
            kept.append(members[: max(1, round(len(members) * TAIL ** (-place / (len(classes) - 1))))])
    return np.sort(np.concatenate(kept))


def drawn(found: dict[str, np.ndarray], version: str, seed: int, is_held_out: bool) -> Draw:
    """Returns pool and test images of a seed, with the shares of a version."""
    found = dict(found)
    if version == "rare":
        found["labels"] = (found["labels"] == seed % (found["labels"].max() + 1)).astype(np.int64)
    chance = np.random.default_rng(seed)
    order = chance.permutation(np.flatnonzero(~found["test"]))
    rows, test = np.split(order, [round(0.8 * len(order))])
    test = test if is_held_out else np.flatnonzero(found["test"])
    rows = shrunk(rows, found["labels"], version, seed)
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:MOST])
    test = test[~np.isin(found["groups"][test], found["groups"][rows])]
    return Draw.of_rows(found, rows, shrunk(test, found["labels"], version, seed), seed)


def labelled_of(draw: Draw, design: str, count: int) -> np.ndarray:
    """Returns the labelled images, sorted."""
    images = draw.pool.images
    if design == "random":
        return np.sort(np.random.default_rng(draw.seed + 50).permutation(images)[:count])
    if design == "select":
        return np.sort(draw.choose(HERDING, count))
    chance, labels = np.random.default_rng(draw.seed + 100), draw.labels[images]
    each = max(1, count // draw.classes)
    members = [chance.permutation(images[labels == c])[:each] for c in range(draw.classes)]
    return np.sort(np.concatenate(members))


def measured(logits: np.ndarray, labels: np.ndarray, rare: int) -> dict[str, float]:
    scores = scores_of(logits, labels, BY_ACCURACY)
    probability = log_softmax(logits, axis=1)
    loss = -probability[np.arange(len(labels)), labels].clip(-20).mean()
    ap = average_precision_score(labels == rare, probability[:, rare])
    return {**scores, "ap": float(ap), "log_loss": float(loss)}


def measure(draw: Draw, version: str, design: str, count: int) -> dict:
    """Returns the scores of each classifier, and what is expected of the classes."""
    labelled, none = labelled_of(draw, design, count), np.zeros(0)
    pool, cpu = np.arange(len(draw.labels)), torch.device("cpu")
    plain = Task(
        *(none, none, pool, draw.labels, draw.classes, draw.inputs, cpu, "fp32"),
        is_scaled=True,
        groups=draw.groups,
    )
    labels, hows = draw.labels[labelled], [HOWS[design]] * len(labelled)
    rare = int(draw.shares.argmin())
    if len(np.unique(labels)) < 2:
        return {"classes": 1}
    names = [str(c) for c in range(draw.classes)]
    task, words = with_shares(plain, "auto", names, labelled, hows)
    metric, _ = metric_of(ASKED[version], names, task.shares is not None)
    task = replace(task, metric=metric)
    settings = FullSettings()
    decision = decide_probe(None, task, labelled, draw.seed, settings)
    tested = torch.from_numpy(draw.tested)

    def logits_of(mode: str, of: Task) -> np.ndarray:
        head, _ = fit_probe(mode, of, labelled, draw.seed)
        with torch.no_grad():
            return head(tested).numpy()

    found = {mode: logits_of(mode, task) for mode in MODES}
    prior = prior_of(decision.mode, smallest_class(labels))
    temperature = prior.temperature
    logits = held_out_logits(decision, None, task, labelled, draw.seed, settings)
    if logits is not None:
        fraction = fitted_fraction(decision.mode, labels, task.groups_of(labelled))
        temperature = fit_temperature(logits, labels, prior, fraction, task.weights_of(labelled))
    found["choice"] = found[decision.mode] / temperature
    found["oracle"] = logits_of("propagate", replace(plain, shares=given_shares(draw.shares.tolist())))
    found["equal"] = logits_of("propagate", plain)
    found["logistic"], found["class-weighted"] = logits_of("linear", plain), logits_of("weighted", plain)
    largest = np.bincount(labels).argmax()
    found["always"] = np.tile(np.where(np.arange(draw.classes) == largest, 1.0, 0.0), (len(tested), 1))
    counts = expected_counts(plain, labelled, hows, names, none.astype(int), None)
    return {
        "classes": len(np.unique(labels)),
        "mode": decision.mode,
        "shares": words,
        "positives": int((draw.test_labels == rare).sum()),
        "scores": {name: measured(each, draw.test_labels, rare) for name, each in found.items()},
        "counts": None
        if counts is None
        else checked(counts, np.bincount(draw.labels, minlength=draw.classes)),
    }


def checked(counts: dict, true_C: np.ndarray) -> dict[str, float]:
    """Returns how many of the intervals cover, and by what factor the counts err in the middle: of the
    rare class alone where there are two classes."""
    rows = [(row, int(true_C[int(row["class"])])) for row in counts["classes"]]
    factors = [np.exp(abs(np.log(max(row["count"], 0.5) / true))) for row, true in rows]
    rarest = min(range(len(rows)), key=lambda i: rows[i][1])
    return {
        "covered": float(np.mean([row["low"] <= true <= row["high"] for row, true in rows])),
        "factor": float(factors[rarest] if len(true_C) == 2 else np.median(factors)),
    }


def paired(apart: np.ndarray) -> tuple[float, float, float]:
    """Returns the mean of differences over the seeds and its 95 % interval."""
    reach = stats.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / len(apart) ** 0.5
    return float(apart.mean()), float(apart.mean() - reach), float(apart.mean() + reach)


def show(done: dict[str, dict]) -> None:
    """Prints a line for each set, version, design and number of labels: by the metric asked for the
    choice, the oracle, the baselines, and the choice less the best baseline."""
    reached, lost = [], []
    for name, version, design, count in itertools.product(SETS, VERSIONS, DESIGNS, LABELS):
        key = f"{name}, {version}, {design}, {count}"
        rows = [done[k] for s in range(SEEDS) if "scores" in done.get(k := f"{key}, seed {s}", {})]
        if len(rows) < 2:
            continue
        by = {
            n: np.array([row["scores"][n][MEASURE[version]] for row in rows]) for n in rows[0]["scores"]
        }
        means = {n: each.mean() for n, each in by.items()}
        best = max(BASELINES, key=means.__getitem__)
        mean, low, high = paired(by["choice"] - by[best])
        if version == "rare" and means["oracle"] > means[best] + LEFT:
            reached.append((means["choice"] - means[best], means["oracle"] - means[best]))
        if high < 0:
            lost.append(key)
        words = " ".join(f"{n} {100 * v:.1f}" for n, v in means.items() if n != "choice")
        print(
            f"{key} ({MEASURE[version]}): choice {100 * means['choice']:.1f} | {words} | "
            f"less {best} {100 * mean:+.1f} [{100 * low:.1f}, {100 * high:.1f}] | "
            f"{' '.join(row['mode'] for row in rows)}"
        )
    gains, gaps = np.array(reached).reshape(-1, 2).T
    print(
        f"AP of a rare class, {len(gaps)} settings with something left: {gains.sum() / gaps.sum():.2f} "
        f"of the way to the oracle, median {np.median(gains / gaps):.2f}; clearly worse: {lost}"
    )
    for design, count in itertools.product(DESIGNS, LABELS):
        rows = [
            row["counts"]
            for key, row in done.items()
            if f", {design}, {count}, seed" in key and row.get("counts") and "as it is" not in key
        ]
        covered, factor = np.mean([r["covered"] for r in rows]), np.median([r["factor"] for r in rows])
        print(f"counts, {design}, {count} labels: {covered:.2f} of intervals cover, factor {factor:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--only", nargs="*", default=SETS)
    parser.add_argument("--versions", nargs="*", default=VERSIONS)
    parser.add_argument("--designs", nargs="*", default=DESIGNS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--held-out", action="store_true", help="test on a part of the training split")
    given = parser.parse_args()
    results = Results(given.results)
    for seed, name in itertools.product(range(SEEDS), given.only):
        found = Images(name, given.data, given.work, given.minutes).features("pretrained")
        for version in given.versions:
            draw = drawn(found, version, seed, given.held_out)
            for design, count in itertools.product(given.designs, LABELS):
                key = f"{name}, {version}, {design}, {count}, seed {seed}"
                results.get(key, partial(measure, draw, version, design, count))
    show(results.done)


if __name__ == "__main__":
    main()
