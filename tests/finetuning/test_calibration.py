import numpy as np
import pytest
from scipy.special import softmax

from clfew.finetuning.calibration import COLDEST, HOTTEST, believable, fit_temperature, mean_confidence
from clfew.finetuning.metrics import expected_calibration_error


def scaled_logits(count=4000, classes=5, scale=6.0, seed=0):
    """Returns the logits of a calibrated model, multiplied by `scale`, and the labels."""
    random = np.random.default_rng(seed)
    logits = 1.5 * random.normal(size=(count, classes))
    probabilities = softmax(logits, axis=1)
    labels = np.array([random.choice(classes, p=p) for p in probabilities])
    return scale * logits, labels


def test_the_temperature_matches_mean_confidence_to_the_accuracy():
    logits, labels = scaled_logits()
    accuracy = (logits.argmax(1) == labels).mean()
    temperature = fit_temperature(logits, accuracy)
    assert mean_confidence(logits, temperature) == pytest.approx(accuracy, abs=1e-3)
    assert temperature == pytest.approx(6, rel=0.1)  # The factor that the logits were multiplied by.


def test_an_overconfident_model_is_better_calibrated_after_it():
    logits, labels = scaled_logits()
    correct = logits.argmax(1) == labels
    temperature = fit_temperature(logits, correct.mean())
    before, after = (
        expected_calibration_error(softmax(logits / t, axis=1).max(1), correct) for t in (1, temperature)
    )
    assert after < 0.03 < 0.2 < before


def test_an_underconfident_model_is_made_more_confident():
    logits, labels = scaled_logits(scale=0.2)
    assert fit_temperature(logits, (logits.argmax(1) == labels).mean()) == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize(("accuracy", "expected"), [(0.05, HOTTEST), (1.0, COLDEST)])
def test_accuracies_that_no_temperature_reaches_give_the_limits(accuracy, expected):
    logits = np.zeros((10, 5)) if accuracy > 0.5 else scaled_logits(100)[0]
    assert fit_temperature(logits, accuracy) == expected


def test_a_smoothed_accuracy_is_never_0_or_1():
    assert believable(0, 10) == 1 / 12 and believable(10, 10) == 11 / 12
