"""Thresholds on the probability of a class: against every threshold there is, and what is expected."""

import numpy as np
import pytest

from clfew.errors import UsageError
from clfew.finetuning.asked import fraction_of, parse_goals
from clfew.finetuning.operating_point import operating_point


def scores(seed, count=60):
    chance = np.random.default_rng(seed)
    is_class = chance.random(count) < 0.3
    # Rounded, so that some are the same.
    probability = np.round(chance.beta(2, 2, count) * 0.7 + 0.3 * is_class, 1 + seed % 2)
    return probability, is_class, chance.uniform(0.5, 2.0, count)


def at(threshold, probability, is_class, weights):
    called = probability >= threshold
    right = (weights * (called & is_class)).sum()
    return right / max(weights[called].sum(), 1e-12), right / weights[is_class].sum()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("goal", [0.3, 0.6, 0.9])
def test_it_is_the_best_of_all_thresholds(seed, goal):
    probability, is_class, weights = scores(seed)
    every = [at(t, probability, is_class, weights) for t in np.unique(probability)]
    point = operating_point(probability, is_class, weights, precision=goal)
    good = [recall for precision, recall in every if precision >= goal and recall > 0]
    if not good:
        assert point is None
    else:
        assert point is not None and point.recall == pytest.approx(max(good))
        assert at(point.threshold, probability, is_class, weights) == pytest.approx(
            (point.precision, point.recall)
        )
        assert point.precision >= goal - 1e-9
    point = operating_point(probability, is_class, weights, recall=goal)
    assert point is not None and point.recall >= goal - 1e-9
    above = [t for t in np.unique(probability) if t > point.threshold]
    fewer = [at(t, probability, is_class, weights)[1] for t in above]
    # A larger threshold than the image that it was set by finds less than asked for.
    assert all(recall < goal for recall in fewer[1:])
    low, high = point.recall_interval
    assert 0 <= low <= point.recall <= high <= 1
    assert point.images == is_class.sum()


def test_without_an_image_of_the_class_there_is_no_threshold():
    assert operating_point(np.ones(5), np.zeros(5, bool), np.ones(5), precision=0.5) is None


def test_new_images_have_the_precision_that_is_expected():
    """With many labels, the thresholds hold on other images: precision and recall within the interval in
    about 95 of 100 repetitions, as far as choosing the threshold allows."""
    chance = np.random.default_rng(0)

    def drawn(count):
        is_class = chance.random(count) < 0.2
        return 1 / (1 + np.exp(-chance.normal(2.5 * is_class - 2, 1))), is_class

    held, wide = [], drawn(200_000)
    for _ in range(200):
        probability, is_class = drawn(400)
        point = operating_point(probability, is_class, np.ones(400), recall=0.9)
        assert point is not None
        precision, recall = at(point.threshold, *wide, np.ones(200_000))
        held.append(
            (
                point.precision_interval[0] <= precision <= point.precision_interval[1],
                point.recall_interval[0] <= recall <= point.recall_interval[1],
            )
        )
    assert np.mean(held, axis=0).min() > 0.9


@pytest.mark.parametrize(
    ("text", "wanted"), [("0.95", 0.95), ("95", 0.95), (" 95 % ", 0.95), ("1%", 0.01)]
)
def test_a_fraction_is_written_in_three_ways(text, wanted):
    assert fraction_of(text, "--accept", "0.95") == pytest.approx(wanted)


@pytest.mark.parametrize("text", ["", "0", "1", "100", "100%", "-5", "nan", "inf", "x"])
def test_what_is_no_fraction_is_refused(text):
    with pytest.raises(UsageError, match="not between 0 and 1"):
        fraction_of(text, "--accept", "0.95")


def test_goals_name_classes():
    assert parse_goals("--min-recall", None) == {}
    assert parse_goals("--min-recall", ["a=b=90", "c = 0.5"]) == {"a=b": 0.9, "c": 0.5}
    for text in ("0.9", "=0.9", " =0.9"):
        with pytest.raises(UsageError, match="names no class"):
            parse_goals("--min-recall", [text])
