"""Class shares from a random test sample: what is averaged, and that predictions are not taken at face
value."""

from types import SimpleNamespace

import numpy as np
import torch

from clfew.finetuning import class_shares as module
from clfew.finetuning.class_shares import class_shares
from clfew.finetuning.random_sample import Proportion


class Head:
    """A classifier whose features are its logits."""

    def from_features(self, features):
        return features


def made(groups=None, bias=0.0, seed=0):
    """2,000 images of which a fifth are of class b, and a random sample of 100 of them."""
    chance = np.random.default_rng(seed)
    labels = (np.arange(2000) % 5 == 0).astype(int)
    logits = np.zeros((2000, 2), np.float32)
    logits[:, 1] = 4 * labels - 2 + chance.normal(size=2000) + bias
    order = chance.permutation(2000)
    test, pool = np.sort(order[:100]), np.sort(order[100:])
    task = SimpleNamespace(pool=pool, features=logits[pool], groups=groups)
    source = SimpleNamespace(labels=labels, classes=["a", "b"])
    fitting = SimpleNamespace(source=source, test=test)
    decided = {"mode": "linear"}
    fitted = SimpleNamespace(task=task, classifier=Head(), decided=decided, test_logits=logits[test])
    return fitting, fitted, logits


def test_predictions_narrow_the_interval_and_their_bias_does_not_matter():
    inside, widths = 0, []
    for seed in range(40):
        fitting, fitted, logits = made(bias=2.0, seed=seed)
        a, b = class_shares(fitting, fitted)
        assert (a["class"], b["class"]) == ("a", "b") and abs(a["share"] + b["share"] - 1) < 0.02
        inside += b["low"] <= 0.2 <= b["high"]
        widths.append(b["high"] - b["low"])
        # At face value half of the images and more would be of class b.
        assert float(torch.softmax(torch.from_numpy(logits), 1)[:, 1].mean()) > 0.4
    assert inside >= 37 and np.mean(widths) < 0.145  # Wilson's is .156 wide.


def test_a_group_counts_once(monkeypatch):
    """A burst of most images of class b is one of the groups."""
    groups, seen = np.arange(2000), {}
    fitting, fitted, _ = made(groups)
    burst = np.setdiff1d(np.flatnonzero(fitting.source.labels == 1), fitting.test)
    groups[burst] = burst[0]

    def intervals(labels, classes, probabilities, pool_mean, images):
        seen.update(mean=pool_mean, images=images)
        return [Proportion(0.5, 0.0, 1.0)] * classes

    monkeypatch.setattr(module, "share_intervals", intervals)
    class_shares(fitting, fitted)
    assert seen["images"] == len(np.unique(groups)) < 1700
    assert seen["mean"][1] < 0.2  # With the burst it would be .27.
