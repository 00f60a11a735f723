import numpy as np
import pytest
import torch
from torch import nn

from clfew.finetuning import fit as fit_module
from clfew.finetuning import model_selection, probes
from clfew.finetuning.fit import FullSettings, Task, fit
from clfew.finetuning.model_selection import (
    Decision,
    decide,
    held_out_logits,
    is_clearly_better,
    logits_to_compare,
    win_by_chance,
)
from clfew.finetuning.probes import folds
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
    labels = task_of(pixels).labels[:15]
    assert (decision.logits.argmax(1) == labels).mean() == pytest.approx(
        decision.scores[decision.mode], abs=1e-3
    )
    assert (
        "cross-validated" in decision.reason and decision.as_row()["cross_validation"] == decision.scores
    )


def test_a_mode_that_was_asked_for_is_taken_and_its_logits_computed_afterwards(pixels):
    start, task = start_of(), task_of(pixels)
    decision = decide("knn", start, task, np.arange(15), 0, FullSettings())
    assert (decision.mode, decision.reason, decision.logits) == ("knn", "as asked for", None)
    logits = held_out_logits(decision, start, task, np.arange(15), 0, FullSettings())
    scores = decide("auto", start, task, np.arange(15), 0, FullSettings()).scores
    assert (logits.argmax(1) == task.labels[:15]).mean() == pytest.approx(scores["knn"], abs=1e-3)


def test_known_logits_are_not_computed_again(pixels, monkeypatch):
    monkeypatch.setattr(model_selection, "fold_by_fold", None)  # Calling it would fail.
    known = Decision("knn", "", np.zeros((9, 3)))
    arguments = (start_of(), task_of(pixels), np.arange(9), 0, FullSettings())
    assert held_out_logits(known, *arguments) is known.logits


def test_the_head_of_propagation_is_not_fitted_to_images_that_are_held_out(pixels, monkeypatch):
    """They are in the graph, and get a label there, of which the head would be too sure."""
    task, rows = task_of(pixels), []

    def head(inputs, labels, *rest, **more):
        rows.append(len(labels))
        return torch.nn.Linear(32, 3)

    monkeypatch.setattr("clfew.finetuning.label_propagation.standardised_logistic", head)
    labelled = np.arange(15)
    fit_module.fit_probe("propagate", task, labelled, 0)
    held_out_logits(Decision("propagate", ""), start_of(), task, labelled, 0, FullSettings())
    assert rows == [60] + [57] * 5


@pytest.mark.parametrize("mode", ["linear", "knn", "propagate"])
def test_the_logits_are_of_labels_that_were_held_out(pixels, mode):
    """On uninformative features, cross-validation finds chance accuracy, not memorised labels."""
    task, decision = task_of(pixels, images=120, noise=100.0), Decision(mode, "as asked for")
    logits = held_out_logits(decision, start_of(), task, np.arange(60), 0, FullSettings())
    assert 0.1 < (logits.argmax(1) == task.labels[:60]).mean() < 0.55


@pytest.mark.parametrize("mode", ["linear", "knn", "propagate"])
def test_what_is_scored_is_what_is_shipped(pixels, mode):
    """In each fold the mode's own head is fitted: that of propagation too, not the graph's answers."""
    task, labelled = task_of(pixels), np.arange(15)
    logits = held_out_logits(
        Decision(mode, "as asked for"), start_of(), task, labelled, 0, FullSettings()
    )
    for fitted, held_out in folds(task.labels[labelled], 0, 5):
        classifier, _ = fit(start_of(), task, labelled[fitted], mode, 0, judged=labelled)
        with torch.no_grad():
            expected = classifier.from_features(torch.from_numpy(task.features[held_out])).numpy()
        np.testing.assert_allclose(logits[held_out], expected, atol=1e-6)


def test_where_nothing_is_unlabelled_nothing_is_propagated(pixels):
    task = task_of(pixels, images=15)
    decision = decide("auto", start_of(), task, np.arange(15), 0, FullSettings())
    assert set(decision.scores) == {"linear", "knn"} and decision.mode != "propagate"
    few = task_of(pixels, images=3)
    assert decide("auto", start_of(), few, np.arange(3), 0, FullSettings()).mode == "linear"


def test_one_label_a_class_propagates_and_nothing_is_held_out(pixels):
    arguments = (start_of(), task_of(pixels), np.arange(3), 0, FullSettings())
    decision = decide("auto", *arguments)
    assert (decision.mode, decision.logits, decision.scores) == ("propagate", None, {})
    assert held_out_logits(decision, *arguments) is None


