import numpy as np
import pytest
from scipy.special import expit, logit

from clfew.finetuning.metrics import wilson_interval
from clfew.finetuning.random_sample import Proportion, proportion_interval, share_intervals

GOOD = 2.9
"""The distance of two normal distributions of deviation 1 with an AUC of .98."""


def pool_of(random, share, images, prior=None, apart=GOOD, sureness=1.0):
    """Returns the labels of a pool, and the probabilities of a classifier that takes the share of the
    class to be `prior` (None: as it is). With a `sureness` of 1 it is calibrated for that share."""
    labels = random.random(images) < share
    evidence = apart * (random.normal(size=images) + np.where(labels, apart / 2, -apart / 2))
    return labels, expit(sureness * (evidence + logit(share if prior is None else prior)))


def shares_of(labels, predicted, mean, images):
    """Returns the share of the class, and that of the rest."""
    both, means = np.stack([predicted, 1 - predicted], 1), np.array([mean, 1 - mean])
    return share_intervals(1 - labels.astype(int), 2, both, means, images)


def pool_with_rare_mistakes(random, share, images, missed):
    """Nearly all is known, but a few images of the class look like others."""
    labels = random.random(images) < share
    seen = labels & (random.random(images) >= missed / share)
    return labels, np.where(seen, 0.998, 0.002)


def measured(pool, size, repeats=400):
    """Returns how often three intervals cover: with predictions, of the labels alone, and the normal one
    with predictions; and the width of the first relative to the second.

    pool: labels and predictions of so many images, as a function of a generator and their number.
    """
    random, images = np.random.default_rng(0), 4000
    covered, widths = np.zeros(3), np.zeros(2)
    for repeat in range(repeats):
        if repeat % 10 == 0:
            # Images of a pool are in random order: ten samples are drawn from each.
            labels, predicted = pool(random, images)
            truth, mean = labels.mean(), predicted.mean()
        rows = slice(repeat % 10 * size, (repeat % 10 + 1) * size)
        y, f = labels[rows].astype(float), predicted[rows]
        powered = shares_of(y, f, mean, images)[0]
        alone = proportion_interval(y)
        centred = f - f.mean()
        adjusted = y - np.clip(centred @ y / max(centred @ centred, 1e-9), 0, 1) * (f - mean)
        reach = 1.96 * adjusted.std(ddof=1) / size**0.5
        normal = Proportion(0, adjusted.mean() - reach, adjusted.mean() + reach)
        covered += [each.low <= truth <= each.high for each in (powered, alone, normal)]
        widths += [each.high - each.low for each in (powered, alone)]
    return *(covered / repeats), widths[0] / widths[1]


@pytest.mark.parametrize(
    ("size", "share", "options", "width"),
    [
        (50, 0.3, {}, 0.7),
        (200, 0.1, {}, 0.75),
        (100, 0.5, {"sureness": 4.0}, 0.65),
        (200, 0.05, {"prior": 0.5}, 0.95),
        (50, 0.05, {"prior": 0.5}, 1.0),
        (20, 0.1, {"apart": 1.2, "sureness": 4.0}, 1.0),
        (50, 0.5, {"apart": 0.0}, 1.0),
    ],
)
def test_the_interval_covers_and_good_predictions_narrow_it(size, share, options, width):
    powered, alone, _, relative = measured(lambda random, n: pool_of(random, share, n, **options), size)
    assert powered >= 0.94 or powered >= alone
    assert relative <= width


@pytest.mark.parametrize(("size", "share"), [(20, 0.05), (50, 0.05), (50, 0.02), (20, 0.9)])
def test_the_normal_interval_does_not_cover_the_share_of_a_rare_class(size, share):
    powered, alone, normal, _ = measured(lambda random, n: pool_of(random, share, n), size)
    assert powered >= min(0.94, alone) and normal < 0.88


@pytest.mark.parametrize(("size", "missed"), [(50, 0.02), (50, 0.05), (100, 0.02), (200, 0.01)])
def test_mistakes_that_a_sample_does_not_show_are_allowed_for(size, missed):
    powered, _, normal, relative = measured(
        lambda random, n: pool_with_rare_mistakes(random, 0.3, n, missed), size
    )
    assert powered >= 0.94 and normal < 0.94 and relative < 0.85


