import functools
import math

import numpy as np
import pytest
from scipy import stats

from clfew.finetuning.metrics import (
    accuracy_interval,
    classification_report,
    deviation,
    expected_calibration_error,
    independent_images,
    packed,
    unpacked,
    wilson_interval,
)

CLASSES = ["a", "b", "c", "d"]


def example(images=200, seed=0, present=(0, 1, 2, 3)):
    """Returns the probabilities of a mediocre classifier, for which class d is hard, and the labels."""
    random = np.random.default_rng(seed)
    labels = random.choice(present, images)
    logits = random.normal(0, 1, (images, 4))
    logits[np.arange(images), labels] += np.array([3, 1.5, 1, 0])[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities, labels


def test_the_report_equals_counts_by_loops_over_the_images():
    probabilities, labels = example()
    predicted = probabilities.argmax(1)
    report = classification_report(probabilities, labels, CLASSES)
    pairs = list(zip(labels.tolist(), predicted.tolist(), strict=True))
    counts = [[pairs.count((true, guess)) for guess in range(4)] for true in range(4)]
    correct = sum(true == guess for true, guess in pairs)
    precision = [counts[c][c] / sum(row[c] for row in counts) for c in range(4)]
    recall = [counts[c][c] / sum(counts[c]) for c in range(4)]
    assert report["n"] == 200 and report["classes"] == CLASSES
    assert report["confusion"] == counts
    assert report["accuracy"] == pytest.approx(correct / 200)
    assert report["balanced_accuracy"] == pytest.approx(sum(recall) / 4)
    assert report["balanced_accuracy"] != pytest.approx(report["accuracy"])
    assert [row["precision"] for row in report["per_class"]] == pytest.approx(precision)
    assert [row["recall"] for row in report["per_class"]] == pytest.approx(recall)
    assert [row["n"] for row in report["per_class"]] == [sum(row) for row in counts]
    assert [row["class"] for row in report["per_class"]] == CLASSES
    assert report["ci95"] == list(wilson_interval(correct, 200))
    assert report["ece"] == expected_calibration_error(probabilities.max(1), labels == predicted)


def test_a_class_that_is_not_tested_has_no_recall_and_one_never_predicted_no_precision():
    probabilities = np.eye(4)[[0, 0, 1, 3]]
    report = classification_report(probabilities, np.array([0, 1, 1, 2]), CLASSES)
    rows = {row["class"]: (row["precision"], row["recall"], row["n"]) for row in report["per_class"]}
    assert rows == {"a": (0.5, 1.0, 1), "b": (1.0, 0.5, 2), "c": (None, 0.0, 1), "d": (0.0, None, 0)}
    # Over the three classes that are tested.
    assert report["balanced_accuracy"] == pytest.approx(0.5)


def test_the_most_confused_pairs_come_first_without_correct_predictions():
    labels = np.array([0] * 5 + [1] * 9 + [2] * 4)
    predicted = np.array([1, 1, 1, 0, 0] + [2] + [1] * 8 + [0, 0, 2, 2])
    report = classification_report(np.eye(4)[predicted], labels, CLASSES)
    pairs = [(pair["true"], pair["predicted"], pair["count"]) for pair in report["most_confused"]]
    assert pairs == [("a", "b", 3), ("c", "a", 2), ("b", "c", 1)]


def test_confusion_counts_every_pair_of_classes():
    labels, predicted = np.array([0, 0, 2, 1]), np.array([0, 2, 2, 0])
    report = classification_report(np.eye(3)[predicted], labels, CLASSES[:3])
    assert report["confusion"] == [[1, 0, 1], [1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # Newcombe, Two-sided confidence intervals for the single proportion (1998), table I, method 3.
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_intervals_are_the_published_ones(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(total - correct, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


@pytest.mark.parametrize(("correct", "total"), [(3, 7), (50, 51), (980, 1000)])
def test_wilson_limits_solve_the_score_equation(correct, total):
    for limit in wilson_interval(correct, total):
        distance = abs(correct / total - limit)
        z = stats.norm.ppf(0.975)
        assert distance == pytest.approx(z * math.sqrt(limit * (1 - limit) / total), rel=1e-9)


def test_wilson_stays_between_0_and_1():
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for total in (1, 3, 1000):
        assert wilson_interval(0, total)[0] == 0.0 and wilson_interval(total, total)[1] == 1.0


def slow_ece(confidence, correct):
    """Guo et al., equation 3, bin by bin."""
    total = 0.0
    for b in range(15):
        inside = [i for i in range(len(confidence)) if b / 15 <= confidence[i] < (b + 1) / 15]
        inside += [i for i in range(len(confidence)) if b == 14 and confidence[i] == 1]
        if inside:
            accuracy = sum(correct[i] for i in inside) / len(inside)
            mean_confidence = sum(confidence[i] for i in inside) / len(inside)
            total += len(inside) / len(confidence) * abs(accuracy - mean_confidence)
    return total


def test_calibration_error_equals_the_loop_over_bins():
    probabilities, labels = example(seed=1)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    assert expected_calibration_error(confidence, correct) == pytest.approx(
        slow_ece(confidence, correct)
    )


def test_calibration_error_of_fully_confident_predictions_is_their_error_rate():
    correct = np.array([True, True, True, False])
    assert expected_calibration_error(np.ones(4), correct) == pytest.approx(0.25)
    assert expected_calibration_error(np.ones(4), np.ones(4, bool)) == 0.0


def test_one_classifier_has_the_wilson_interval():
    correct = np.arange(20) < 18
    assert accuracy_interval(correct) == wilson_interval(18, 20)
    assert accuracy_interval(correct[None]) == wilson_interval(18, 20)


@pytest.mark.parametrize("right", [18, 20])
@pytest.mark.parametrize("shape", [(5,), (2,), (3, 5)])
def test_classifiers_that_err_on_the_same_images_know_no_more_than_one(shape, right):
    """The interval over their accuracies alone would have no width."""
    correct = np.broadcast_to(np.arange(20) < right, (*shape, 20))
    assert accuracy_interval(correct) == pytest.approx(wilson_interval(right, 20), abs=0.02)


def test_what_only_the_label_samples_differ_in_is_not_averaged_over_the_images():
    """With very many images, what is left is the t-interval over the samples."""
    accuracies = [0.6, 0.7, 0.65, 0.72, 0.68]
    images = np.random.default_rng(0).random((5, 40_000)) < np.array(accuracies)[:, None]
    means = images.mean(1)
    low, high = stats.t.interval(0.95, 4, loc=means.mean(), scale=stats.sem(means))
    assert accuracy_interval(images) == pytest.approx((low, high), abs=0.005)


@pytest.mark.parametrize(
    ("seeds", "samples", "images", "offset", "deviations"),
    [
        # Standard deviations of seeds, of label samples, of images, and of what is left.
        (1, 5, 20, 2.0, (0, 0.0, 3.0, 0.0)),
        (1, 5, 100, 2.0, (0, 0.3, 3.0, 0.5)),
        (1, 5, 50, 4.0, (0, 0.3, 2.0, 0.5)),
        (1, 2, 100, 1.0, (0, 0.3, 2.0, 1.0)),
        (1, 5, 400, 1.0, (0, 0.0, 0.0, 0.0)),
        (1, 10, 400, 1.0, (0, 0.8, 1.0, 1.0)),
        (3, 3, 100, 2.0, (0.3, 0.2, 2.0, 0.5)),
        (3, 5, 200, 1.0, (0.6, 0.2, 1.0, 0.5)),
    ],
)
def test_the_interval_covers_other_samples_seeds_and_images(seeds, samples, images, offset, deviations):
    random = np.random.default_rng(0)

    def draw(*shape):
        """How sure each of the seeds, label samples and images is to be predicted correctly."""
        logits = np.full(shape, offset)
        for scale, axes in zip(deviations, ({0}, {1}, {2}, {0, 1, 2}), strict=True):
            size = [length if axis in axes else 1 for axis, length in enumerate(shape)]
            logits = logits + scale * random.normal(size=size)
        return 1 / (1 + np.exp(-logits))

    truth = np.mean([draw(1, 1, 1) for _ in range(20_000)])
    trials, covered = 400, 0
    for _ in range(trials):
        chances = draw(seeds, samples, images)
        low, high = accuracy_interval(random.random(chances.shape) < chances)
        covered += low <= truth <= high
    # Three seeds that differ much are the hardest: 92 % of 4,000 trials.
    assert covered / trials >= 0.9


@pytest.mark.parametrize("drawn", [0.05, 0.5, 0.8])
def test_the_interval_covers_other_label_samples_where_these_overlap(drawn):
    """Each of 40 labelled images that a sample holds adds to how sure the classifier is. Label samples
    of the same 40 images overlap, and the truth is over samples of others."""
    random, trials, covered = np.random.default_rng(0), 300, 0
    pool, size = 40, round(drawn * 40)
    for _ in range(trials):
        worth = random.normal(size=pool)
        samples = [random.permutation(pool)[:size] for _ in range(5)]
        sureness = np.array([worth[each].mean() * size**0.5 * 0.4 for each in samples])
        chances = 1 / (1 + np.exp(-1 - sureness))
        low, high = accuracy_interval(random.random((5, 2000)) < chances[:, None], size / pool)
        covered += low <= truth_of_overlapping() <= high
    assert covered / trials > 0.88


@functools.cache
def truth_of_overlapping():
    return float((1 / (1 + np.exp(-1 - 0.4 * np.random.default_rng(1).normal(size=100_000)))).mean())


def test_the_deviation_of_crossed_seeds_and_samples_is_that_of_all_their_values():
    random, found = np.random.default_rng(0), []
    for _ in range(4000):
        by_seed, by_sample = 0.3 * random.normal(size=(3, 1)), 0.1 * random.normal(size=5)
        found.append(deviation(by_seed + by_sample + 0.1 * random.normal(size=(3, 5))) ** 2)
    assert np.mean(found) == pytest.approx(0.3**2 + 0.1**2 + 0.1**2, rel=0.05)
    assert deviation(np.array([0.5])) is None
    assert deviation(np.array([0.4, 0.6])) == pytest.approx(np.std([0.4, 0.6], ddof=1))


def test_which_images_were_right_is_kept_as_text():
    correct = np.random.default_rng(0).random(21) < 0.5
    assert (unpacked(packed(correct), 0.0, 21) == correct).all()
    assert unpacked(None, 0.75, 8).tolist() == [True] * 6 + [False] * 2


@pytest.mark.parametrize(
    ("groups", "largest", "together", "classifiers"),
    [(6, 20, 1.0, 1), (12, 10, 0.5, 1), (30, 20, 0.8, 1), (60, 5, 0.3, 1), (12, 10, 0.5, 4)],
)
def test_the_interval_covers_where_images_are_right_in_groups(groups, largest, together, classifiers):
    """A nominal 95 % interval of as many independent images covers 50 to 90 % then."""
    random, accuracy = np.random.default_rng(0), 0.75
    covered, naive, trials = 0, 0, 400
    for _ in range(trials):
        sizes = random.integers(1, largest + 1, groups)
        of_image = np.repeat(np.arange(groups), sizes)
        strength = (1 - together) / together
        if strength:
            chance = random.beta(accuracy * strength, (1 - accuracy) * strength, groups)
        else:
            chance = (random.random(groups) < accuracy).astype(float)
        correct = (random.random((classifiers, len(of_image))) < chance[of_image]).astype(float)
        low, high = accuracy_interval(correct, 0.0, of_image)
        covered += low <= accuracy <= high
        low, high = accuracy_interval(correct)
        naive += low <= accuracy <= high
    assert covered / trials > 0.92 and naive / trials < covered / trials - 0.02


def test_images_that_are_alone_have_the_usual_interval():
    correct = np.array([1, 0, 1, 1, 1, 1, 0, 1.0])
    assert accuracy_interval(correct, 0.0, np.arange(8)[::-1]) == accuracy_interval(correct)
    assert independent_images(correct, np.arange(8)) == 8


def test_one_group_tells_nothing():
    assert accuracy_interval(np.ones(50), 0.0, np.zeros(50)) == (0.0, 1.0)
    low, high = accuracy_interval(np.ones(50), 0.0, np.repeat(np.arange(5), 10))
    assert low < 0.5 and high == 1.0


def slow_average_precision(scores, is_of_class):
    """The mean, over the images of the class, of the precision down to each; images with one score come
    together."""
    precisions = []
    for score in scores[is_of_class]:
        taken = scores >= score
        precisions.append(is_of_class[taken].mean())
    return np.mean(precisions)


def test_average_precision_is_that_of_each_class():
    random = np.random.default_rng(0)
    labels = random.choice(4, 300, p=[0.7, 0.25, 0.05, 0.0])
    scores = np.round(random.random((300, 4)), 2) + (labels[:, None] == np.arange(4)) * 0.3
    probabilities = scores / scores.sum(1, keepdims=True)
    report = classification_report(probabilities, labels, ["a", "b", "c", "d"])
    found = [row["average_precision"] for row in report["per_class"]]
    wanted = [slow_average_precision(probabilities[:, c], labels == c) for c in range(3)]
    assert found == [*map(pytest.approx, wanted), None]
    share = float((labels == 0).mean())
    assert report["largest_class"] == {"class": "a", "fraction": share}
