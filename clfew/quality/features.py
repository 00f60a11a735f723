"""What is found in an encoder's features: outliers, images that are alike, labels that look wrong.

Shape suffixes: N images, L labelled images, D features, C classes.
"""

import numpy as np

from clfew.data.image_cache import ImageCache
from clfew.data.nearest import nearest
from clfew.data.source import Source
from clfew.finetuning.probes import class_probabilities, folds
from clfew.quality.finding import Finding, joined
from clfew.quality.listing import FEW
from clfew.quality.pixels import split_to_test_of

NEIGHBOURS = 10

FAR = 4.0
"""An outlier's mean distance to its neighbours is beyond the median, on a logarithmic scale, by so many
standard deviations, as estimated from the median deviation."""

ALIKE = 0.13
"""Images are alike in meaning if they are nearer to each other than this part of the median distance to
the nearest neighbour: the threshold of cleanlab's Datalab, version 2.7."""

FOLDS = 5

STRENGTH = 0.1
"""C, the inverse of the L2 penalty, of the logistic regression that judges labels, on features that are
standardised and of which there are not more than AXES."""

AXES = 128

STRATIFIED = 20_000
"""With more labels, folds are drawn by lot: classes are in each by chance as they are in all."""


def findings_in_features(
    source: Source,
    cache: ImageCache,
    features: np.ndarray,
    known_pairs: set[tuple[int, int]],
    groups: np.ndarray,
    seed: int,
) -> list[Finding]:
    """Returns outliers, images that are alike, and labels that look wrong.

    features: float32 (G, D), of the images `cache.good`. known_pairs: those that are copies, the lower
    index first. groups: int64 (N,), of each image. seed: of the folds.
    """
    unit = features - features.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True).clip(1e-12)
    reduced = _reduced(unit)
    apart, places = nearest(reduced, reduced, NEIGHBOURS, same=True)
    neighbours = cache.good[places]
    found = [
        *_suspicious(source, cache, features, groups, seed),
        *_alike(source, cache, apart, neighbours, known_pairs),
        *_outliers(cache, apart),
    ]
    return sorted(found, key=lambda each: not each.needs_person)


def _reduced(features_NxD: np.ndarray) -> np.ndarray:
    """Returns the principal coordinates of features, at most AXES of them."""
    if features_NxD.shape[1] <= AXES:
        return features_NxD
    centred = features_NxD - features_NxD.mean(0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return np.ascontiguousarray(centred @ vectors[:, -AXES:].astype(np.float32))


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


def _alike(
    source: Source,
    cache: ImageCache,
    apart: np.ndarray,
    neighbours: np.ndarray,
    known_pairs: set[tuple[int, int]],
) -> list[Finding]:
    """Returns images that are alike in meaning and no copies of each other."""
    if apart.shape[1] == 0:
        return []
    limit = ALIKE * float(np.median(apart[:, 0]))
    rows, columns = np.nonzero(apart <= limit)
    pairs = np.stack([cache.good[rows], neighbours[rows, columns]], 1)
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    new = [pair not in known_pairs for pair in map(tuple, pairs.tolist())]
    pairs = pairs[np.array(new, dtype=bool)] if len(pairs) else pairs
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
    source: Source, cache: ImageCache, features: np.ndarray, groups: np.ndarray, seed: int
) -> list[Finding]:
    """Returns the labels that look wrong, the most suspicious ones first."""
    rows = np.flatnonzero(source.labels[cache.good] >= 0)
    images = cache.good[rows]
    _, labels, counts = np.unique(source.labels[images], return_inverse=True, return_counts=True)
    enough = counts[labels] >= FEW
    rows, images, labels = rows[enough], images[enough], labels[enough]
    if len(np.unique(labels)) < 2:
        return []
    classes, labels = np.unique(source.labels[images], return_inverse=True)
    probabilities = out_of_fold(features[rows], labels, groups[images], seed)
    if probabilities is None:
        return []
    order, likelier = suspicious_labels(probabilities, labels)
    if not len(order):
        return []
    notes = [
        f"labelled {source.classes[classes[labels[i]]]}, "
        f"{100 * probabilities[i, labels[i]]:.0f} % likely; "
        f"looks like {source.classes[classes[k]]}, {100 * probabilities[i, k]:.0f} %"
        for i, k in zip(order.tolist(), likelier.tolist(), strict=True)
    ]
    says = (
        "A classifier that was fitted without them expects another label. Some are mistakes, others are "
        f"hard or rare: look at them. Classes of fewer than {FEW} labels are not judged."
    )
    sets = [[int(images[i])] for i in order]
    title = "labels that look suspicious"
    return [Finding("suspicious_labels", title, says, True, len(sets), sets, notes)]


def out_of_fold(
    features_LxD: np.ndarray, labels_L: np.ndarray, groups_L: np.ndarray, seed: int
) -> np.ndarray | None:
    """Returns for each image the probabilities of the classes, (L, C), by logistic regression that was
    fitted without it and without the images of its group; None where no class can be left a part.

    labels_L: from 0 to C - 1. Labels that look wrong are left out and the rest is fitted once more, so
    that they do not speak for themselves or for one another.
    """
    standardised = (features_LxD - features_LxD.mean(0)) / (features_LxD.std(0) + 1e-6)
    inputs = _reduced(standardised.astype(np.float32))
    pairs = _folds(labels_L, groups_L, seed)
    if not pairs:
        return None
    classes = int(labels_L.max()) + 1
    probabilities = np.full((len(labels_L), classes), 1 / classes)
    trusted = np.ones(len(labels_L), bool)
    for _ in range(2):
        for fitted, rest in pairs:
            kept = fitted[trusted[fitted]]
            if len(np.unique(labels_L[kept])) < classes:
                kept = fitted
            probabilities[rest] = class_probabilities(
                inputs[kept], labels_L[kept], inputs[rest], STRENGTH, classes
            )
        trusted[suspicious_labels(probabilities, labels_L)[0]] = False
    return probabilities


def _folds(labels_L: np.ndarray, groups_L: np.ndarray, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    if len(labels_L) <= STRATIFIED:
        return folds(labels_L, seed, FOLDS, groups_L)
    _, numbers = np.unique(groups_L, return_inverse=True)
    fold = np.random.default_rng(seed).integers(0, FOLDS, numbers.max() + 1)[numbers]
    rows = np.arange(len(labels_L))
    pairs = [(rows[fold != each], rows[fold == each]) for each in range(FOLDS)]
    classes = len(np.unique(labels_L))
    return pairs if all(len(np.unique(labels_L[fitted])) == classes for fitted, _ in pairs) else []


def suspicious_labels(
    probabilities_LxC: np.ndarray, labels_L: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images whose label looks wrong, the most suspicious first, and for each the class that
    it looks like.

    This is confident learning (Northcutt, Jiang and Chuang, 2021, section 3.1): another class is
    likelier, and as likely as it is on average for the images of that class.
    """
    rows, classes = np.arange(len(labels_L)), probabilities_LxC.shape[1]
    own_L = probabilities_LxC[rows, labels_L]
    sums = np.bincount(labels_L, own_L, classes)
    threshold_C = sums / np.bincount(labels_L, minlength=classes).clip(1)
    confident = np.where(probabilities_LxC >= threshold_C, probabilities_LxC, -1.0)
    confident[rows, labels_L] = -1.0
    other_L = confident.argmax(1)
    found = np.flatnonzero(confident[rows, other_L] > own_L)
    margin = own_L[found] - probabilities_LxC[found, other_L[found]]
    order = found[np.argsort(margin, kind="stable")]
    return order, other_L[order]
