import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from clfew.data.cache_folder import ImageCache
from clfew.data.source import Source
from clfew.quality import features as module
from clfew.quality.features import (
    SHRINKAGE,
    findings_in_features,
    neighbours_of,
    out_of_fold,
    pairs_alike,
    reduced,
    suspicious_labels,
)

CLASSES = 4


def clusters(count, dim=12, seed=0, apart=3.0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    centres = np.random.default_rng(99).normal(0, apart, (CLASSES, dim))
    return (centres[labels] + random.normal(size=(count, dim))).astype(np.float32), labels


def swapped(labels, fraction, seed=1):
    random = np.random.default_rng(seed)
    bad = random.random(len(labels)) < fraction
    return np.where(bad, (labels + random.integers(1, CLASSES, len(labels))) % CLASSES, labels), bad


@pytest.mark.parametrize("count", [400, 3000])
def test_swapped_labels_are_found_and_others_are_not(count):
    features, labels = clusters(count)
    given, bad = swapped(labels, 0.06)
    probabilities = out_of_fold(reduced(features), given, np.arange(count), 0)
    assert np.allclose(probabilities.sum(1), 1)
    order, likelier = suspicious_labels(probabilities, given)
    found = np.isin(np.arange(count), order)
    assert (found & bad).sum() > 0.95 * bad.sum() and (found & ~bad).sum() <= 0.05 * bad.sum()
    right = labels[order] != given[order]
    assert (likelier[right] == labels[order][right]).mean() > 0.98


def test_nothing_is_suspicious_where_labels_are_right_or_tell_nothing():
    features, labels = clusters(1500)
    assert len(suspicious_labels(out_of_fold(features, labels, np.arange(1500), 0), labels)[0]) <= 3
    by_lot = np.random.default_rng(3).integers(0, CLASSES, 1500)
    probabilities = out_of_fold(features, by_lot, np.arange(1500), 0)
    assert len(suspicious_labels(probabilities, by_lot)[0]) == 0
    # What is known of such labels is that each class is about as likely as any other.
    assert np.abs(probabilities - 0.25).max() < 0.15


def test_the_discriminant_is_that_of_scikit_learn():
    features, labels = clusters(300, apart=0.7)
    weight, bias = module._discriminant(features, labels, CLASSES)
    expected = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=SHRINKAGE).fit(features, labels)
    logits = features @ weight + bias
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    found = shifted / shifted.sum(1, keepdims=True)
    assert np.abs(found - expected.predict_proba(features)).max() < 0.01


def test_the_discriminant_is_bayes_rule_for_normal_classes():
    features, labels = clusters(60_000, dim=3, apart=0.8)
    means = np.random.default_rng(99).normal(0, 0.8, (CLASSES, 3))
    density = np.stack([multivariate_normal(mean, np.eye(3)).pdf(features) for mean in means], 1)
    weight, bias = module._discriminant(features, labels, CLASSES)
    found = module._calibrated(features @ weight + bias, labels)
    assert np.abs(found - density / density.sum(1, keepdims=True)).max() < 0.06


def test_copies_of_a_group_do_not_speak_for_one_another():
    """Fifty frames with one wrong label would be sure of it, if others of them were learned from."""
    features, labels = clusters(1200)
    given = labels.copy()
    frames = np.arange(50)
    features[frames] = features[0] + np.random.default_rng(0).normal(0, 0.01, (50, 12))
    given[frames] = (labels[0] + 1) % CLASSES
    groups = np.where(np.arange(1200) < 50, 0, np.arange(1200))
    order, _ = suspicious_labels(out_of_fold(features, given, groups, 0), given)
    assert np.isin(frames, order).all()


def test_folds_leave_every_class_something_to_learn_from():
    labels = np.array([0] * 1500 + [1] * 5)
    pairs = module._folds(labels, np.arange(1505), 0)
    assert len(pairs) >= 2 and all(set(labels[fitted]) == {0, 1} for fitted, _ in pairs)
    assert np.array_equal(np.sort(np.concatenate([rest for _, rest in pairs])), np.arange(1505))
    assert (
        out_of_fold(np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), 0)
        is None
    )


