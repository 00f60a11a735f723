"""What a random sample of the unlabelled images, once labelled, tells of all of them: the share of each
class, with its 95 % interval.

The labels alone give Wilson intervals. Predictions on all images narrow them, whether or not they are
calibrated: as far as predictions y' of a class go with the labels y on the sample, the mean of y' over
all images tells what the sample has too much or too little of,

    share = mean_sample(y) + lambda (mean_pool(y') - mean_sample(y')).

This is the regression estimator of survey sampling (Cochran, Sampling Techniques, 1977, equation 7.1)
and the estimate of a mean by prediction-powered inference (Angelopoulos et al., Prediction-powered
inference, Science 2023) with the lambda of least variance (power tuning; Angelopoulos, Duchi and Zrnic,
PPI++: Efficient Prediction-Powered Inference, 2023). The normal interval of these papers covers as
rarely as 16 % where the sample has few images of a class, so this one is a Wilson interval (see
`proportion_interval`).

For the accuracy, y' would be the confidence of the classifier. Such an interval covers as well, but
confidence explains only a quarter of the variance of being right. Calibrated, it makes the interval 2 %
narrower with 20 labels, 5 % with 50, 7 % with 100 and 8 % with 200 on average over accuracies of .5 to 1
(12 % at most, 0 where all are right), and for digits 1, 6, 7 to 10 and 7 to 9 % (see
examples/benchmarks/random_sample.py). That is too little to be worth a second kind of interval: the
accuracy on a random sample has that of `metrics.accuracy_interval`.

Shape suffixes: S images of the sample, C classes.
"""

from typing import NamedTuple

import numpy as np

from clfew.finetuning.metrics import interval_of_mean, wilson_interval

FEWEST = 3
"""Predictions narrow an interval where the sample has at least this many images of the class, and of the
others: fewer do not show how good the predictions are."""


class Proportion(NamedTuple):
    """A share of images and its 95 % interval, all between 0 and 1: low <= share <= high."""

    share: float
    low: float
    high: float


def share_intervals(
    labels_S: np.ndarray,
    classes: int,
    probabilities_SxC: np.ndarray | None = None,
    pool_mean_C: np.ndarray | None = None,
    pool_images: int | None = None,
) -> list[Proportion]:
    """Returns the share of each class in the pool, of which a random sample is labelled.

    labels_S: the class numbers of the sample, drawn without replacement; of images in groups, one image
    per group, and shares are those among groups. probabilities_SxC: those of a classifier that was not
    fitted to these labels. pool_mean_C: the mean of its probabilities over `pool_images` images: the
    whole pool, with the sample, or a random part of it (with one image per group as well). They may be
    as wrong as they like. Without pool_images there are taken to be very many; without the other two,
    shares and intervals are those of the labels alone.

    Each interval is for its class alone. As all classes have one lambda, shares add up to 1, but for
    those that would not be in their interval and are moved to its end (.002 to .004 on average where ten
    classes were measured with 20 labels, less than .001 with 50). Without any label they are 1/2.
    """
    labels_SxC = (np.asarray(labels_S)[:, None] == np.arange(classes)).astype(float)
    if probabilities_SxC is None or pool_mean_C is None:
        return [proportion_interval(each_S) for each_S in labels_SxC.T]
    factor = least_variance(labels_SxC, probabilities_SxC)
    adjusted_SxC = labels_SxC - factor * (probabilities_SxC - pool_mean_C)
    known = min(1.0, len(labels_SxC) / pool_images) if pool_images else 0.0
    return [
        proportion_interval(each_S, adjusted_S, known)
        for each_S, adjusted_S in zip(labels_SxC.T, adjusted_SxC.T, strict=True)
    ]


def least_variance(labels_SxC: np.ndarray, predicted_SxC: np.ndarray) -> float:
    """Returns the lambda, between 0 and 1, with which labels (0 and 1) minus lambda times the predicted
    probabilities vary least: the covariance over the variance of the predictions, each summed over the
    classes. It holds for a pool that contains the sample, too, without the factor 1 + n/N of PPI++."""
    if len(predicted_SxC) == 0:
        return 0.0
    centred_SxC = predicted_SxC - predicted_SxC.mean(0)
    variance = float((centred_SxC**2).sum())
    return float(np.clip((centred_SxC * labels_SxC).sum() / variance, 0, 1)) if variance > 1e-12 else 0.0


def proportion_interval(
    labels_S: np.ndarray, adjusted_S: np.ndarray | None = None, known: float = 0.0
) -> Proportion:
    """Returns a share of images of the pool and its interval, from a random sample.

    labels_S: 0 and 1. adjusted_S: what each image says of the share, given predictions: its label minus
    lambda times the difference of its prediction from the mean in the pool. known: the fraction of the
    pool that the sample is.

    The interval is that of the labels alone (Wilson), unless the one with predictions is narrower and at
    least `FEWEST` labels are 1 and as many 0. To choose the narrower one costs little, as the one with
    predictions is wider than it need be: in none of 528 settings of the simulation did it cover less
    than 92 % where that of the labels alone covers 93 %.
    """
    images, count = len(labels_S), int(np.sum(labels_S))
    low, high = wilson_interval(count, images)
    if adjusted_S is None or images == 0:
        return Proportion(count / images if images else 0.5, low, high)
    share = float(np.clip(adjusted_S.mean(), 0, 1))
    if min(count, images - count) >= FEWEST:
        ends = _powered_interval(np.asarray(labels_S, float), adjusted_S, share, known)
        low, high = ends if ends[1] - ends[0] < high - low else (low, high)
    return Proportion(min(max(share, low), high), low, high)


def _powered_interval(
    labels_S: np.ndarray, adjusted_S: np.ndarray, share: float, known: float
) -> tuple[float, float]:
    """Returns the Wilson interval of as many images as would have the variance of the share, with the t
    quantile.

    Where the predictions are right on all of a small sample, its variance would be none, but mistakes
    that the sample does not show are likely. So it counts one more image that belongs and one that does
    not, of which predictions tell nothing (Agresti and Coull); and on either side the interval reaches
    as far as that of an event which did not happen once.
    """
    images = len(labels_S)
    more = share**2 + (1 - share) ** 2
    of_labels = float(((labels_S - share) ** 2).sum()) + more
    of_adjusted = float(((adjusted_S - adjusted_S.mean()) ** 2).sum()) + more
    # Of a sample within the pool, predictions reduce the variance of the rest alone. Were it all of the
    # pool, the share would be that of the labels.
    variance = (known * of_labels + (1 - known) * of_adjusted) / (images + 2)
    smoothed = (images * share + 1) / (images + 2)
    independent = images * smoothed * (1 - smoothed) / variance
    low, high = interval_of_mean(share, independent, images - 2)
    reach = wilson_interval(0, images)[1]
    return max(0.0, min(low, share - reach)), min(1.0, max(high, share + reach))
