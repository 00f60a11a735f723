"""Fits heads on features: logistic regression and nearest neighbours.

Each function returns a torch head that takes the encoder's features unscaled.

Shape suffixes: N images, L labelled images, D features, C classes.
"""

from functools import cache
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
"""Candidates for C, the inverse of logistic regression's L2 penalty, for each scaling of the features:
"standardised" scales each feature to standard deviation 1 over all images, "unit" scales the feature
vector of each image to length 1."""

_WORTH_THREADS = 5_000_000
"""The number of entries of a matrix from which logistic regression runs on several threads."""

FEW_LABELS = ("unit", 10.0)
"""Scaling and C where there are too few labels for cross-validation. With one label per class on frozen
ImageNet features of images of 96 to 128 pixels, unit vectors with any C from 1 to 100 were 4 to 6 points
better than standardised features with any C (held-out parts of three training splits)."""


NEVER = -1e4
"""The bias of a class without a label, which is never predicted."""

CHOSEN_FROM = 4
"""Labels in every class from which scaling and C are chosen by cross-validation. With three, what was
chosen was no more accurate than FEW_LABELS on Fashion-MNIST's pixels, and less well calibrated."""


SMOOTHING = 0.2
"""What each class has beside the votes of the nearest neighbours, in votes: with nothing, each image of
another class than that of few neighbours that agree would be a great surprise. Of 0.1, 0.2 and 0.3, 0.2
was the smallest after which calibration never raised the log loss by more than 0.02 (held-out parts of
the training splits of hand signs, aerial photographs and CIFAR-10, 5 to 50 labels per class)."""


def mean_and_std(features_NxD: np.ndarray, is_scaled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the standard deviation of each feature, by which features are standardised.
    is_scaled: whether their scale means something (see `fit.Task`); then the standard deviation is one
    for all of them."""
    std_D = features_NxD.std(0)
    if is_scaled:
        std_D = np.full_like(std_D, np.sqrt((std_D**2).mean()))
    return features_NxD.mean(0), std_D + 1e-6


def linear_head(
    features_NxD: np.ndarray,
    labelled_L: np.ndarray,
    labels_L: np.ndarray,
    classes: int,
    seed: int,
    fewest: int | None = None,
    is_scaled: bool = False,
    groups_L: np.ndarray | None = None,
) -> tuple[nn.Linear, dict[str, Any]]:
    """Fits L2-regularised logistic regression to scaled features; returns the head and the scaling and
    the C that were chosen.

    The mean and the standard deviation of each feature are over all N images; the classifier is fitted
    to the L labelled ones. Scaling and C are chosen by cross-validated log loss; they are FEW_LABELS
    where some class has fewer than CHOSEN_FROM labels. fewest: the number of labels of the smallest
    class, if it is not that of these labels: where a classifier of more labels is judged by one of a
    part of them, both follow the same rule. is_scaled: see `mean_and_std`. groups_L: see `folds`.
    """
    splits = _splits_to_choose(labels_L, seed, fewest, groups_L)
    return _regression(features_NxD, labelled_L, labels_L, classes, is_scaled, splits)


def weighted_head(
    features_NxD: np.ndarray,
    labelled_L: np.ndarray,
    labels_L: np.ndarray,
    classes: int,
    seed: int,
    fewest: int | None = None,
    is_scaled: bool = False,
    groups_L: np.ndarray | None = None,
) -> tuple[nn.Linear, dict[str, Any]]:
    """Does what `linear_head` does, with classes that count equally, however many labels each has."""
    splits = _splits_to_choose(labels_L, seed, fewest, groups_L)
    weights_L = equal_weights(labels_L)
    return _regression(features_NxD, labelled_L, labels_L, classes, is_scaled, splits, weights_L)


def _splits_to_choose(
    labels_L: np.ndarray, seed: int, fewest: int | None, groups_L: np.ndarray | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the folds by which scaling and C are chosen, none where there are too few labels."""
    fewest = fewest or smallest_class(labels_L, groups_L)
    return folds(labels_L, seed, groups_L=groups_L) if fewest >= CHOSEN_FROM else []


def _regression(
    features_NxD: np.ndarray,
    labelled_L: np.ndarray,
    labels_L: np.ndarray,
    classes: int,
    is_scaled: bool,
    splits: list[tuple[np.ndarray, np.ndarray]],
    weights_L: np.ndarray | None = None,
) -> tuple[nn.Linear, dict[str, Any]]:
    mean, std = mean_and_std(features_NxD, is_scaled)
    labelled = features_NxD[labelled_L]
    inputs = {"standardised": (labelled - mean) / std, "unit": unit(labelled - mean)}
    scaling, strength = _choose_strength(inputs, labels_L, splits, weights_L)
    used = {"scaling": scaling, "strength": strength}
    if scaling == "standardised":
        fitted = (inputs[scaling], labels_L, strength, classes, mean, std, weights_L)
        return standardised_logistic(*fitted), used
    weight_CxD, bias_C = logistic(inputs["unit"], labels_L, strength, classes, weights_L)
    head = UnitHead(weight_CxD.shape[1], classes)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight_CxD))
        head.bias.copy_(torch.from_numpy(bias_C))
        head.centre.copy_(torch.from_numpy(mean))
    return head, used


