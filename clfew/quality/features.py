"""What is found in an encoder's features: outliers, images that are alike, labels that look wrong.

Shape suffixes: N images, L labelled images, D features, A axes, C classes.
"""

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.sparse import coo_matrix
from scipy.special import log_softmax, softmax

from clfew.data.cache_folder import ImageCache
from clfew.data.joined import components
from clfew.data.nearest import nearest
from clfew.data.source import Source
from clfew.finetuning.probes import folds
from clfew.quality.finding import Finding, joined
from clfew.quality.listing import FEW
from clfew.quality.pixels import split_to_test_of

NEIGHBOURS = 10

FAR = 4.0
"""An outlier's mean distance to its neighbours is beyond the median, on a logarithmic scale, by so many
standard deviations, as estimated from the median deviation."""

ALIKE = 0.13
"""Images are alike in meaning if the cosine distance between them is less than this part of the median
distance to the nearest neighbour: the threshold of cleanlab's Datalab."""

FOLDS = 5

AXES = 256
"""The most axes of features that are looked at, those along which they vary most."""

SHRINKAGE = 0.05
"""How much the covariance of the discriminant analysis that judges labels is drawn towards a multiple of
the identity. Of 0.01, 0.05 and 0.3, the ranking of swapped labels was about the same for the first two
and worse for the third (training splits of Fashion-MNIST and hand signs)."""

SUSPICIOUS = 0.1
"""A label is suspicious if another one is likelier and it is itself less likely than this."""

STRATIFIED = 1000
"""With more labels, folds are drawn by lot, which is faster: each has about as many of a class as the
others."""


def findings_in_features(
    source: Source,
    cache: ImageCache,
    features: np.ndarray,
    copies: np.ndarray,
    groups: np.ndarray,
    seed: int,
) -> list[Finding]:
    """Returns outliers, images that are alike, and labels that look wrong.

    features: float32 (G, D), of the images `cache.good`. copies: int64 (P, 2), pairs that join
    what shows the same picture. groups: int64 (N,), of each image. seed: of the folds.
    """
    directions = reduced(features)
    apart, places = neighbours_of(directions)
    return [
        *_suspicious(source, cache, directions, groups, seed),
        *_alike(source, pairs_alike(cache.good, apart, places), copies),
        *_outliers(cache, apart),
    ]


