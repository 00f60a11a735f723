"""What is said of a classifier: accuracy with its interval, per class, calibration.

Shape suffixes: N images, C classes.
"""

import math
from typing import Any

import numpy as np

ECE_BINS = 15


def wilson_interval(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927): sound for few images and near 0 and 1."""
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    centre = share + z * z / (2 * total)
    reach = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # Rounding must not put the share itself outside its interval.
    low, high = (centre - reach) / scale, (centre + reach) / scale
    return max(0.0, min(low, share)), min(1.0, max(high, share))


def mean_interval(values: list[float]) -> tuple[float, float]:
    """95 % t-interval of the mean of a few repetitions (of accuracies: clipped to [0, 1])."""
    from scipy import stats

    if len(values) < 2:
        return 0.0, 1.0
    reach = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    mean = float(np.mean(values))
    return max(0.0, mean - float(reach)), min(1.0, mean + float(reach))


def expected_calibration_error(confidence_N: np.ndarray, correct_N: np.ndarray) -> float:
    """Mean |accuracy - confidence| over 15 equal-width bins, weighted by their images
    (Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3)."""
    bins = np.minimum((confidence_N * ECE_BINS).astype(int), ECE_BINS - 1)
    gap = 0.0
    for b in np.unique(bins):
        inside = bins == b
        gap += inside.mean() * abs(correct_N[inside].mean() - confidence_N[inside].mean())
    return float(gap)


def confusion_matrix(labels_N: np.ndarray, predicted_N: np.ndarray, classes: int) -> np.ndarray:
    """Counts, int64 (C, C): rows are the true classes, columns the predicted."""
    counts = np.bincount(labels_N * classes + predicted_N, minlength=classes * classes)
    return counts.reshape(classes, classes)


def classification_report(
    probabilities_NxC: np.ndarray, labels_N: np.ndarray, classes: list[str]
) -> dict[str, Any]:
    """All figures of a test as one JSON-ready dict (see `clfew eval --format json`).

    Precision is None for a class that is never predicted, recall for one that is not in the test.
    """
    predicted = probabilities_NxC.argmax(1)
    correct = predicted == labels_N
    confusion = confusion_matrix(labels_N, predicted, len(classes))
    hits, truth, guesses = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    per_class = [
        {
            "class": name,
            "precision": float(hits[c] / guesses[c]) if guesses[c] else None,
            "recall": float(hits[c] / truth[c]) if truth[c] else None,
            "n": int(truth[c]),
        }
        for c, name in enumerate(classes)
    ]
    off = confusion - np.diag(hits)
    order = np.argsort(-off, axis=None, kind="stable")[:10]
    pairs = [divmod(int(i), len(classes)) for i in order if off.flat[i] > 0]
    return {
        "accuracy": float(correct.mean()),
        "ci95": list(wilson_interval(int(correct.sum()), len(labels_N))),
        "n": len(labels_N),
        "balanced_accuracy": float((hits[truth > 0] / truth[truth > 0]).mean()),
        "ece": expected_calibration_error(probabilities_NxC.max(1), correct),
        "per_class": per_class,
        "most_confused": [
            {"true": classes[t], "predicted": classes[p], "count": int(off[t, p])} for t, p in pairs
        ],
        "confusion": confusion.tolist(),
        "classes": classes,
    }