def equal_weights(labels_L: np.ndarray) -> np.ndarray:
    """Returns the weight of each label with which all classes that have labels count equally, 1 on
    average."""
    counts = np.bincount(labels_L)
    weights: np.ndarray = len(labels_L) / ((counts > 0).sum() * counts[labels_L])
    return weights


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scales each row to length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-12)


def knn_head(
    features_NxD: np.ndarray,
    labelled_L: np.ndarray,
    labels_L: np.ndarray,
    classes: int,
    k: int | None = None,
) -> NeighbourHead:
    """Makes a nearest-neighbour head from the labelled images. k: the number of neighbours that vote; by
    default `voters`."""
    bank = torch.from_numpy(features_NxD[labelled_L]).float()
    k = k or voters(labels_L)
    return NeighbourHead(bank, torch.from_numpy(labels_L), classes, k, SMOOTHING / k)


def voters(labels_L: np.ndarray) -> int:
    """Returns how many neighbours vote: the number of labels of the smallest class, at most 20."""
    return min(20, smallest_class(labels_L))


def smallest_class(labels_L: np.ndarray, groups_L: np.ndarray | None = None) -> int:
    """Returns the number of labels of the class that has the fewest. groups_L: the group of each image;
    then it is the number of the class's groups."""
    if groups_L is not None:
        labels_L = np.unique(np.stack([labels_L, groups_L]), axis=1)[0]
    return int(np.unique(labels_L, return_counts=True)[1].min())