def test_many_axes_are_reduced_to_those_that_vary():
    random = np.random.default_rng(0)
    features = (random.normal(size=(500, 20)) @ random.normal(size=(20, 600))).astype(np.float32)
    small = reduced(features)
    assert small.shape == (500, module.AXES)
    unit = features - features.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    unit -= unit.mean(0)
    assert np.allclose(small @ small.T, unit @ unit.T, atol=1e-3)
    assert np.array_equal(small, reduced(features))
    assert reduced(features[:40]).shape == (40, 40)
    assert reduced(features[:, :30]).shape == (500, 30)


def source_of(labels, splits=None):
    count = len(labels)
    splits = np.full(count, "train") if splits is None else splits
    names = [f"{i}.png" for i in range(count)]
    classes = [f"class {i}" for i in range(CLASSES)]
    source = Source("/photos", names, labels, classes, splits, lambda i: b"", "")
    empty = np.zeros((count, 1, 1, 3), np.uint8)
    return source, ImageCache(np.arange(count), empty, np.ones(count), np.arange(count), [])


NO_COPIES = np.empty((0, 2), np.int64)


def found_in(features, labels, splits=None, copies=NO_COPIES, groups=None):
    source, cache = source_of(labels, splits)
    groups = np.arange(len(labels)) if groups is None else groups
    found = findings_in_features(source, cache, features, copies, groups, 0)
    return {each.name: each for each in found}


def test_what_is_alike_is_found_and_copies_are_left_to_the_pixels():
    features, labels = clusters(400)
    features[7] = features[3] + 1e-3
    features[9] = features[5] + 1e-3
    splits = np.where(np.arange(400) == 9, "test", "train")
    found = found_in(features, labels, splits)
    assert found["alike"].sets == [[3, 7]] and found["alike_across_splits"].sets == [[5, 9]]
    assert found["alike_across_splits"].needs_person
    assert "alike" not in found_in(features, labels, splits, np.array([[3, 7]]))
    # Of three copies, two pairs are given and three are alike.
    features[8] = features[3]
    assert "alike" not in found_in(features, labels, splits, np.array([[3, 7], [7, 8]]))
    apart, places = neighbours_of(reduced(features[:1]))
    assert pairs_alike(np.arange(1), apart, places).shape == (0, 2)


def test_what_is_unlike_everything_is_an_outlier():
    features, labels = clusters(400)
    # Of directions, not of lengths.
    features[11] = -6 * features[labels == 0].mean(0) + np.random.default_rng(5).normal(0, 4, 12)
    found = found_in(features, labels)
    assert found["outliers"].sets[0] == [11] and len(found["outliers"].sets) < 8
    assert not found["outliers"].needs_person


def test_rare_classes_are_not_judged():
    features, labels = clusters(400)
    given, _ = swapped(labels, 0.05)
    rare = np.flatnonzero(given == 3)[4:]
    given[rare] = -1
    found = found_in(features, given)
    assert found["suspicious_labels"].needs_person
    judged = [given[image] for (image,) in found["suspicious_labels"].sets]
    assert judged and 3 not in judged and -1 not in judged
    assert "labelled class" in found["suspicious_labels"].notes[0]
    assert found["not_judged"].notes == ["class 3: fewer than 5 labels"]
    assert "suspicious_labels" not in found_in(features, np.where(given == 0, 0, -1))
    assert "suspicious_labels" not in found_in(features, np.full(400, -1))


def test_a_class_of_one_group_is_not_judged_and_the_others_are():
    features, labels = clusters(400)
    given, bad = swapped(labels, 0.03)
    groups = np.where(given == 2, 1000, np.arange(400))
    found = found_in(features, given, groups=groups)
    assert found["not_judged"].notes == ["class 2: all its images belong together"]
    judged = [image for (image,) in found["suspicious_labels"].sets]
    assert np.isin(np.flatnonzero(bad & (given != 2)), judged).mean() > 0.7
    assert not (given[judged] == 2).any()
