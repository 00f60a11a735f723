"""Temperatures are fitted to logits of labels that were held out, and to few of them cautiously."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from clfew.finetuning.calibration import Prior, fit_temperature, prior_of
from clfew.finetuning.metrics import LEARNING_CURVE, expected_accuracy, expected_calibration_error
from clfew.finetuning.probes import folds, knn_head, linear_head

PRIORS = (Prior(0.8, 0.3), Prior(1.0, 0.1), Prior(2.0, 0.5))


def sample(count, temperature, classes=5, seed=0):
    """Makes logits whose softmax at `temperature` is the probability of each class, and labels."""
    random = np.random.default_rng(seed)
    logits = 3 * random.normal(size=(count, classes))
    chances = softmax(logits / temperature, axis=1)
    return logits, (chances.cumsum(1) < random.random((count, 1))).sum(1)


def log_loss(logits, labels, temperature):
    return -log_softmax(logits / temperature, axis=1)[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_many_labels_find_the_temperature(prior, temperature):
    assert fit_temperature(*sample(20_000, temperature), prior) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("fraction", [1.0, 0.8, 0.5])
def test_it_is_the_maximum_of_likelihood_times_prior(fraction):
    """With fewer labels than all, errors count as often as the learning curve expects them."""
    logits, labels = sample(12, 2.0)
    right = logits.argmax(1) == labels
    assert 0 < right.sum() < 12
    error = 1 - right.mean()
    expected_error = 1 - expected_accuracy(right.mean(), fraction)

    def loss(temperature):
        total = (np.log(temperature / 0.8) / 0.3) ** 2 / 2
        for row, label, is_right in zip(logits, labels, right, strict=True):
            chances = np.exp(row / temperature) / np.exp(row / temperature).sum()
            share = (1 - expected_error) / (1 - error) if is_right else expected_error / error
            total -= share * np.log(chances[label])
        return total

    grid = np.exp(np.linspace(-2, 2, 4001))
    best = grid[np.argmin([loss(temperature) for temperature in grid])]
    assert fit_temperature(logits, labels, Prior(0.8, 0.3), fraction) == pytest.approx(best, rel=2e-3)


def test_the_learning_curve_is_a_power_of_the_number_of_labels():
    assert expected_accuracy(0.6, 1.0) == 0.6
    assert expected_accuracy(0.6, 0.5) == pytest.approx(1 - 0.4 * 0.5**LEARNING_CURVE)
    assert expected_accuracy(1.0, 0.5) == 1.0


@pytest.mark.parametrize("prior", PRIORS)
def test_without_labels_it_is_the_prior(prior):
    none = np.empty((0, 3)), np.empty(0, np.int64)
    assert fit_temperature(*none, prior) == pytest.approx(prior.temperature, rel=1e-3)


def test_a_regression_whose_penalty_was_chosen_by_its_log_loss_is_left_alone():
    assert prior_of("linear", 4) == (1.0, 0.05) and prior_of("linear", 3).temperature < 1
    assert prior_of("full", 4).temperature == prior_of("distilled", 4).temperature == 1


def test_few_labels_that_are_all_right_or_all_wrong_are_not_followed_to_the_end():
    """The likelihood alone would ask for probabilities of 1, or of 1 / C."""
    logits = np.tile([2.0, 0.0, 0.0], (6, 1))
    right, wrong = np.zeros(6, np.int64), np.ones(6, np.int64)
    sure, unsure = (fit_temperature(logits, labels, Prior(1.0, 0.3)) for labels in (right, wrong))
    assert np.exp(-2 * 0.3) < sure < 1 < unsure < np.exp(6 * 0.3)


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_an_overfitted_head_is_not_made_surer(kind):
    """200 labels on 100 features of which few tell the class: the head is right on nearly all images
    that it was fitted to, on far fewer others, and the temperature has to be that of the others."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 2200)
    centres = random.normal(size=(4, 100)) * (np.arange(100) < 10)
    features = (centres[labels] + 2 * random.normal(size=(2200, 100))).astype(np.float32)

    def fitted(rows):
        if kind == "knn":
            return knn_head(features[:200], rows, labels[rows], 4)
        return linear_head(features[:200], rows, labels[rows], 4, 0)[0]

    def outputs(head, rows):
        with torch.no_grad():
            return head(torch.from_numpy(features[rows])).numpy()

    known, tested = np.arange(200), np.arange(200, 2200)
    held_out = np.zeros((200, 4))
    for train, rest in folds(labels[known], 0, 5):
        held_out[rest] = outputs(fitted(train), rest)
    logits = outputs(fitted(known), tested)
    prior = prior_of(kind, 50)
    temperature = fit_temperature(held_out, labels[known], prior)
    correct = logits.argmax(1) == labels[tested]

    def error(t):
        return expected_calibration_error(softmax(logits / t, axis=1).max(1), correct)

    assert error(temperature) < 0.08
    # Fitted to the images that the head was fitted to, it would be made surer instead.
    of_itself = fit_temperature(outputs(fitted(known), known), labels[known], prior)
    assert of_itself < temperature and error(of_itself) > error(temperature)
    assert log_loss(logits, labels[tested], temperature) < log_loss(logits, labels[tested], 1.0) + 0.03


def test_with_few_labels_the_log_loss_is_seldom_raised():
    """Where the prior is right, ten labels may not spoil what was good."""
    logits, labels = sample(5000, 0.8, seed=1)
    temperatures = [fit_temperature(*sample(10, 0.8, seed=s), Prior(0.8, 0.3)) for s in range(2, 102)]
    raised = np.array([log_loss(logits, labels, t) for t in temperatures]) - log_loss(
        logits, labels, 0.8
    )
    assert np.mean(raised > 0.02) <= 0.1 and raised.mean() < 0.02
