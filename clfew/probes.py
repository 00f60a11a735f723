"""Heads fitted on cached features: logistic regression, nearest neighbours, label propagation.

Each returns a torch head that takes the encoder's features as they come.

Shape suffixes: N images, L labelled images, D features, C classes.
"""

import numpy as np
import torch
from torch import nn

from clfew.classifier import NeighbourHead

STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Candidates for C, the inverse of logistic regression's L2 penalty, on standardised features."""

_WORTH_THREADS = 5_000_000

FEW_LABELS_STRENGTH = 0.1
"""Where there are too few labels for cross-validation."""


def linear_head(
    features_NxD: np.ndarray, labelled_L: np.ndarray, labels_L: np.ndarray, classes: int, seed: int
) -> tuple[nn.Linear, float]:
    """L2-regularised logistic regression on standardised features, and the strength chosen.

    All N images give the mean and the spread of each feature, the L labelled ones the classifier.
    C is chosen by cross-validated log loss, with a strong default for fewer than three labels in
    some class.
    """
    mean, std = features_NxD.mean(0), features_NxD.std(0) + 1e-6
    inputs = (features_NxD[labelled_L] - mean) / std
    strength = _choose_strength(inputs, labels_L, seed)
    return standardised_logistic(inputs, labels_L, strength, classes, mean, std), strength


def knn_head(
    features_NxD: np.ndarray, labelled_L: np.ndarray, labels_L: np.ndarray, classes: int
) -> NeighbourHead:
    """Nearest neighbours among the labelled images; as many vote as the smallest class has."""
    smallest = int(np.bincount(labels_L, minlength=classes)[np.unique(labels_L)].min())
    bank = torch.from_numpy(features_NxD[labelled_L]).float()
    return NeighbourHead(bank, torch.from_numpy(labels_L), classes, k=max(1, min(20, smallest)))


def folds(labels_L: np.ndarray, seed: int, most: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    """Stratified (train, validation) index pairs; none where some class has one label."""
    from sklearn.model_selection import StratifiedKFold

    smallest = int(np.unique(labels_L, return_counts=True)[1].min())
    if smallest < 2:
        return []
    splitter = StratifiedKFold(min(most, smallest), shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(labels_L)), labels_L))


def _choose_strength(inputs_LxD: np.ndarray, labels_L: np.ndarray, seed: int) -> float:
    if np.unique(labels_L, return_counts=True)[1].min() < 3:
        return FEW_LABELS_STRENGTH
    splits = folds(labels_L, seed)
    losses = []
    for strength in STRENGTHS:
        loss = 0.0
        for train, held_out in splits:
            weight, bias = _logistic(inputs_LxD[train], labels_L[train], strength, labels_L.max() + 1)
            logits = inputs_LxD[held_out] @ weight.T + bias
            shifted = logits - logits.max(1, keepdims=True)
            normaliser = np.log(np.exp(shifted).sum(1))
            loss += float((normaliser - shifted[np.arange(len(held_out)), labels_L[held_out]]).sum())
        losses.append(loss)
    return STRENGTHS[int(np.argmin(losses))]


def _logistic(
    inputs_LxD: np.ndarray,
    labels_L: np.ndarray,
    strength: float,
    classes: int,
    weights_L: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Weights (C, D) and biases (C,) of multinomial logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    model = LogisticRegression(C=strength, max_iter=1000)
    # A few labels make matrices so small that threads cost many times what they save.
    with threadpool_limits(1 if inputs_LxD.size < _WORTH_THREADS else None):
        model.fit(inputs_LxD, labels_L, sample_weight=weights_L)
    weight = np.zeros((classes, inputs_LxD.shape[1]))
    bias = np.full(classes, -1e4)  # A class without a label is never predicted.
    if len(model.classes_) == 2:  # scikit-learn keeps one row for two classes.
        weight[model.classes_] = np.stack([-model.coef_[0], model.coef_[0]]) / 2
        bias[model.classes_] = np.stack([-model.intercept_[0], model.intercept_[0]]) / 2
    else:
        weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
    return weight, bias


def standardised_logistic(
    inputs_NxD: np.ndarray,
    labels_N: np.ndarray,
    strength: float,
    classes: int,
    mean_D: np.ndarray,
    std_D: np.ndarray,
    weights_N: np.ndarray | None = None,
) -> nn.Linear:
    """Logistic regression on inputs standardised by `mean_D` and `std_D`, as a linear layer that
    takes features as they come."""
    weight_CxD, bias_C = _logistic(inputs_NxD, labels_N, strength, classes, weights_N)
    head = nn.Linear(weight_CxD.shape[1], len(bias_C))
    scaled = weight_CxD / std_D
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(scaled))
        head.bias.copy_(torch.from_numpy(bias_C - scaled @ mean_D))
    return head
