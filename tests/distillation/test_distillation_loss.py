"""Compares the distillation loss with slow transcriptions of its papers' formulas."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clfew.data.augment import Recipe
from clfew.data.randomness import ImageRandom
from clfew.distillation.loss import MOMENTUM, Distillation, aligned, class_thresholds, distillation_loss
from clfew.models.classifier import Classifier
from clfew.models.encoder import Encoder
from clfew.training.batch import Batch

PLAIN = Recipe(crop_area=0.5, flip=True, jitter=0, grey=0, blur=0)
STRONG = Recipe(crop_area=0.3, flip=True, jitter=1.0, grey=0.2, blur=0)


def random_case(images=7, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = 3 * torch.randn(images, classes, generator=generator)
    teacher = torch.softmax(2 * torch.randn(images, classes, generator=generator), 1)
    return student, teacher


@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
def test_distillation_is_simclrv2s_loss(temperature):
    student, teacher = random_case()
    expected = []
    for scores, probabilities in zip(student.tolist(), teacher.tolist(), strict=True):
        soft = [math.exp(math.log(p) / temperature) for p in probabilities]
        soft = [s / sum(soft) for s in soft]
        top = max(scores)
        total = sum(math.exp((s - top) / temperature) for s in scores)
        logs = [(s - top) / temperature - math.log(total) for s in scores]
        expected.append(-(temperature**2) * sum(p * q for p, q in zip(soft, logs, strict=True)))
    result = distillation_loss(student, teacher, temperature)
    torch.testing.assert_close(result, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_a_student_that_predicts_what_its_teacher_predicts_has_no_gradient():
    student, _ = random_case()
    student.requires_grad_()
    distillation_loss(student, torch.softmax(student.detach(), 1), 1.0).sum().backward()
    assert student.grad.abs().max() < 1e-6


def test_a_teacher_that_is_certain_gives_cross_entropy():
    student, _ = random_case()
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    result = distillation_loss(student, F.one_hot(labels, 4).float(), 1.0)
    torch.testing.assert_close(
        result, F.cross_entropy(student, labels, reduction="none"), rtol=1e-4, atol=1e-4
    )


def test_thresholds_are_freematchs():
    mean = torch.tensor([0.5, 0.3, 0.2])
    expected = [0.9 * 0.5 / 0.5, 0.9 * 0.3 / 0.5, 0.9 * 0.2 / 0.5]
    torch.testing.assert_close(class_thresholds(torch.tensor(0.9), mean), torch.tensor(expected))


def test_alignment_moves_the_mean_to_the_prior():
    _, probabilities = random_case(images=500)
    prior = torch.tensor([0.4, 0.3, 0.2, 0.1])
    result = aligned(probabilities, probabilities.mean(0), prior)
    torch.testing.assert_close(result.sum(1), torch.ones(500))
    assert (result.mean(0) - prior).abs().sum() < (probabilities.mean(0) - prior).abs().sum()
    torch.testing.assert_close(aligned(probabilities, prior, prior), probabilities)


def student_of(classes=3, frozen=False, adapter=0, targets=None):
    torch.manual_seed(0)
    encoder = Encoder("resnet8-w8", 16, [0.5] * 3, [0.25] * 3, adapter)
    student = Classifier(encoder, nn.Sequential(), nn.Linear(encoder.dim, classes))
    targets = torch.softmax(torch.randn(12, classes), 1) if targets is None else targets
    prior = torch.full((classes,), 1 / classes)
    return Distillation(student, targets, prior, PLAIN, STRONG, 1.0, frozen)


def batch_of(images, rows):
    return Batch(images, torch.ones(len(images)), ImageRandom(0, 0, rows), torch.from_numpy(rows))


def test_the_loss_is_its_two_terms():
    objective = student_of().eval()
    rows = np.arange(6)
    images = torch.randint(0, 256, (6, 16, 16, 3), dtype=torch.uint8)
    confidence, mean = objective.confidence.clone(), objective.shares.clone()
    loss, extras = objective.loss(batch_of(images, rows))
    with torch.no_grad():
        weak, strong = objective._logits(batch_of(images, rows)).chunk(2)
    raw = torch.softmax(weak, 1)
    mean = MOMENTUM * mean + (1 - MOMENTUM) * raw.mean(0)
    scaled = raw * objective.prior / mean
    scaled = scaled / scaled.sum(1, keepdim=True)
    confidence = MOMENTUM * confidence + (1 - MOMENTUM) * scaled.max(1).values.mean()
    prior = objective.prior
    total, certain = 0.0, 0
    for i in range(6):
        total += -(objective.targets[i] * torch.log_softmax(weak[i], 0)).sum().item()
        guess = int(scaled[i].argmax())
        if scaled[i, guess] > confidence * prior[guess] / prior.max():
            certain += 1
            total += -torch.log_softmax(strong[i], 0)[guess].item()
    assert loss.item() == pytest.approx(total / 6, rel=1e-4)
    assert extras["confident"].item() == pytest.approx(certain / 6)
    torch.testing.assert_close(objective.confidence, confidence)
    torch.testing.assert_close(objective.shares, mean)


def test_the_two_views_have_different_random_numbers_and_the_weak_one_keeps_its_colours():
    objective = student_of().eval()
    images = torch.full((2, 16, 16, 3), 100, dtype=torch.uint8)
    encoder_inputs = []
    objective.student.encoder.register_forward_pre_hook(
        lambda module, inputs: encoder_inputs.append(inputs[0])
    )
    objective.loss(batch_of(images, np.arange(2)))
    weak, strong = encoder_inputs[0].chunk(2)
    torch.testing.assert_close(weak, torch.full_like(weak, 100 / 255))
    assert (strong - 100 / 255).abs().max() > 0.01


def test_cached_views_are_used_as_they_are():
    objective = student_of(adapter=4).eval()
    features = torch.randn(5, 4, 32, dtype=torch.float16)
    rows = np.arange(5)
    logits = objective._logits(batch_of(features, rows))
    with torch.no_grad():
        by_view = torch.stack(
            [
                objective.student.from_features(
                    objective.student.encoder.adapter(features[:, v].float())
                )
                for v in range(4)
            ]
        )
    torch.testing.assert_close(logits[:5], by_view[0])
    for i in range(5):  # The strong view is one of the others.
        assert (by_view[1:, i] - logits[5 + i]).abs().sum(1).min() < 1e-5


def test_frozen_statistics_stay(pixels):
    objective = student_of(frozen=True).train()
    before = {k: v.clone() for k, v in objective.state_dict().items() if "running" in k}
    images, _ = pixels(6)
    objective.loss(batch_of(torch.from_numpy(images), np.arange(6)))[0].backward()
    assert before and all(torch.equal(objective.state_dict()[k], v) for k, v in before.items())
