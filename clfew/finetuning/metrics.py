"""Metrics of a classifier: accuracy with its interval, figures per class, calibration.

Shape suffixes: N images, C classes.
"""

from functools import lru_cache
from typing import Any

import numpy as np

ECE_BINS = 15

LEARNING_CURVE = 0.3
"""The error of a classifier falls as the number of labels to the power of minus this. On held-out parts
of four training splits, with 2 to 50 labels per class in three modes, cross-validation estimated the
accuracy 1 point too low to 1 point too high with it, and 3 to 5 points too low without."""


def expected_accuracy(accuracy: float, fraction: float) -> float:
    """Returns the accuracy to expect of a classifier that is fitted to all labels, from that of
    classifiers that were fitted to a fraction of them: cross-validation alone is too pessimistic."""
    return 1 - (1 - accuracy) * fraction**LEARNING_CURVE


@lru_cache(10_000)  # Simulations ask for the same few counts, and binomtest takes milliseconds.
def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Returns the 95 % interval of a proportion (Wilson 1927), valid for few images and near 0 and 1."""
    from scipy.stats import binomtest

    if total == 0:
        return 0.0, 1.0
    interval = binomtest(correct, total).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def deviation(accuracies: np.ndarray) -> float | None:
    """Returns the standard deviation of accuracies between label samples, or of (seeds, label samples)
    between all of these: the root of the sum of the variances that seeds, label samples and the rest
    cause. None if there is one accuracy only."""
    values = np.atleast_2d(np.asarray(accuracies, dtype=float))
    seeds, samples = values.shape
    if values.size == 1:
        return None
    if 1 in values.shape:
        return float(values.std(ddof=1))
    by_seed, by_sample = values.mean(1), values.mean(0)
    rest = values - by_seed[:, None] - by_sample + values.mean()
    residual = (rest**2).sum() / ((seeds - 1) * (samples - 1))
    of_seeds = max(0.0, by_seed.var(ddof=1) - residual / samples)
    of_samples = max(0.0, by_sample.var(ddof=1) - residual / seeds)
    return float(np.sqrt(of_seeds + of_samples + residual))


def independent_images(correct_N: np.ndarray, groups_N: np.ndarray) -> float:
    """Returns how many independent images have the variance that the accuracy on N images in groups has.

    Images of a group are right or wrong together, more or less (Kish's design effect, by the variance
    between groups of a ratio estimate; Cochran, Sampling Techniques, 1977, section 9A.2). Few groups
    show it badly: it is at least the number that there would be if a group were all right or all wrong,
    and that is taken where all images are right, or all wrong.
    """
    total = len(correct_N)
    _, places, sizes = np.unique(groups_N, return_inverse=True, return_counts=True)
    if len(sizes) == total:
        return float(total)
    fewest = total**2 / float((sizes.astype(float) ** 2).sum())
    share = float(np.mean(correct_N))
    if share in (0.0, 1.0) or len(sizes) < 2:
        return fewest
    totals = np.bincount(places, weights=correct_N - share)
    variance = float((totals**2).sum()) * len(sizes) / (len(sizes) - 1) / total**2
    return float(np.clip(share * (1 - share) / max(variance, 1e-12), fewest, total))


def accuracy_interval(
    correct: np.ndarray, drawn: float = 0.0, groups_N: np.ndarray | None = None
) -> tuple[float, float]:
    """Returns the 95 % interval of the mean accuracy of several classifiers tested on the same images.

    correct: (…, N) of 0 and 1. The axes before the images are what the classifiers differ in: label
    samples, or pretraining seeds and label samples. drawn: the fraction f of the labelled images that
    each label sample holds. R samples of the same images overlap, so that what they differ in is only a
    part, 1 - f, of the variance between samples of other images, and their mean has 1 + R f / (1 - f)
    times the variance that they show. If they hold all images, they show none, and none is counted.

    The interval is for other images, other label samples and other seeds at once: the variance of the
    mean is the sum over the axes of the variance that each axis causes, without what is counted more
    than once (crossed random effects; Owen, The Pigeonhole Bootstrap, 2007). It is the Wilson interval
    of as many independent images as have this variance, with the t quantile of Satterthwaite's degrees
    of freedom. An axis of length 1 shows no variance, and none is counted for it.

    groups_N: the group of each image, whose images are no independent ones; None where all are.
    """
    mean, several = float(np.mean(correct)), [n for n in correct.shape[:-1] if n > 1]
    if groups_N is not None and len(numbers := np.unique(groups_N)) < correct.shape[-1]:
        if not several or len(numbers) < 2:
            flat = correct.reshape(-1, correct.shape[-1]).mean(0)
            return interval_of_mean(mean, independent_images(flat, groups_N), len(numbers) - 1)
        # Each group is one image then, which counts as much as it has images.
        places, scale = np.searchsorted(numbers, groups_N), len(numbers) / correct.shape[-1]
        rows = [scale * np.bincount(places, row) for row in correct.reshape(-1, correct.shape[-1])]
        correct = np.reshape(rows, (*correct.shape[:-1], len(numbers)))
    if not several:
        return wilson_interval(int(np.sum(correct)), correct.shape[-1])
    # One more image that all get right and one that all get wrong, as in Agresti and Coull's interval:
    # without an error there would be no variance.
    ends = np.broadcast_to([1.0, 0.0], (*correct.shape[:-1], 2))
    smoothed = np.concatenate([correct, ends], axis=-1)
    axes = [axis for axis, length in enumerate(smoothed.shape) if length > 1]
    variances, freedoms, residual = [], [], smoothed
    for axis in axes:
        others = tuple(other for other in range(smoothed.ndim) if other != axis)
        length = smoothed.shape[axis]
        shown = float(smoothed.mean(others).var(ddof=1)) / length
        overlap = min(drawn, _MOST_DRAWN) if axis == smoothed.ndim - 2 else 0.0
        variances.append(shown * (1 + length * overlap / (1 - overlap)))
        freedoms.append(length - 1)
        residual = residual - residual.mean(axis, keepdims=True)
    counted_again = (len(axes) - 1) * (residual**2).sum() / np.prod(freedoms) / smoothed.size
    variance = max(sum(variances) - counted_again, *variances)
    share = float(smoothed.mean())
    images = min(share * (1 - share) / variance, smoothed.size)
    freedom = sum(variances) ** 2 / sum(v**2 / f for v, f in zip(variances, freedoms, strict=True))
    return interval_of_mean(mean, images, freedom)


def interval_of_mean(mean: float, images: float, freedom: float) -> tuple[float, float]:
    """Returns the Wilson interval of a proportion among so many independent images, with the t quantile
    of so many degrees of freedom; everything where there are none."""
    from scipy.special import stdtrit

    if freedom < 1:
        return 0.0, 1.0
    z = float(stdtrit(freedom, 0.975))
    centre = (mean + z**2 / (2 * images)) / (1 + z**2 / images)
    reach = z * (mean * (1 - mean) / images + z**2 / (4 * images**2)) ** 0.5 / (1 + z**2 / images)
    return max(0.0, centre - reach), min(1.0, centre + reach)


_MOST_DRAWN = 0.95
"""Where samples overlap more, what they differ in is too little to estimate a variance from."""


def packed(correct_N: np.ndarray) -> str:
    """Returns which images were predicted correctly as text for JSON (see `unpacked`)."""
    return np.packbits(correct_N.astype(bool)).tobytes().hex()


def unpacked(text: str | None, accuracy: float, total: int) -> np.ndarray:
    """Returns what `packed` was given. Without it (rows of version 0.1.0), classifiers are taken to be
    wrong on the same images, which gives the widest interval."""
    if text is None:
        return np.arange(total) < round(accuracy * total)
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:total].astype(bool)


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
    probabilities_NxC: np.ndarray,
    labels_N: np.ndarray,
    classes: list[str],
    groups_N: np.ndarray | None = None,
) -> dict[str, Any]:
    """Returns all metrics on the test images as one JSON-ready dict (see `clfew eval --format json`).
    groups_N: see `accuracy_interval`.

    Precision is None for a class that is never predicted, recall and average precision for one that has
    no test image. Average precision is the mean of the precision over the recall that is reached with
    images in the order of their probability of the class: the fraction of images of the class, if that
    order is random.
    """
    from sklearn.metrics import (
        average_precision_score,
        confusion_matrix,
        precision_recall_fscore_support,
    )

    predicted, numbers = probabilities_NxC.argmax(1), range(len(classes))
    correct = predicted == labels_N
    confusion = confusion_matrix(labels_N, predicted, labels=numbers)
    precision_C, recall_C, f1_C, images_C = precision_recall_fscore_support(
        labels_N, predicted, labels=numbers, zero_division=np.nan
    )
    per_class = [
        {
            "class": name,
            "precision": _or_none(precision_C[c]),
            "recall": _or_none(recall_C[c]),
            "average_precision": float(average_precision_score(labels_N == c, probabilities_NxC[:, c]))
            if images_C[c]
            else None,
            "n": int(images_C[c]),
        }
        for c, name in enumerate(classes)
    ]
    largest = int(images_C.argmax())
    off = confusion - np.diag(confusion.diagonal())
    order = np.argsort(-off, axis=None, kind="stable")[:10]
    pairs = [divmod(int(i), len(classes)) for i in order if off.flat[i] > 0]
    return {
        "accuracy": float(correct.mean()),
        "ci95": list(accuracy_interval(correct, 0.0, groups_N)),
        "n": len(labels_N),
        "balanced_accuracy": float(np.nanmean(recall_C)),
        "macro_f1": float(np.nan_to_num(f1_C)[images_C > 0].mean()),
        "largest_class": {
            "class": classes[largest],
            "fraction": float(images_C[largest] / len(labels_N)),
        },
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
