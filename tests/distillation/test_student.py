import dataclasses
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from clfew.data.augment import Recipe
from clfew.distillation.student import (
    DistillationSetup,
    Verdict,
    build_student,
    cross_fit,
    encoder_rate,
    soft_targets,
    student_data,
    to_prior,
    train_student,
)
from clfew.finetuning.fit import FullSettings, Task, fit
from clfew.finetuning.start import Start
from clfew.methods.adapter import VIEWS
from clfew.models.encoder import Encoder
from clfew.models.metadata import ArtifactMetadata
from clfew.training.plan import Plan

CPU = torch.device("cpu")
PLAIN = Recipe(crop_area=0.7, flip=False, jitter=0, grey=0, blur=0)
METADATA = ArtifactMetadata(
    "encoder", "resnet8-w8", 16, 16, [0.5] * 3, [0.25] * 3, 32, "simclr", False, "0.1.0"
)
PLAN = Plan(6, 16, "adamw", 1e-3, 1e-4, 1, 0, "fp32")


@torch.no_grad()
def build_setup(pixels, images=48, shows_labels=True, views=False):
    """Makes a setup of striped images and a random encoder, for a linear teacher."""
    cached_images, labels = pixels(images, 16, 3)
    torch.manual_seed(0)
    encoder = Encoder("resnet8-w8", 16, [0.5] * 3, [0.25] * 3, 4 if views else 0).eval()
    aspects = np.ones(images, np.float32)
    task = Task(cached_images, aspects, np.arange(images), labels, 3, None, CPU, "fp32")
    inputs = torch.from_numpy(cached_images).permute(0, 3, 1, 2).float() / 255
    task = dataclasses.replace(task, features=encoder(inputs).numpy())
    cached_views = None
    if views:
        plain = encoder.backbone_features(inputs)
        cached_views = torch.stack([plain] * (1 + VIEWS), 1).half().numpy()
    start = Start(encoder, nn.Sequential(), True, False, METADATA, views)
    prior = np.full(3, 1 / 3)
    return DistillationSetup(
        start, "linear", 1.0, start, task, prior, PLAIN, PLAIN, 1.0, shows_labels, cached_views
    )


def verdict(teacher, student, differing, held_out=100):
    return Verdict(held_out, teacher, student, differing, 0.5, 1.0, 1000)


@pytest.mark.parametrize(
    ("result", "better"),
    [
        (verdict(50, 61, 25), True),  # 18 of 25: by chance in 22 of 1,000 cases.
        (verdict(50, 59, 25), False),  # 17 of 25.
        (verdict(50, 50, 0), False),
        (verdict(2, 2, 2, 4), False),  # Students who always predict the same class agree, too.
        (verdict(1, 5, 4), False),  # Four wins of four.
        (verdict(50, 49, 25), False),  # Fewer labels are predicted correctly.
        (verdict(50, 44, 25), False),
        (verdict(0, 0, 0, held_out=0), False),
    ],
)
def test_what_makes_a_student_better(result, better):
    assert result.is_better is better


def test_targets_have_the_prior_as_their_mean():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet([5, 1, 1], 400)
    prior = np.array([0.2, 0.3, 0.5])
    moved = to_prior(probabilities, prior)
    np.testing.assert_allclose(moved.sum(1), 1)
    np.testing.assert_allclose(moved.mean(0), prior, atol=0.01)
    odds = (moved[:, 0] / moved[:, 1]) / (probabilities[:, 0] / probabilities[:, 1])
    np.testing.assert_allclose(odds, odds[0], rtol=1e-5)  # All images are scaled by the same factors.


@pytest.mark.parametrize("shows_labels", [True, False])
def test_the_targets_of_labelled_images_are_their_labels_where_these_are_shown(pixels, shows_labels):
    setup = build_setup(pixels, shows_labels=shows_labels)
    labelled = np.arange(6)
    teacher, _ = fit(setup.teacher, setup.task, labelled, "linear", 0)
    targets = soft_targets(setup, teacher, labelled)
    certain = (targets[labelled].max(1) == 1).all()
    assert targets.shape == (48, 3) and certain == shows_labels
    if shows_labels:
        assert (targets[labelled].argmax(1) == setup.task.labels[labelled]).all()
    data = student_data(setup, np.arange(1))
    counts = np.bincount(data.labels)
    assert counts[0] == (round(0.1 * 48) if shows_labels else 1) and (counts[1:] == 1).all()
    assert np.array_equal(data.indices, setup.task.pool[data.labels])


