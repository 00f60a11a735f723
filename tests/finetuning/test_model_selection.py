import numpy as np
import pytest
import torch
from torch import nn

from clfew.finetuning import model_selection
from clfew.finetuning.calibration import believable
from clfew.finetuning.fit import FullSettings, Task
from clfew.finetuning.model_selection import Decision, decide, held_out_accuracy
from clfew.finetuning.start import Start
from clfew.models.encoder import Encoder
from clfew.models.metadata import ArtifactMetadata

CPU = torch.device("cpu")
METADATA = ArtifactMetadata(
    "encoder", "resnet8-w8", 16, 16, [0.5] * 3, [0.25] * 3, 32, "simclr", True, "0.1.0"
)


def start_of(is_pretrained=True):
    torch.manual_seed(0)
    encoder = Encoder("resnet8-w8", 16, [0.5] * 3, [0.25] * 3)
    return Start(encoder, nn.Sequential(), is_pretrained, True, METADATA)


def task_of(pixels, images=60, noise=0.5):
    """Makes a task whose features separate the classes, depending on `noise`."""
    cached, labels = pixels(images, 16, 3)
    random = np.random.default_rng(0)
    features = np.eye(3)[labels] @ random.normal(size=(3, 32)) + noise * random.normal(size=(images, 32))
    pool = np.arange(images)
    return Task(
        cached, np.ones(images, np.float32), pool, labels, 3, features.astype(np.float32), CPU, "fp32"
    )


def test_auto_compares_heads_and_keeps_the_best(pixels):
    task = task_of(pixels)
    decision = decide("auto", start_of(), task, np.arange(15), 0, FullSettings())
    assert set(decision.scores) == {"propagate", "linear", "knn"}
    assert decision.scores[decision.mode] == max(decision.scores.values())
    assert decision.accuracy == pytest.approx(
        believable(15 * decision.scores[decision.mode], 15), abs=1e-3
    )
    assert (
        "cross-validated" in decision.reason and decision.as_row()["cross_validation"] == decision.scores
    )


def test_a_mode_that_was_asked_for_is_taken_and_its_accuracy_measured_afterwards(pixels):
    start, task = start_of(), task_of(pixels)
    decision = decide("knn", start, task, np.arange(15), 0, FullSettings())
    assert (decision.mode, decision.reason, decision.accuracy) == ("knn", "as asked for", None)
    accuracy = held_out_accuracy(decision, start, task, np.arange(15), 0, FullSettings())
    scores = decide("auto", start, task, np.arange(15), 0, FullSettings()).scores
    assert accuracy == pytest.approx(believable(15 * scores["knn"], 15), abs=1e-3)


def test_a_known_accuracy_is_not_measured_again(pixels, monkeypatch):
    monkeypatch.setattr(model_selection, "_held_out_correct", None)  # Calling it would fail.
    known = Decision("knn", "", 0.7)
    assert held_out_accuracy(known, start_of(), task_of(pixels), np.arange(9), 0, FullSettings()) == 0.7


def test_the_accuracy_is_of_labels_that_were_held_out(pixels):
    """On uninformative features, cross-validation finds chance accuracy, not memorised labels."""
    task, settings = task_of(pixels, images=120, noise=100.0), Decision("linear", "as asked for")
    accuracy = held_out_accuracy(settings, start_of(), task, np.arange(60), 0, FullSettings())
    assert 0.1 < accuracy < 0.55


def test_one_label_a_class_propagates_and_is_not_measured(pixels):
    decision = decide("auto", start_of(), task_of(pixels), np.arange(3), 0, FullSettings())
    assert (decision.mode, decision.accuracy, decision.scores) == ("propagate", None, {})
    assert (
        held_out_accuracy(decision, start_of(), task_of(pixels), np.arange(3), 0, FullSettings()) is None
    )


def test_from_scratch_the_network_is_trained_whole(pixels):
    decision = decide("auto", start_of(False), task_of(pixels), np.arange(6), 0, FullSettings())
    assert decision.mode == "full" and "no features" in decision.reason


@pytest.mark.parametrize(("labels", "tried"), [(27, False), (30, True)])
def test_fine_tuning_is_tried_from_ten_labels_a_class(pixels, monkeypatch, labels, tried):
    monkeypatch.setattr(model_selection, "_held_out_correct", lambda *arguments: np.ones(labels))
    decision = decide("auto", start_of(), task_of(pixels), np.arange(labels), 0, FullSettings())
    assert ("full" in decision.scores) is tried


def test_a_large_network_is_not_trained_again_and_again_on_a_cpu(pixels, monkeypatch):
    monkeypatch.setattr(model_selection, "_held_out_correct", lambda *arguments: np.ones(30))
    monkeypatch.setattr(model_selection, "SMALL_NETWORK", 1000)
    assert (
        "full"
        not in decide("auto", start_of(), task_of(pixels), np.arange(30), 0, FullSettings()).scores
    )


def test_another_mode_is_taken_only_where_it_is_clearly_better(pixels, monkeypatch):
    def decide_with(linear):
        def correct(mode, *arguments):
            right = {"propagate": 10, "linear": linear, "knn": 0}[mode]
            return (np.arange(21) < right).astype(float)

        monkeypatch.setattr(model_selection, "_held_out_correct", correct)
        return decide("auto", start_of(), task_of(pixels), np.arange(21), 0, FullSettings())

    # With g more correct predictions, the difference has mean g / 21 and standard error
    # sqrt(g (21 - g) / 21) / 21.
    kept = decide_with(13)
    assert kept.mode == "propagate"  # 3 < 2 · 1.60
    assert kept.reason.endswith("(no clear win over propagate)")
    assert "clear" not in decide_with(14).reason
    assert decide_with(14).mode == "linear"  # 4 > 2 · 1.80
    assert decide_with(10).mode == "propagate"
    assert decide_with(14).accuracy == believable(14, 21)


def test_correct_is_in_the_order_of_the_labels_whatever_the_folds(pixels, monkeypatch):
    known = np.arange(12) % 5 == 0
    monkeypatch.setattr(
        model_selection,
        "_fold_correct",
        lambda mode, start, task, fitted, held_out, *rest: known[held_out],
    )
    for mode in ("full", "linear"):
        correct = model_selection._held_out_correct(
            mode, start_of(), task_of(pixels), np.arange(12), 0, FullSettings()
        )
        np.testing.assert_array_equal(correct, known)
