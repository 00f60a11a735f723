"""Whether the intervals of a labelled random sample cover, and how much predictions narrow them.

    python examples/benchmarks/random_sample.py [--repeats 2000]

shares: 20 to 200 images of a pool of 1,000 or 20,000 are drawn at random and labelled, and a classifier
predicts how likely each image of the pool is to be of a class that makes up 2 to 90 % of it. Scores are
normal, as far apart between the class and the rest as an AUC of .98 (good) or .80 (middling) makes them,
and probabilities are wrong in several ways (see `CLASSIFIERS`). For each setting: how often the 95 %
interval covers the share in the pool, from the labels alone (Wilson), with predictions (as clfew does)
and by the normal interval of prediction-powered inference with the best lambda; and the mean width of
the latter two relative to the first.

accuracy: the same for the accuracy of the classifier, predicted by its confidence.

digits: the same for shares of scikit-learn's ten digits, which make up 2 to 18 % of the pool each, and
for the accuracy, with a logistic regression on 3 or 10 other labels per class. As labels are drawn per
class, the regression takes classes to be of one size.

Results go to results/random_sample.json; what the file contains is not measured again.
"""

import argparse
from pathlib import Path

import numpy as np
from common import Results
from scipy.special import expit, logit

from clfew.finetuning.metrics import wilson_interval
from clfew.finetuning.random_sample import (
    Proportion,
    least_variance,
    proportion_interval,
    share_intervals,
)

RESULTS = Path(__file__).parent / "results"
SIZES, POOLS = (20, 50, 100, 200), (1000, 20_000)
SHARES, ACCURACIES = (0.02, 0.05, 0.1, 0.3, 0.5, 0.9), (0.5, 0.8, 0.95, 1.0)
GOOD, MIDDLING = 2.904, 1.19
"""The distance of two normal distributions of deviation 1 with an AUC of .98 and .80."""

CLASSIFIERS = {
    "good": "calibrated, AUC .98",
    "middling": "calibrated, AUC .80",
    "useless": "random probabilities",
    "overconfident": "middling, logits times 4",
    "good, overconfident": "good, logits times 4",
    "equal shares": "good, calibrated for a share of one half",
    "answers": "good, probabilities rounded to 0 and 1",
    "blind": "good, but a fifth of the class looks like the rest for certain",
    "rare mistakes": "knows all, but for 2 % of all images (at most half of the class), which it misses",
}
CONFIDENCES = ("calibrated", "overconfident", "constant")


def pool_of_class(random, kind, share, images):
    """Returns which images belong to the class, and the predicted probabilities."""
    labels = random.random(images) < share
    if kind == "useless":
        return labels.astype(float), random.random(images)
    if kind == "rare mistakes":
        missed = random.random(images) < min(0.02 / share, 0.5)
        return labels.astype(float), np.where(labels & ~missed, 0.998, 0.002)
    apart = MIDDLING if kind in ("middling", "overconfident") else GOOD
    evidence = apart * (random.normal(size=images) + np.where(labels, apart / 2, -apart / 2))
    logits = evidence + (0 if kind == "equal shares" else logit(share))
    if kind.endswith("overconfident"):
        logits *= 4
    if kind == "blind":
        logits[labels & (random.random(images) < 0.2)] = -6
    probabilities = expit(logits)
    return labels.astype(float), probabilities.round() if kind == "answers" else probabilities


def pool_of_answers(random, kind, accuracy, images):
    """Returns which images are predicted correctly, and the confidences. That of a calibrated classifier
    explains a quarter of the variance of being right, as that of the digits does."""
    if accuracy == 1:
        confidence = 1 - random.beta(0.5, 4, images) / 2
        correct = np.ones(images)
    else:
        confidence = random.beta(3 * accuracy, 3 * (1 - accuracy), images)
        correct = (random.random(images) < confidence).astype(float)
    if kind == "overconfident":
        confidence = expit(3 * logit(confidence.clip(1e-9, 1 - 1e-9)))
    return correct, confidence if kind != "constant" else np.full(images, 0.9)


def samples(random, pool, images, size, repeats):
    """Yields labels and predictions of `repeats` random samples, with the truth and the mean prediction
    in their pool. Each pool is divided into as many samples as it has room for."""
    found = 0
    while found < repeats:
        labels, predicted = pool(random, images)
        for start in range(0, images - size + 1, size):
            if found < repeats:
                found += 1
                rows = slice(start, start + size)
                yield labels[rows], predicted[rows], labels.mean(), predicted.mean()


def with_predictions(labels, predicted, mean, images):
    """Returns the interval as of one of two classes in `share_intervals`, without that of the other."""
    factor = least_variance(labels[:, None], predicted[:, None])
    adjusted = labels - factor * (predicted - mean)
    return proportion_interval(labels, adjusted, len(labels) / images)


def normal_interval(labels, predicted, mean):
    """Returns the interval of prediction-powered inference as it is published, with the best lambda."""
    variance = predicted.var(ddof=1)
    best = float(np.clip(np.cov(labels, predicted)[0, 1] / variance, 0, 1)) if variance else 0.0
    adjusted = labels - best * (predicted - mean)
    reach = 1.96 * adjusted.std(ddof=1) / len(labels) ** 0.5
    return Proportion(adjusted.mean(), adjusted.mean() - reach, adjusted.mean() + reach)


