"""Confidence that can be believed: one temperature, from cross-validated accuracy.

Shape suffixes: N images, C classes.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax

COLDEST, HOTTEST = 0.02, 50.0


def mean_confidence(logits_NxC: np.ndarray, temperature: float) -> float:
    """The mean of the largest probability, softmax(logits / temperature)."""
    return float(softmax(logits_NxC / temperature, axis=1).max(1).mean())


def fit_temperature(logits_NxC: np.ndarray, accuracy: float) -> float:
    """The temperature (Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2) at
    which the mean confidence on many images, none of whose labels is known, is `accuracy`, the
    cross-validated share of hits.

    A handful of labelled images says little about the shape of the confidence and enough about its mean:
    the usual fit by likelihood on ten images follows single ones. Clipped to [0.02, 50].
    """

    def excess(log_temperature: float) -> float:
        return mean_confidence(logits_NxC, float(np.exp(log_temperature))) - accuracy

    low, high = float(np.log(COLDEST)), float(np.log(HOTTEST))
    # Confidence falls as temperature rises.
    if excess(low) <= 0:
        return COLDEST
    if excess(high) >= 0:
        return HOTTEST
    return float(np.exp(brentq(excess, low, high, xtol=1e-4)))


def believable(correct: float, total: int) -> float:
    """A share of hits that is never quite 0 or 1 (Laplace's rule of succession)."""
    return (correct + 1) / (total + 2)
