"""Heads fitted on cached features: logistic regression, nearest neighbours, label propagation.

Each returns a torch head that takes the encoder's features as they come.

Shape suffixes: N images, L labelled images, D features, C classes.
"""

from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from torch import nn

from clfew.models.classifier import NeighbourHead, UnitHead

STRENGTHS = {
    "standardised": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    "unit": (1.0, 3.0, 10.0, 30.0, 100.0),
}
"""Candidates for C, the inverse of logistic regression's L2 penalty, by how features are scaled before:
each to a spread of 1 over all images, or all of an image's to a vector of length 1."""

_WORTH_THREADS = 5_000_000

FEW_LABELS = ("unit", 10.0)
"""Scaling and C where there are too few labels for cross-validation. At one label a class on frozen
ImageNet features of 96 to 128 pixels, unit vectors with any C of 1 to 100 were 4 to 6 points better than
standardised features with any C (held-out parts of three training splits)."""


def linear_head(
    features_NxD: np.ndarray, labelled_L: np.ndarray, labels_L: np.ndarray, classes: int, seed: int
) -> tuple[nn.Linear, dict[str, Any]]:
    """L2-regularised logistic regression on scaled features, and the scaling and the C that were chosen.

    All N images give the mean and the spread of each feature, the L labelled ones the classifier.
    Scaling and C are chosen by cross-validated log loss; FEW_LABELS with fewer than three labels in some
    class.
    """
    mean, std = features_NxD.mean(0), features_NxD.std(0) + 1e-6
    chosen = features_NxD[labelled_L]
    inputs = {"standardised": (chosen - mean) / std, "unit": _unit(chosen - mean)}
    scaling, strength = _choose_strength(inputs, labels_L, seed)
    used = {"scaling": scaling, "strength": strength}
    if scaling == "standardised":
        return standardised_logistic(inputs[scaling], labels_L, strength, classes, mean, std), used
    weight_CxD, bias_C = _logistic(inputs["unit"], labels_L, strength, classes)
    head = UnitHead(weight_CxD.shape[1], classes)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight_CxD))
        head.bias.copy_(torch.from_numpy(bias_C))
        head.centre.copy_(torch.from_numpy(mean))
    return head, used


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)


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


def few_label_correct(
    features_NxD: np.ndarray,
    labelled_L: np.ndarray,
    labels_L: np.ndarray,
    splits: list[tuple[np.ndarray, np.ndarray]],
) -> int:
    """How many labelled images a logistic regression gets right that was fitted without their fold, with
    the settings for few labels: quick, to tell features from features."""
    inputs = _unit(features_NxD[labelled_L] - features_NxD.mean(0))
    correct = 0
    for train, held_out in splits:
        weight, bias = _logistic(inputs[train], labels_L[train], FEW_LABELS[1], labels_L.max() + 1)
        correct += int(((inputs[held_out] @ weight.T + bias).argmax(1) == labels_L[held_out]).sum())
    return correct


def _choose_strength(
    inputs: dict[str, np.ndarray], labels_L: np.ndarray, seed: int
) -> tuple[str, float]:
    if np.unique(labels_L, return_counts=True)[1].min() < 3:
        return FEW_LABELS
    splits = folds(labels_L, seed)
    losses = {}
    for scaling, strengths in STRENGTHS.items():
        coordinates_LxR, _ = _span(inputs[scaling])  # Once for all the fits below.
        for strength in strengths:
            losses[scaling, strength] = sum(
                _log_loss(coordinates_LxR, labels_L, strength, train, held_out)
                for train, held_out in splits
            )
    return min(losses, key=lambda candidate: losses[candidate])


def _log_loss(
    inputs_LxD: np.ndarray,
    labels_L: np.ndarray,
    strength: float,
    train: np.ndarray,
    held_out: np.ndarray,
) -> float:
    weight, bias = _logistic(inputs_LxD[train], labels_L[train], strength, labels_L.max() + 1)
    logits = inputs_LxD[held_out] @ weight.T + bias
    shifted = logits - logits.max(1, keepdims=True)
    normaliser = np.log(np.exp(shifted).sum(1))
    return float((normaliser - shifted[np.arange(len(held_out)), labels_L[held_out]]).sum())


def _span(inputs_LxD: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Few vectors in coordinates of the space they span, (L, R), and its orthonormal basis, (D, R); as
    they are, and None, where they are about as many as their entries.

    Inner products stay what they were, and an L2 penalty keeps the weights of any linear model within
    that space (representer theorem): fitted in these coordinates it is the same model, at the cost of L
    features instead of D.
    """
    if 2 * len(inputs_LxD) >= inputs_LxD.shape[1]:
        return inputs_LxD, None
    basis_DxR, _ = np.linalg.qr(inputs_LxD.T)
    return inputs_LxD @ basis_DxR, basis_DxR


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
    coordinates_LxR, basis_DxR = _span(inputs_LxD)
    # A few labels make matrices so small that threads cost many times what they save.
    with threadpool_limits(1 if coordinates_LxR.size < _WORTH_THREADS else None), catch_warnings():
        # Few labels of many classes are no regression, which scikit-learn warns of.
        simplefilter("ignore", UserWarning)
        model.fit(coordinates_LxR, labels_L, sample_weight=weights_L)
    weight = np.zeros((classes, coordinates_LxR.shape[1]))
    bias = np.full(classes, -1e4)  # A class without a label is never predicted.
    if len(model.classes_) == 2:  # scikit-learn keeps one row for two classes.
        weight[model.classes_] = np.stack([-model.coef_[0], model.coef_[0]]) / 2
        bias[model.classes_] = np.stack([-model.intercept_[0], model.intercept_[0]]) / 2
    else:
        weight[model.classes_], bias[model.classes_] = model.coef_, model.intercept_
    return (weight if basis_DxR is None else weight @ basis_DxR.T), bias


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
