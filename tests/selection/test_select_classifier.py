"""The classifier of the labels so far, on codes."""

import numpy as np
import pytest

from clfew.selection.classifier import Known, fit_to_codes, uncertainty_of
from clfew.selection.codes import SCALE


class Nothing:
    """Stands for an image cache: its pixels are not looked at."""

    pixels = aspects = np.empty(0)


def made(sizes, between=0, dim=16, seed=0):
    """Codes of clusters, and some half-way between the first two."""
    chance = np.random.default_rng(seed)
    centres = chance.normal(size=(len(sizes), dim))
    parts = [c + 0.25 * chance.normal(size=(n, dim)) for c, n in zip(centres, sizes, strict=True)]
    parts.append((centres[0] + centres[1]) / 2 + 0.1 * chance.normal(size=(between, dim)))
    vectors = np.concatenate(parts)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.round(SCALE * vectors).astype(np.int16), np.repeat(np.arange(len(sizes)), sizes)


@pytest.mark.parametrize("each", [1, 3, 8])
def test_it_knows_clusters_and_doubts_what_lies_between(each):
    codes, truth = made([60, 60, 60], between=20)
    images = np.concatenate([60 * c + np.arange(each) for c in range(3)])
    known = Known(images, truth[images], ["a", "b", "c"], ["chosen"] * len(images))
    numbers = np.arange(len(codes))
    probabilities, words = fit_to_codes(None, Nothing(), known, numbers, codes, numbers, 0)
    found = probabilities(codes)
    assert words and found.shape == (200, 3)
    assert np.allclose(found.sum(1), 1)
    assert (found[:180].argmax(1) == truth).mean() > 0.98
    doubt = uncertainty_of(found)
    assert doubt.min() >= 0 and doubt.max() <= 1
    assert doubt[180:].mean() > 2 * doubt[:180].mean()


def test_the_sample_may_come_in_any_order():
    codes, truth = made([40, 40])
    images = np.array([3, 50, 7, 44])
    known, numbers = Known(images, truth[images], ["a", "b"], ["chosen"] * 4), np.arange(80)
    order = np.random.default_rng(0).permutation(80)
    one, _ = fit_to_codes(None, Nothing(), known, numbers, codes, numbers, 0)
    other, _ = fit_to_codes(None, Nothing(), known, order, codes[order], numbers, 0)
    assert np.allclose(one(codes), other(codes), atol=1e-3)


def test_uncertainty_is_one_minus_the_margin():
    given = np.array([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    assert np.allclose(uncertainty_of(given), [0.8, 0.0, 1.0])