def test_from_scratch_the_network_is_trained_whole(pixels):
    decision = decide("auto", start_of(False), task_of(pixels), np.arange(6), 0, FullSettings())
    assert decision.mode == "full" and "no features" in decision.reason


@pytest.mark.parametrize(("labels", "tried"), [(27, False), (30, True)])
def test_fine_tuning_is_tried_from_ten_labels_a_class(pixels, monkeypatch, labels, tried):
    monkeypatch.setattr(model_selection, "fold_by_fold", lambda *arguments: np.ones((labels, 3)))
    decision = decide("auto", start_of(), task_of(pixels), np.arange(labels), 0, FullSettings())
    assert ("full" in decision.scores_in_halves) is tried
    assert "full" not in decision.scores  # Fitted to fewer labels than these.


def test_a_large_network_is_not_trained_again_and_again_on_a_cpu(pixels, monkeypatch):
    monkeypatch.setattr(model_selection, "fold_by_fold", lambda *arguments: np.ones((30, 3)))
    monkeypatch.setattr(model_selection, "SMALL_NETWORK", 1000)
    decision = decide("auto", start_of(), task_of(pixels), np.arange(30), 0, FullSettings())
    assert decision.scores_in_halves == {}


@pytest.mark.parametrize(("linear", "is_taken"), [(10, False), (15, False), (16, True)])
def test_another_mode_is_taken_only_where_it_is_clearly_better(pixels, monkeypatch, linear, is_taken):
    """Of six images that only one of the two predicts correctly, chance gives all to one side in one of
    64 cases; of five, in one of 32, which is not clear."""
    labels = task_of(pixels).labels[:21]

    def logits(mode, *arguments):
        right = np.arange(21) < {"propagate": 10, "linear": linear, "knn": 0}[mode]
        return np.eye(3)[np.where(right, labels, (labels + 1) % 3)]

    monkeypatch.setattr(model_selection, "fold_by_fold", logits)
    decision = decide("auto", start_of(), task_of(pixels), np.arange(21), 0, FullSettings())
    assert decision.mode == ("linear" if is_taken else "propagate")
    unclear = linear == 15
    assert decision.reason.endswith("(no clear win over propagate)") == unclear


@pytest.mark.parametrize(("labels", "is_taken"), [(27, False), (30, True)])
def test_with_many_labels_a_lead_that_is_not_clear_is_enough(pixels, monkeypatch, labels, is_taken):
    """With ten labels per class; a lead of two images, which chance gives in a quarter of all cases."""
    truth = task_of(pixels).labels[:labels]

    def logits(mode, *arguments):
        right = np.arange(labels) < {"propagate": 10, "linear": 12}.get(mode, 0)
        return np.eye(3)[np.where(right, truth, (truth + 1) % 3)]

    monkeypatch.setattr(model_selection, "fold_by_fold", logits)
    decision = decide("auto", start_of(), task_of(pixels), np.arange(labels), 0, FullSettings())
    assert decision.mode == ("linear" if is_taken else "propagate")


def test_three_wins_of_four_images_are_no_clear_win():
    """Three standard errors by the normal approximation, and one case of eight by chance."""
    better, worse = np.array([1, 1, 1, 0]), np.zeros(4)
    assert not is_clearly_better(better, worse)
    assert win_by_chance(3, 0) == pytest.approx(1 / 8) and win_by_chance(0, 3) == 1.0
    assert is_clearly_better(np.ones(6), np.zeros(6)) and not is_clearly_better(np.zeros(6), np.ones(6))


@pytest.mark.parametrize("labels", [4, 8, 12, 30])
def test_equal_modes_are_rarely_told_apart(labels):
    random = np.random.default_rng(0)
    wins = [
        is_clearly_better(random.random(labels) < 0.7, random.random(labels) < 0.7) for _ in range(1000)
    ]
    assert np.mean(wins) <= 0.025 + 0.01


def test_the_whole_network_is_compared_on_the_same_halves(pixels, monkeypatch):
    parts = []

    def logits(mode, start, task, labelled, seed, settings, folds):
        parts.append((mode, folds))
        return np.eye(3)[task.labels[labelled]]

    monkeypatch.setattr(model_selection, "fold_by_fold", logits)
    decision = decide("auto", start_of(), task_of(pixels), np.arange(30), 0, FullSettings())
    assert parts[-2:] == [("propagate", 2), ("full", 2)] and {n for _, n in parts[:-2]} == {5}
    assert "fitted to half of the labels: propagate 1.00, full 1.00" in decision.reason