def summary(truths, intervals):
    """Returns how often each kind of interval covers, and how wide it is relative to the first."""
    values = {name: np.array(rows)[:, 1:] for name, rows in intervals.items()}
    widths = {name: float((rows[:, 1] - rows[:, 0]).mean()) for name, rows in values.items()}
    cover = {
        # The truth may be an end, of which a computed one is off by rounding.
        name: float(((rows[:, 0] - 1e-9 <= truths) & (truths <= rows[:, 1] + 1e-9)).mean())
        for name, rows in values.items()
    }
    first = widths["labels"]
    relative = {name: round(width / first, 3) for name, width in widths.items() if name != "labels"}
    return {"cover": {name: round(each, 4) for name, each in cover.items()}, "width": relative}


def simulate(pool, kind, values, repeats):
    """Returns a row for each setting of a classifier or of a kind of confidence."""
    rows = []
    for value in values:
        for size in SIZES:
            for images in POOLS:
                random = np.random.default_rng([int(1000 * value), size, images])
                truths, intervals = [], {"labels": [], "with predictions": [], "normal": []}
                drawn = samples(random, lambda r, n, v=value: pool(r, kind, v, n), images, size, repeats)
                for labels, predicted, truth, mean in drawn:
                    truths.append(truth)
                    intervals["labels"].append(proportion_interval(labels))
                    powered = with_predictions(labels, predicted, mean, images)
                    intervals["with predictions"].append(powered)
                    intervals["normal"].append(normal_interval(labels, predicted, mean))
                setting = {"true": value, "labels": size, "pool": images}
                rows.append(setting | summary(np.array(truths), intervals))
    return rows


def digits(per_class, repeats):
    """Returns rows for the shares of digits and for the accuracy, for each size of a sample."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    features, numbers = load_digits(return_X_y=True)
    random = np.random.default_rng(per_class)
    order = random.permutation(len(numbers))
    of_digit = [order[numbers[order] == digit] for digit in range(10)]
    learned = np.concatenate([each[:per_class] for each in of_digit])
    kept = np.linspace(15, 150, 10).astype(int)
    pool = np.concatenate([e[per_class:][:n] for e, n in zip(of_digit, kept, strict=True)])
    regression = LogisticRegression(max_iter=1000).fit(features[learned] / 16, numbers[learned])
    probabilities, labels = regression.predict_proba(features[pool] / 16), numbers[pool]
    correct, confidence = probabilities.argmax(1) == labels, probabilities.max(1)
    truth = np.bincount(labels) / len(pool)
    result = {
        "pool": len(pool),
        "accuracy": round(float(correct.mean()), 3),
        "variance of being right that confidence explains": round(
            float(np.corrcoef(correct, confidence)[0, 1] ** 2), 3
        ),
        "mean error of predicted shares": round(float(abs(probabilities.mean(0) - truth).mean()), 3),
    }
    for size in SIZES:
        shares = {"labels": [], "with predictions": [], "normal": []}
        accuracy, sums = {"labels": [], "with predictions": []}, []
        for _ in range(repeats):
            rows = random.choice(len(pool), size, replace=False)
            those, mean = probabilities[rows], probabilities.mean(0)
            powered = share_intervals(labels[rows], 10, those, mean, len(pool))
            shares["with predictions"] += powered
            shares["labels"] += share_intervals(labels[rows], 10)
            shares["normal"] += [
                normal_interval((labels[rows] == c).astype(float), those[:, c], mean[c])
                for c in range(10)
            ]
            sums.append(abs(sum(each.share for each in powered) - 1))
            count = int(correct[rows].sum())
            accuracy["labels"].append((count / size, *wilson_interval(count, size)))
            accuracy["with predictions"].append(
                with_predictions(correct[rows], confidence[rows], confidence.mean(), len(pool))
            )
        result[f"{size} labels"] = {
            "shares": summary(np.tile(truth, repeats), shares),
            "off from 1": round(float(np.mean(sums)), 4),
            "accuracy": summary(np.full(repeats, correct.mean()), accuracy),
        }
    return result


def table(title, cells):
    """Prints, for each classifier, the mean and the least coverage and the relative width."""
    print(f"\n{title}: coverage (least), mean over the settings; width relative to that of labels alone")
    kinds = ("labels", "with predictions", "normal")
    for name, rows in cells.items():
        cover = {kind: np.array([row["cover"][kind] for row in rows]) for kind in kinds}
        covered = "  ".join(f"{kind} {c.mean():.3f} ({c.min():.3f})" for kind, c in cover.items())
        widths = [
            np.mean([row["width"]["with predictions"] for row in rows if row["labels"] == size])
            for size in SIZES
        ]
        worse = sum((cover["labels"] >= 0.93) & (cover["with predictions"] < 0.92))
        print(f"{name:20} {covered}  width " + " ".join(f"{w:.2f}" for w in widths), f" worse: {worse}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000)
    repeats = parser.parse_args().repeats
    results = Results(RESULTS / "random_sample.json")
    simulations = {
        "shares": (pool_of_class, CLASSIFIERS, SHARES),
        "accuracy": (pool_of_answers, CONFIDENCES, ACCURACIES),
    }
    for title, (pool, names, values) in simulations.items():
        cells = {
            name: results.get(
                f"{title}, {name}", lambda n=name, p=pool, v=values: simulate(p, n, v, repeats)
            )
            for name in names
        }
        table(title, cells)
    for per_class in (3, 10):
        found = results.get(f"digits, {per_class} per class", lambda n=per_class: digits(n, repeats))
        print(f"\ndigits, {per_class} labels per class")
        for name, value in found.items():
            print(f"  {name}: {value}")


if __name__ == "__main__":
    main()
