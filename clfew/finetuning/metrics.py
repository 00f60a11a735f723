"""Metrics of a classifier: accuracy with its interval, figures per class, calibration.

Shape suffixes: N images, C classes.
"""

from typing import Any

import numpy as np

ECE_BINS = 15


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion (Wilson 1927), valid for few images and near 0 and 1."""
    from scipy.stats import binomtest

    if total == 0:
        return 0.0, 1.0
    interval = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: list[float]) -> tuple[float, float]:
    """Returns the 95 % t-interval of the mean of a few accuracies, clipped to [0, 1]."""
    from scipy import stats

    if len(values) < 2:
        return 0.0, 1.0
    reach = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    mean = float(np.mean(values))
    return max(0.0, mean - float(reach)), min(1.0, mean + float(reach))


def calibration_bins(
    confidence_N: np.ndarray, correct_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Groups images by confidence into 15 bins of equal width.

    Returns three arrays (15,): the number of images in each bin, their accuracy and their mean
    confidence. The last two are NaN where a bin is empty.
    """
    bin_N = np.minimum((confidence_N * ECE_BINS).astype(int), ECE_BINS - 1)
    count_B, correct_B, confidence_B = (
        np.bincount(bin_N, weights, ECE_BINS) for weights in (None, correct_N, confidence_N)
    )
    with np.errstate(invalid="ignore"):
        return count_B, correct_B / count_B, confidence_B / count_B


def expected_calibration_error(confidence_N: np.ndarray, correct_N: np.ndarray) -> float:
    """Returns the mean of |accuracy - confidence| over the bins, weighted by their number of images
    (Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3)."""
    count_B, accuracy_B, mean_confidence_B = calibration_bins(confidence_N, correct_N)
    return float(np.nansum(count_B * np.abs(accuracy_B - mean_confidence_B)) / len(confidence_N))


def classification_report(
    probabilities_NxC: np.ndarray, labels_N: np.ndarray, classes: list[str]
) -> dict[str, Any]:
    """Returns all metrics on the test images as one JSON-ready dict (see `clfew eval --format json`).

    Precision is None for a class that is never predicted, recall for one that has no test image.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    predicted, numbers = probabilities_NxC.argmax(1), range(len(classes))
    correct = predicted == labels_N
    confusion = confusion_matrix(labels_N, predicted, labels=numbers)
    precision_C, recall_C, _, images_C = precision_recall_fscore_support(
        labels_N, predicted, labels=numbers, zero_division=np.nan
    )
    per_class = [
        {
            "class": name,
            "precision": _or_none(precision_C[c]),
            "recall": _or_none(recall_C[c]),
            "n": int(images_C[c]),
        }
        for c, name in enumerate(classes)
    ]
    off = confusion - np.diag(confusion.diagonal())
    order = np.argsort(-off, axis=None, kind="stable")[:10]
    pairs = [divmod(int(i), len(classes)) for i in order if off.flat[i] > 0]
    return {
        "accuracy": float(correct.mean()),
        "ci95": list(wilson_interval(int(correct.sum()), len(labels_N))),
        "n": len(labels_N),
        "balanced_accuracy": float(np.nanmean(recall_C)),
        "ece": expected_calibration_error(probabilities_NxC.max(1), correct),
        "per_class": per_class,
        "most_confused": [
            {"true": classes[t], "predicted": classes[p], "count": int(off[t, p])} for t, p in pairs
        ],
        "confusion": confusion.tolist(),
        "classes": classes,
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