def test_a_student_starts_near_its_teacher_and_leaves_the_start_as_it_was(pixels):
    setup = build_setup(pixels)
    labelled = np.arange(12)
    teacher, _ = fit(setup.teacher, setup.task, labelled, "linear", 0)
    targets = soft_targets(setup, teacher, labelled)
    before = {k: v.clone() for k, v in setup.student.encoder.state_dict().items()}
    objective = build_student(setup, targets, 0)
    with torch.no_grad():
        logits = objective.student.from_features(torch.from_numpy(setup.task.features))
    assert (logits.argmax(1).numpy() == targets.argmax(1)).mean() > 0.9
    student, _ = train_student(setup, objective, student_data(setup, labelled), PLAN)
    assert not student.training
    assert all(torch.equal(before[k], v) for k, v in setup.student.encoder.state_dict().items())
    moved = student.encoder.state_dict()
    assert any(not torch.equal(before[k], v) for k, v in moved.items())


def test_with_cached_views_the_backbone_stays(pixels):
    setup = build_setup(pixels, views=True)
    labelled = np.arange(12)
    teacher, _ = fit(setup.teacher, setup.task, labelled, "linear", 0)
    objective = build_student(setup, soft_targets(setup, teacher, labelled), 0)
    before = {k: v.clone() for k, v in objective.student.state_dict().items()}
    student, _ = train_student(setup, objective, student_data(setup, labelled), PLAN)
    changed = {k.split(".")[1] for k, v in student.state_dict().items() if not torch.equal(before[k], v)}
    assert changed == {"adapter", "weight", "bias"}


def test_cross_fitting_tests_every_label_once_and_never_on_a_model_trained_on_it(pixels, monkeypatch):
    setup = build_setup(pixels)
    labelled = np.arange(12)
    halves = []

    setup = dataclasses.replace(setup, settings=FullSettings(epochs=3))

    def spy(start, task, half, mode, seed, settings, judged):
        halves.append(set(half.tolist()))
        assert settings.epochs == 3 and judged is labelled  # As the teacher that is judged.
        return fit(start, task, half, mode, seed, settings, judged=judged)

    monkeypatch.setattr("clfew.distillation.student.fit", spy)
    result, logits, plans = cross_fit(setup, labelled, [PLAN, replace(PLAN, steps=7)], 0)
    assert [plan.last_step() for plan in plans] == [6, 7]
    hits = (logits.argmax(1) == setup.task.labels[labelled]).sum()
    assert hits == result.student_hits
    assert result.held_out == 12 and 0 <= result.teacher_hits <= 12 and 0 <= result.student_hits <= 12
    assert abs(result.student_hits - result.teacher_hits) <= result.differing
    assert halves[0] | halves[1] == set(labelled.tolist()) and not halves[0] & halves[1]
    assert 0 <= result.teacher_agreement <= 1 and 0 <= result.student_agreement <= 1


def test_an_image_that_is_shown_often_is_shown_in_as_many_views(pixels):
    setup = build_setup(pixels)
    data = student_data(setup, np.arange(3))
    shown = np.isin(data.indices, np.arange(3))
    assert shown.sum() > 3 and len(np.unique(data.keys)) == len(data)


def test_one_label_in_a_class_leaves_nothing_to_hold_out(pixels):
    result, logits, plans = cross_fit(build_setup(pixels), np.arange(3), [PLAN, PLAN], 0)
    assert plans == []
    assert logits.shape == (0, 3)
    assert result == Verdict(0, 0, 0, 0, 0.0, 0.0, 0) and not result.is_better


@pytest.mark.parametrize("is_published", [True, False])
def test_published_weights_are_trained_at_a_small_rate_and_others_at_the_full_one(
    pixels, monkeypatch, is_published
):
    rates = {}

    def train(objective, data, plan, device, log, saving, scale):
        rates.update({name: scale(name) for name, _ in objective.named_parameters()})

    monkeypatch.setattr("clfew.distillation.student.train", train)
    setup = build_setup(pixels)
    start = replace(setup.student, is_published=is_published)
    assert encoder_rate(start, is_old=True) == 0.1  # As runs that do not record it were trained.
    setup = replace(setup, student=start, rate=encoder_rate(start))
    objective = build_student(setup, np.eye(3)[setup.task.labels], 0)
    objective.student.encoder.backbone.add_module("head", nn.BatchNorm1d(32))
    train_student(setup, objective, student_data(setup, np.arange(6)), PLAN)
    full = [name for name, rate in rates.items() if rate == 1.0]
    assert full and all(name.startswith("student.head.") for name in full) == is_published
    assert "student.encoder.backbone.head.weight" in rates