def neighbours_of(reduced_NxA: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distances of each image to its nearest ones, (N, K), and the places of these, int64
    (N, K). reduced_NxA: see `reduced`."""
    return nearest(reduced_NxA, reduced_NxA, NEIGHBOURS, same=True)


def reduced(features_NxD: np.ndarray) -> np.ndarray:
    """Returns the directions of features from their mean, float32 (N, A), along at most AXES axes."""
    unit = features_NxD - features_NxD.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True).clip(1e-12)
    if unit.shape[1] <= AXES:
        return unit
    centred = torch.from_numpy(unit - unit.mean(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        _, _, axes_DxA = torch.svd_lowrank(centred, q=min(AXES, *centred.shape), niter=2)
    return (centred @ axes_DxA).numpy()


def pairs_alike(images: np.ndarray, apart: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Returns the pairs of images that are alike in meaning, int64 (P, 2), the lower index first.
    images: the index of each row of `neighbours_of`, whose result the others are."""
    if apart.shape[1] == 0:
        return np.empty((0, 2), np.int64)
    rows, columns = np.nonzero(apart**2 <= ALIKE * float(np.median(apart[:, 0] ** 2)))
    pairs = np.stack([images[rows], images[places[rows, columns]]], 1)
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _outliers(cache: ImageCache, apart: np.ndarray) -> list[Finding]:
    if apart.shape[1] == 0:
        return []
    mean = np.where(np.isfinite(apart), apart, np.nan)
    score = np.log(np.nanmean(mean, axis=1).clip(1e-6))
    middle = np.median(score)
    scale = 1.4826 * np.median(np.abs(score - middle))  # The standard deviation, if it is normal.
    far = np.flatnonzero(score > middle + FAR * max(scale, 1e-6))
    if not len(far):
        return []
    order = far[np.argsort(-score[far], kind="stable")]
    says = "Nothing else looks like them: they may be of no class, or the only ones of their kind."
    sets = [[int(i)] for i in cache.good[order]]
    return [Finding("outliers", "images unlike all others", says, False, len(sets), sets)]


def _alike(source: Source, pairs: np.ndarray, copies: np.ndarray) -> list[Finding]:
    """Returns images that are alike in meaning and no copies of each other. pairs: see `pairs_alike`."""
    picture = components(copies, len(source))
    pairs = pairs[picture[pairs[:, 0]] != picture[pairs[:, 1]]]
    test = split_to_test_of(source)
    is_across = (source.splits[pairs[:, 0]] == test) != (source.splits[pairs[:, 1]] == test)
    found = []
    for name, title, says, needs, some in (
        (
            "alike_across_splits",
            "images alike on both sides of the test split",
            "They may show one thing twice: look whether what was learned is tested on.",
            True,
            pairs[is_across],
        ),
        (
            "alike",
            "images that are alike in meaning",
            "To the encoder they are nearly the same; one label may do for all.",
            False,
            pairs[~is_across],
        ),
    ):
        sets = joined(some, len(source))
        if sets:
            found.append(Finding(name, title, says, needs, sum(map(len, sets)), sets))
    return found


def _suspicious(
    source: Source, cache: ImageCache, directions: np.ndarray, groups: np.ndarray, seed: int
) -> list[Finding]:
    """Returns the labels that look wrong, the most suspicious ones first, and the classes whose labels
    cannot be judged."""
    rows = np.flatnonzero(source.labels[cache.good] >= 0)
    images = cache.good[rows]
    reasons = _not_judged(source, source.labels[images], groups[images])
    judged = ~np.isin(source.labels[images], list(reasons))
    rows, images = rows[judged], images[judged]
    classes, labels = np.unique(source.labels[images], return_inverse=True)
    probabilities = None
    if len(classes) > 1:
        probabilities = out_of_fold(directions[rows], labels, groups[images], seed)
    if probabilities is None:
        reasons |= dict.fromkeys(classes.tolist(), "no other class is left to compare with")
    found = []
    if reasons:
        says = "The labels of these classes are not judged, for the reasons given."
        notes = [f"{source.classes[label]}: {reason}" for label, reason in sorted(reasons.items())]
        title = "classes whose labels are not judged"
        found.append(Finding("not_judged", title, says, False, len(notes), notes=notes))
    if probabilities is None:
        return found
    order, likelier = suspicious_labels(probabilities, labels)
    if not len(order):
        return found
    notes = [
        f"labelled {source.classes[classes[labels[i]]]}, "
        f"{100 * probabilities[i, labels[i]]:.0f} % likely; "
        f"looks like {source.classes[classes[k]]}, {100 * probabilities[i, k]:.0f} %"
        for i, k in zip(order.tolist(), likelier.tolist(), strict=True)
    ]
    says = (
        "A classifier fitted without them expects another label. Some are mistakes, others are "
        "hard or rare: look at them."
    )
    sets = [[int(images[i])] for i in order]
    title = "labels that look suspicious"
    return [Finding("suspicious_labels", title, says, True, len(sets), sets, notes), *found]


def _not_judged(source: Source, labels_L: np.ndarray, groups_L: np.ndarray) -> dict[int, str]:
    """Returns for each class whose labels cannot be judged why."""
    reasons = {}
    for label, count in zip(*np.unique(labels_L, return_counts=True), strict=True):
        if count < FEW:
            reasons[int(label)] = f"fewer than {FEW} labels"
        elif len(np.unique(groups_L[labels_L == label])) < 2:
            reasons[int(label)] = "all its images belong together"
    return reasons


def out_of_fold(
    inputs_LxA: np.ndarray, labels_L: np.ndarray, groups_L: np.ndarray, seed: int
) -> np.ndarray | None:
    """Returns for each image the probabilities of the classes, (L, C), by a linear discriminant analysis
    that was fitted without it and without the images of its group; None where no class can be left a
    part. labels_L: from 0 to C - 1.

    The probabilities are calibrated by a temperature, and so count in how often labels like these are
    right: where many are not, none is very unlikely.
    """
    pairs = _folds(labels_L, groups_L, seed)
    if not pairs:
        return None
    classes = int(labels_L.max()) + 1
    logits = np.zeros((len(labels_L), classes))
    for fitted, rest in pairs:
        weight_AxC, bias_C = _discriminant(inputs_LxA[fitted], labels_L[fitted], classes)
        logits[rest] = inputs_LxA[rest] @ weight_AxC + bias_C
    return _calibrated(logits, labels_L)


def _discriminant(
    inputs_LxA: np.ndarray, labels_L: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fits a linear discriminant analysis; returns its weights (A, C) and biases (C,). Scikit-learn's
    gives the same and took ten times as long on 5,000 images."""
    counts_C = np.bincount(labels_L, minlength=classes)
    ones = np.ones(len(labels_L), inputs_LxA.dtype)
    members_CxL = coo_matrix((ones, (labels_L, np.arange(len(labels_L)))), (classes, len(labels_L)))
    means_CxA = (members_CxL.tocsr() @ inputs_LxA) / counts_C[:, None]
    rest = inputs_LxA - means_CxA[labels_L].astype(inputs_LxA.dtype)
    covariance = (rest.T @ rest).astype(np.float64) / len(rest)
    variance = float(np.trace(covariance)) / len(covariance) + 1e-12
    covariance = (1 - SHRINKAGE) * covariance + SHRINKAGE * variance * np.eye(len(covariance))
    weight_AxC = np.linalg.solve(covariance, means_CxA.T)
    return weight_AxC, np.log(counts_C / len(labels_L)) - (means_CxA.T * weight_AxC).sum(0) / 2


def _calibrated(logits_LxC: np.ndarray, labels_L: np.ndarray) -> np.ndarray:
    """Returns probabilities: logits are divided by the temperature at which labels are likeliest."""
    rows = np.arange(len(labels_L))

    def loss(temperature: float) -> float:
        log_likely: np.ndarray = log_softmax(logits_LxC / temperature, axis=1)
        return -float(log_likely[rows, labels_L].mean())

    best = minimize_scalar(lambda log: loss(np.exp(log)), bounds=(-2, 5), method="bounded").x
    probabilities: np.ndarray = softmax(logits_LxC / np.exp(best), axis=1)
    return probabilities


def _folds(labels_L: np.ndarray, groups_L: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    _, numbers = np.unique(groups_L, return_inverse=True)
    fold = np.random.default_rng(seed).integers(0, FOLDS, numbers.max() + 1)[numbers]
    rows = np.arange(len(labels_L))
    pairs = [(rows[fold != each], rows[fold == each]) for each in range(FOLDS)]
    classes = len(np.unique(labels_L))
    is_whole = all(len(np.unique(labels_L[fitted])) == classes for fitted, _ in pairs)
    if is_whole and len(labels_L) > STRATIFIED:
        return pairs
    return folds(labels_L, seed, FOLDS, groups_L)


def suspicious_labels(
    probabilities_LxC: np.ndarray, labels_L: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images whose label looks wrong, the most suspicious first, and for each the class that
    it looks like (see SUSPICIOUS)."""
    rows = np.arange(len(labels_L))
    own_L = probabilities_LxC[rows, labels_L]
    others = probabilities_LxC.copy()
    others[rows, labels_L] = -1
    other_L = others.argmax(1)
    found = np.flatnonzero((others[rows, other_L] > own_L) & (own_L < SUSPICIOUS))
    margin = own_L[found] - others[found, other_L[found]]
    order = found[np.argsort(margin, kind="stable")]
    return order, other_L[order]