def test_logits_are_in_the_order_of_the_labels_whatever_the_folds(pixels, monkeypatch):
    known = np.arange(36).reshape(12, 3)
    monkeypatch.setattr(
        model_selection,
        "_fold_logits",
        lambda mode, start, task, fitted, held_out, *rest: known[held_out],
    )
    for mode in ("full", "linear"):
        arguments = (start_of(), task_of(pixels), np.arange(12), 0, FullSettings())
        np.testing.assert_array_equal(held_out_logits(Decision(mode, ""), *arguments), known)


def test_only_the_classifiers_head_is_trained_at_the_full_rate(pixels, monkeypatch):
    """A backbone may have a layer called head too, as ConvNeXt's last norm is."""
    rates = {}

    def train(objective, data, plan, device, log, saving, scale, stop):
        rates.update({name: scale(name) for name, _ in objective.named_parameters()})

    monkeypatch.setattr("clfew.finetuning.fit.train", train)
    start = start_of()
    start.encoder.backbone.add_module("head", nn.BatchNorm1d(32))
    fit(start, task_of(pixels), np.arange(6), "full", 0)
    assert [name for name, rate in rates.items() if rate == 1.0] == [
        "classifier.head.weight",
        "classifier.head.bias",
    ]
    assert rates["classifier.encoder.backbone.head.weight"] == 0.1


def test_starts_are_compared_on_as_many_labels(pixels):
    """A network that was fitted to halves of the labels is not compared with a head of four fifths."""
    task, labelled = task_of(pixels), np.arange(30)
    halves, fifths = np.ones((30, 3)), np.zeros((30, 3))
    full = Decision("full", "", halves, halves)
    probe = Decision("linear", "", fifths)
    arguments = (labelled, 0, FullSettings())
    same = logits_to_compare([(start_of(), task, probe), (start_of(), task, probe)], *arguments)
    assert all(logits is fifths for logits in same[0]) and same[1] == 0.8
    both = [(start_of(), task, full), (start_of(), task, probe)]
    (first, second), fraction = logits_to_compare(both, *arguments)
    assert first is halves and fraction == 0.5
    expected = model_selection.fold_by_fold("linear", start_of(), task, labelled, 0, FullSettings(), 2)
    np.testing.assert_allclose(second, expected)


@pytest.mark.parametrize("labels", [30, 45, 57, 60])
def test_the_network_that_is_judged_is_trained_as_the_one_that_is_kept(pixels, monkeypatch, labels):
    """With ten labels a class, halves have five, below what BatchNorm's statistics need."""
    frozen = []
    monkeypatch.setattr(
        fit_module, "train", lambda objective, *rest: frozen.append(objective) or rest[1]
    )
    start, task, labelled = start_of(), task_of(pixels), np.arange(labels)
    monkeypatch.setattr(model_selection, "predict_cached", lambda c, t, rows: np.zeros((len(rows), 3)))
    fit(start, task, labelled, "full", 0)
    held_out_logits(Decision("full", ""), start, task, labelled, 0, FullSettings())
    assert len(frozen) == 3 and len({each.freeze_statistics for each in frozen}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("each", [2, 3, 4, 5])
def test_the_regression_that_is_judged_is_chosen_as_the_one_that_is_kept(pixels, monkeypatch, each):
    """With three labels a class, folds have two, too few to choose scaling and C from."""
    chosen, counted, task = [], [], task_of(pixels)
    choose, split = probes._choose_strength, probes._splits_to_choose

    def spy(*given):
        chosen.append(choose(*given))
        return chosen[-1]

    def count(labels, seed, fewest, groups):
        counted.append(fewest)
        return split(labels, seed, fewest, groups)

    monkeypatch.setattr(probes, "_choose_strength", spy)
    monkeypatch.setattr(probes, "_splits_to_choose", count)
    labelled = np.concatenate([np.flatnonzero(task.labels == c)[:each] for c in range(3)])
    fit(start_of(), task, np.sort(labelled), "linear", 0)
    held_out_logits(Decision("linear", ""), start_of(), task, np.sort(labelled), 0, FullSettings())
    assert set(counted) == {each} and len(counted) == len(chosen) > 1
    if each < 4:
        assert set(chosen) == {probes.FEW_LABELS}
