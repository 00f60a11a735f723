"""Temperature scaling, so that a classifier's mean confidence matches its cross-validated accuracy.

Shape suffixes: N images, C classes.
"""

import numpy as np
from scipy.optimize import brentq
from scipy.special import softmax

COLDEST, HOTTEST = 0.02, 50.0


def mean_confidence(logits_NxC: np.ndarray, temperature: float) -> float:
    """Returns the mean over images of the largest probability of softmax(logits / temperature)."""
    return float(softmax(logits_NxC / temperature, axis=1).max(1).mean())


def fit_temperature(logits_NxC: np.ndarray, accuracy: float) -> float:
    """Returns the temperature (Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section
    4.2) at which the mean confidence equals `accuracy`. It is clipped to [0.02, 50].

    logits_NxC: logits of many images, whose labels need not be known. accuracy: the cross-validated
    accuracy.

    A few labelled images are enough to estimate the mean of the confidence, but not its distribution:
    the usual maximum-likelihood fit on ten images overfits single images.
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
    """Returns a smoothed accuracy, which is never quite 0 or 1 (Laplace's rule of succession)."""
    return (correct + 1) / (total + 2)
