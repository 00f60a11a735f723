"""Temperature scaling, so that a classifier's confidence is how often it is right.

Shape suffixes: L labelled images, C classes.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from torch import nn

from clfew.models.classifier import NeighbourHead

COLDEST, HOTTEST = 0.02, 50.0

PRIOR = {"linear": 0.8, "propagate": 1.3}
"""The temperature of modes where there are no labels to fit it to, 1 for the others. These two are
between the best ones at 2 and at 10 labels a class, on held-out parts of the training splits of hand
signs and Fashion-MNIST, with features of SimCLR and of ImageNet; that of the votes of few neighbours
(`prior_temperature`) was chosen on these and on aerial photographs. Those of the others were not
measured."""

DOUBT = 0.3
"""The standard deviation of the logarithm of the temperature around the prior."""


def prior_temperature(mode: str, head: nn.Module) -> float:
    """Returns the temperature of a classifier in this mode where there are no labels to fit it to. The
    fewer neighbours vote, the less their agreement says."""
    if isinstance(head, NeighbourHead):
        return min(5.0, 8 / head.k)
    return PRIOR.get(mode, 1.0)


def fit_temperature(logits_LxC: np.ndarray, labels_L: np.ndarray, prior: float) -> float:
    """Returns the temperature (Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section
    4.2) that is likeliest, given on which images the likeliest class is right, and a log-normal prior
    around `prior`: with few labels it stays near the prior instead of following chance. It is between
    0.02 and 50.

    logits_LxC: logits of labelled images, each of a classifier that was not fitted to it, because a
    classifier is surer of what it was fitted to than of other images. labels_L: their classes. Only the
    largest probability counts, which is what people read: the others are often 0 among a few neighbours,
    and the likelihood of the labels would then blur it.
    """
    right_L = logits_LxC.argmax(1) == labels_L

    def loss(log_temperature: float) -> float:
        confidence_L = softmax(logits_LxC / np.exp(log_temperature), axis=1).max(1).clip(1e-6, 1 - 1e-6)
        doubted = ((log_temperature - np.log(prior)) / DOUBT) ** 2 / 2
        return float(doubted - np.log(np.where(right_L, confidence_L, 1 - confidence_L)).sum())

    bounds = (float(np.log(COLDEST)), float(np.log(HOTTEST)))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
