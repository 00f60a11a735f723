"""Temperature scaling, so that a classifier's confidence is how often it is right.

Shape suffixes: L labelled images, C classes.
"""

from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from clfew.finetuning.metrics import LEARNING_CURVE
from clfew.finetuning.probes import CHOSEN_FROM

COLDEST, HOTTEST = 0.02, 50.0


class Prior(NamedTuple):
    """What is known of a temperature without labels: it is log-normal around `temperature`, with `doubt`
    as the standard deviation of its logarithm."""

    temperature: float
    doubt: float


def prior_of(mode: str, fewest: int) -> Prior:
    """Returns the prior of a mode's temperature. fewest: the number of labels of the smallest class.

    They were chosen by the log loss on held-out parts of training splits: for 5 labels per class and
    more, of hand signs, aerial photographs and CIFAR-10; for 1 and 2, of Fashion-MNIST too. Those of
    mode "full" and of students were not measured. A regression whose penalty was chosen by its log loss
    is calibrated by that, and little is left to do.
    """
    if mode == "linear":
        return Prior(1.0, 0.05) if fewest >= CHOSEN_FROM else Prior(0.6, 0.3)
    return Prior({"propagate": 1.6, "knn": 0.8}.get(mode, 1.0), 0.5)


def fit_temperature(
    logits_LxC: np.ndarray,
    labels_L: np.ndarray,
    prior: Prior,
    fraction: float = 1.0,
    weights_L: np.ndarray | None = None,
) -> float:
    """Returns the temperature (Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section
    4.2) that is likeliest, given the labels and the prior: with few labels it stays near the prior
    instead of following chance. It is between 0.02 and 50.

    logits_LxC: logits of labelled images, each of a classifier that was not fitted to it, because a
    classifier is surer of what it was fitted to than of other images. labels_L: their classes. fraction:
    of the labels, to which each of these classifiers was fitted. One that is fitted to all of them errs
    less (see `expected_accuracy`), and errors count that much less. weights: how many images each label
    stands for, 1 on average; None for one each.
    """
    right_L = logits_LxC.argmax(1) == labels_L
    stands_for_L = np.ones(len(labels_L)) if weights_L is None else weights_L
    of_errors = fraction**LEARNING_CURVE
    rest = len(labels_L) - of_errors * stands_for_L[~right_L].sum()
    of_right = rest / max(1e-9, stands_for_L[right_L].sum())
    counted_L = np.where(right_L, of_right, of_errors) * stands_for_L
    rows_L = np.arange(len(labels_L))

    def loss(log_temperature: float) -> float:
        likelihoods_L = log_softmax(logits_LxC / np.exp(log_temperature), axis=1)[rows_L, labels_L]
        doubted = ((log_temperature - np.log(prior.temperature)) / prior.doubt) ** 2 / 2
        return float(doubted - (counted_L * likelihoods_L.clip(-30)).sum())

    bounds = (float(np.log(COLDEST)), float(np.log(HOTTEST)))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
