"""What may be accepted unseen: the promise holds as often as is said."""

import numpy as np
import pytest

from clfew.finetuning.acceptance import accepted, fewest_images


def test_below_59_images_nothing_is_promised_at_95_per_cent():
    assert [fewest_images(level) for level in (0.5, 0.8, 0.9, 0.95, 0.99)] == [5, 14, 29, 59, 299]
    for images in (0, 1, 58):
        assert accepted(np.linspace(1, 0.1, images), np.ones(images), 0.95) is None
    found = accepted(np.linspace(1, 0.1, 59), np.ones(59), 0.95)
    assert found is not None and found.fraction == 1 and found.threshold == 0


def test_images_of_one_confidence_are_accepted_together_or_not():
    confidence = np.repeat([0.9, 0.8, 0.7], 80)
    right = np.repeat([True, True, False], 80)
    found = accepted(confidence, right, 0.95)
    assert found == (pytest.approx(0.7), pytest.approx(160 / 240), 160, 160)
    assert accepted(np.full(100, 0.5), np.arange(100) < 90, 0.95) is None
    assert accepted(np.full(100, 0.5), np.arange(100) < 100, 0.95).images == 100


def slope(confidence, best, worst):
    """The probability of being right at a confidence between 0 and 1."""
    return worst + (best - worst) * confidence


@pytest.mark.parametrize(
    ("best", "worst", "power"), [(1.0, 0.6, 2.0), (0.99, 0.9, 1.0), (0.95, 0.95, 1.0), (0.97, 0.2, 0.3)]
)
@pytest.mark.parametrize("images", [60, 100, 300])
def test_the_promise_holds_in_95_of_100_repetitions(best, worst, power, images):
    chance = np.random.default_rng(0)
    many = chance.random(200_000) ** power
    truth = slope(many, best, worst)
    order = np.argsort(-many)
    accuracy_above = truth[order].cumsum() / np.arange(1, len(many) + 1)
    kept = 0
    for _ in range(1000):
        confidence = chance.random(images) ** power
        right = chance.random(images) < slope(confidence, best, worst)
        found = accepted(confidence, right, 0.95)
        if found is None:
            kept += 1
            continue
        above = int((many > found.threshold).sum())
        kept += accuracy_above[max(0, above - 1)] >= 0.95 - 1e-9
    # By chance, 1,000 repetitions show up to 64 failures where 50 are to be expected.
    assert kept >= 936


def test_much_is_accepted_where_much_is_right():
    chance = np.random.default_rng(0)
    fractions = []
    for _ in range(50):
        confidence = chance.random(300)
        right = chance.random(300) < np.where(confidence > 0.4, 0.995, 0.5)
        found = accepted(confidence, right, 0.95)
        fractions.append(found.fraction if found else 0.0)
    # Two thirds may be: 95 per cent of them are right.
    assert 0.5 < np.median(fractions) < 0.67
