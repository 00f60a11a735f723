"""Temperature scaling, so that a classifier's probabilities mean what they say.

Shape suffixes: L labelled images, C classes.
"""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

COLDEST, HOTTEST = 0.02, 50.0

PRIOR = {"linear": 1.0, "knn": 1.0, "propagate": 1.0, "full": 1.0, "distilled": 1.0}
"""The temperature of each mode where there are no labels to fit it to."""

DOUBT = 0.5
"""The standard deviation of the logarithm of the temperature around PRIOR."""


def fit_temperature(logits_LxC: np.ndarray, labels_L: np.ndarray, mode: str) -> float:
    """Returns the temperature (Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section
    4.2) that is likeliest, given the labels and a log-normal prior around that of the mode: with few
    labels it stays near the prior instead of following chance. It is between 0.02 and 50.

    logits_LxC: logits of labelled images, each of a classifier that was not fitted to it, because a
    classifier is surer of what it was fitted to than of other images. labels_L: their classes.
    """
    rows = np.arange(len(labels_L))

    def loss(log_temperature: float) -> float:
        scores = logits_LxC / np.exp(log_temperature)
        prior = ((log_temperature - np.log(PRIOR[mode])) / DOUBT) ** 2 / 2
        return float((logsumexp(scores, axis=1) - scores[rows, labels_L]).sum() + prior)

    bounds = (float(np.log(COLDEST)), float(np.log(HOTTEST)))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
