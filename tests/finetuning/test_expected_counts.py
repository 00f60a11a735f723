"""How many images each class has: whether the intervals cover, from whatever the labels tell."""

import numpy as np
import pytest
import torch

from clfew.finetuning.expected_counts import expected_counts
from clfew.finetuning.expected_shares import shares_of_each_class
from clfew.finetuning.fit import Task
from clfew.finetuning.random_sample import share_intervals

CLASSES = ["rest", "target"]
NO_TEST = np.zeros(0, np.int64)


def task_of(seed, sizes=(760, 40), shares=None, has_features=True):
    chance = np.random.default_rng(seed)
    labels = chance.permutation(np.repeat(np.arange(len(sizes)), sizes))
    features = chance.normal(size=(len(labels), 8)).astype(np.float32)
    features[:, 0] += 3.0 * labels
    none, cpu = np.zeros(0), torch.device("cpu")
    features = features if has_features else None
    pool = np.arange(len(labels))
    return Task(none, none, pool, labels, len(sizes), features, cpu, "fp32", shares=shares)


def per_class(labels, each):
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:each] for c in np.unique(labels)]))


@pytest.mark.parametrize(("how", "count"), [("random", 100), ("chosen (herding)", 30)])
def test_the_intervals_cover_and_are_narrower_than_those_of_labels_alone(how, count):
    covered, widths, alone = [], [], []
    for seed in range(40):
        task = task_of(seed)
        labelled = np.arange(count) if how == "random" else per_class(task.labels, count // 2)
        found = expected_counts(task, labelled, [how] * len(labelled), CLASSES, NO_TEST, None)
        if found is None:  # One label of the class, or none.
            continue
        rest, target = found["classes"]
        assert target["class"] == "target" and found["images"] == 800
        covered.append(target["low"] <= 40 <= target["high"])
        widths.append(target["high"] - target["low"])
        of_labels = share_intervals(task.labels[labelled], 2)[1]
        alone.append(800 * (of_labels.high - of_labels.low))
        assert target["low"] >= (task.labels[labelled] == 1).sum()
        assert abs(rest["count"] + target["count"] - 800) < 40
    assert len(covered) >= 35 and np.mean(covered) >= 0.9
    if how == "random":
        assert np.median(widths) < 0.95 * np.median(alone)


def test_what_is_known_comes_from_the_best_that_there_is():
    task, labelled = task_of(0), np.arange(60)
    rows = [
        {"class": "rest", "share": 0.95, "low": 0.9, "high": 0.98},
        {"class": "target", "share": 0.05, "low": 0.02, "high": 0.1},
    ]
    found = expected_counts(task, labelled, ["random"] * 60, CLASSES, np.arange(790, 850), rows)
    assert found is not None and found["images"] == 850
    assert "60 test images drawn at random" in found["origin"]
    assert found["classes"][1] == {"class": "target", "count": 42, "low": 17, "high": 85}
    found = expected_counts(task, labelled, ["random"] * 60, CLASSES, NO_TEST, None)
    assert found is not None and found["origin"] == "from 60 images labelled at random"
    shares = shares_of_each_class(np.array([38, 2]), "from 40 labels, a share of each class")
    each = expected_counts(
        task_of(0, shares=shares), np.arange(40), ["a share of each class"] * 40, CLASSES, NO_TEST, None
    )
    assert each is not None and "a share of each class" in each["origin"]
    assert each["classes"][1]["low"] <= 40 <= each["classes"][1]["high"]


def test_random_labels_tell_it_without_features():
    task = task_of(0, has_features=False)
    found = expected_counts(task, np.arange(100), ["random"] * 100, CLASSES, NO_TEST, None)
    assert found is not None
    assert found["classes"][1]["low"] <= 40 <= found["classes"][1]["high"]


def test_nothing_is_said_where_nothing_is_known():
    task = task_of(0, has_features=False)
    labelled = per_class(task.labels, 5)
    assert expected_counts(task, labelled, ["drawn per class"] * 10, CLASSES, NO_TEST, None) is None
    labelled = per_class(task_of(0).labels, 1)
    assert expected_counts(task_of(0), labelled, ["chosen"] * 2, CLASSES, NO_TEST, None) is None