def folds(
    labels_L: np.ndarray, seed: int, most: int = 5, groups_L: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns stratified (train, validation) index pairs, at most `most` of them; none where some class
    has one label. groups_L: the group of each image, whose images are on one side of each pair; then
    there are none where some class has one group."""
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    count = min(most, smallest_class(labels_L, groups_L))
    rows = np.zeros(len(labels_L))
    if count < 2:
        return []
    if groups_L is None or len(np.unique(groups_L)) == len(groups_L):
        splitter = StratifiedKFold(count, shuffle=True, random_state=seed)
        return list(splitter.split(rows, labels_L))
    for parts in range(count, 1, -1):
        grouped = StratifiedGroupKFold(parts, shuffle=True, random_state=seed)
        pairs = list(grouped.split(rows, labels_L, groups_L))
        # Large groups can leave a side without some class.
        classes = len(np.unique(labels_L))
        if all(len(np.unique(labels_L[fitted])) == classes and len(rest) for fitted, rest in pairs):
            return pairs
    return []


def few_label_correct(
    features_NxD: np.ndarray,
    labelled_L: np.ndarray,
    labels_L: np.ndarray,
    splits: list[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Returns which labelled images a logistic regression predicts correctly that was fitted without
    their fold: bool, (L,).

    It uses the settings for few labels, which makes it a quick way to compare features.
    """
    inputs = unit(features_NxD[labelled_L] - features_NxD.mean(0))
    correct_L = np.zeros(len(labels_L), dtype=bool)
    for train, held_out in splits:
        weight, bias = logistic(inputs[train], labels_L[train], FEW_LABELS[1], labels_L.max() + 1)
        correct_L[held_out] = (inputs[held_out] @ weight.T + bias).argmax(1) == labels_L[held_out]
    return correct_L


def _choose_strength(
    inputs: dict[str, np.ndarray],
    labels_L: np.ndarray,
    splits: list[tuple[np.ndarray, np.ndarray]],
    weights_L: np.ndarray | None = None,
) -> tuple[str, float]:
    """Returns the scaling and the C with the smallest cross-validated log loss (see `linear_head`)."""
    if not splits:
        return FEW_LABELS
    losses = {}
    for scaling, strengths in STRENGTHS.items():
        coordinates_LxR, _ = _span(inputs[scaling])  # Once for all the fits below.
        for strength in strengths:
            losses[scaling, strength] = sum(
                _log_loss(coordinates_LxR, labels_L, strength, train, held_out, weights_L)
                for train, held_out in splits
            )
    return min(losses, key=lambda candidate: losses[candidate])


def _log_loss(
    inputs_LxD: np.ndarray,
    labels_L: np.ndarray,
    strength: float,
    train: np.ndarray,
    held_out: np.ndarray,
    weights_L: np.ndarray | None,
) -> float:
    """Returns the log loss, summed over the held-out images, of a regression fitted to the others."""
    weights = None if weights_L is None else weights_L[train]
    weight, bias = logistic(inputs_LxD[train], labels_L[train], strength, labels_L.max() + 1, weights)
    logits = inputs_LxD[held_out] @ weight.T + bias
    shifted = logits - logits.max(1, keepdims=True)
    normaliser = np.log(np.exp(shifted).sum(1))
    losses = normaliser - shifted[np.arange(len(held_out)), labels_L[held_out]]
    return float((losses if weights_L is None else losses * weights_L[held_out]).sum())


def _span(inputs_LxD: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Expresses L vectors in coordinates of the space that they span, where they are few.

    Returns the coordinates, (L, R), and the orthonormal basis of the space, (D, R). Where 2 L is at
    least D, it returns the vectors unchanged and None.

    The change of coordinates keeps inner products, and with an L2 penalty the weights of any linear
    model lie in that space (representer theorem). A model fitted in these coordinates is therefore the
    same model, at the cost of L features instead of D.
    """
    if 2 * len(inputs_LxD) >= inputs_LxD.shape[1]:
        return inputs_LxD, None
    basis_DxR, _ = np.linalg.qr(inputs_LxD.T)
    return inputs_LxD @ basis_DxR, basis_DxR


@cache
def _thread_pools() -> Any:
    """Returns what limits the threads of the libraries that are loaded: to look for them takes as long
    as a small regression."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def logistic(
    inputs_LxD: np.ndarray,
    labels_L: np.ndarray,
    strength: float,
    classes: int,
    weights_L: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Fits multinomial logistic regression; returns its weights (C, D) and biases (C,)."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=1000)
    coordinates_LxR, basis_DxR = _span(inputs_LxD)
    # With a few labels the matrices are so small that threads cost far more time than they save.
    threads = 1 if coordinates_LxR.size < _WORTH_THREADS else None
    with _thread_pools().limit(limits=threads), catch_warnings():
        # With few labels of many classes scikit-learn warns that this looks like a regression.
        simplefilter("ignore", UserWarning)
        model.fit(coordinates_LxR, labels_L, sample_weight=weights_L)
    weight = np.zeros((classes, coordinates_LxR.shape[1]))
    bias = np.full(classes, NEVER)
    if len(model.classes_) == 2:  # scikit-learn keeps one row of weights for two classes.
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
    """Fits logistic regression to inputs that were standardised by `mean_D` and `std_D`; returns it as a
    linear layer that takes features which are not standardised."""
    weight_CxD, bias_C = logistic(inputs_NxD, labels_N, strength, classes, weights_N)
    head = nn.Linear(weight_CxD.shape[1], len(bias_C))
    scaled = weight_CxD / std_D
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(scaled))
        head.bias.copy_(torch.from_numpy(bias_C - scaled @ mean_D))
    return head