def test_predictions_are_not_taken_at_face_value():
    """A classifier that takes a class of 5 % to be half of the images finds too many of them."""
    random = np.random.default_rng(0)
    labels, predicted = pool_of(random, 0.05, 5000, prior=0.5)
    covered, too_many, repeats = 0, 0, 1000
    for _ in range(repeats):
        rows = random.choice(5000, 200, replace=False)
        found, _ = shares_of(labels[rows], predicted[rows], predicted.mean(), 5000)
        covered += found.low <= labels.mean() <= found.high
        too_many += found.low <= predicted.mean() <= found.high
    assert predicted.mean() > 2 * labels.mean()
    assert covered / repeats >= 0.93 and too_many / repeats < 0.1


def test_classes_each_have_their_share_and_these_add_up_to_about_one():
    random = np.random.default_rng(0)
    labels = random.choice(4, 5000, p=[0.5, 0.3, 0.15, 0.05])
    logits = random.normal(size=(5000, 4)) + 4 * np.eye(4)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    true = np.bincount(labels) / 5000
    covered, off = [], []
    for _ in range(200):
        rows = random.choice(5000, 100, replace=False)
        found = share_intervals(labels[rows], 4, probabilities[rows], probabilities.mean(0), 5000)
        covered.append([each.low <= share <= each.high for each, share in zip(found, true, strict=True)])
        off.append(abs(sum(each.share for each in found) - 1))
    assert (np.mean(covered, 0) >= 0.94).all() and np.mean(off) < 1e-3 and max(off) < 0.03


def test_without_predictions_the_intervals_are_those_of_wilson():
    labels = np.array([0, 0, 0, 1, 1, 3])
    expected = [Proportion(n / 6, *wilson_interval(n, 6)) for n in (3, 2, 0, 1)]
    assert share_intervals(labels, 4) == expected
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), 6)
    assert share_intervals(labels, 4, probabilities) == expected


@pytest.mark.parametrize("images", [0, 1, 2])
def test_hardly_any_labels_leave_nearly_everything_open(images):
    found = share_intervals(
        np.zeros(images, int), 2, np.full((images, 2), 0.5), np.array([0.5, 0.5]), 100
    )
    assert [tuple(each)[1:] for each in found] == [
        wilson_interval(images, images),
        wilson_interval(0, images),
    ]
    assert all(each.low <= each.share <= each.high for each in found)


def test_a_class_that_the_sample_has_not_or_has_only_has_the_interval_of_the_labels():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 30)
    found = share_intervals(np.ones(30, int), 3, probabilities, np.array([0.2, 0.3, 0.5]), 1000)
    assert all(0 <= each.low <= each.share <= each.high <= 1 for each in found)
    assert [tuple(each)[1:] for each in found] == [wilson_interval(n, 30) for n in (0, 30, 0)]


@pytest.mark.parametrize("mean", [0.0, 0.1, 0.3, 1.0])
def test_predictions_that_were_never_wrong_are_not_certain(mean):
    """Whatever they say of the pool, shares are between 0 and 1, and within their intervals."""
    labels = np.repeat([0, 1], [40, 10])
    found = share_intervals(labels, 2, np.eye(2)[labels], np.array([1 - mean, mean]), 10_000)
    for each in found:
        assert 0 <= each.low <= each.share <= each.high <= 1
        # On a side that has room, as far as the interval of an event that never happened.
        assert each.high - each.low >= wilson_interval(0, 50)[1] - 1e-12
    assert sum(each.share for each in found) == pytest.approx(1)
    assert found[1].share == pytest.approx(mean)


def test_where_the_pool_is_the_sample_predictions_tell_nothing():
    random = np.random.default_rng(0)
    labels, predicted = pool_of(random, 0.4, 80)
    found, alone = shares_of(labels, predicted, predicted.mean(), 80)[0], proportion_interval(labels)
    assert found == pytest.approx(alone, abs=1e-12)


def test_predictions_that_say_the_same_of_all_images_or_the_opposite_are_not_used():
    labels = np.repeat([False, True], [30, 20])
    alone = proportion_interval(labels)
    for predicted in (np.full(50, 0.7), 1.0 - labels):
        assert shares_of(labels, predicted, 0.5, 1000)[0] == pytest.approx(alone, abs=1e-12)
