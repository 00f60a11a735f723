import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from clfew.data.augment import Recipe
from clfew.data.randomness import ImageRandom
from clfew.errors import Stopped
from clfew.methods.adapter import VIEWS, Adapter, standardise, view_features, whiten
from clfew.methods.simclr import nt_xent
from clfew.models.encoder import Encoder, SideLayer
from clfew.training import loop
from clfew.training.batch import Batch, TrainingData
from clfew.training.loop import train
from clfew.training.plan import Plan
from clfew.training.saving import Saving

CPU = torch.device("cpu")
RECIPE = Recipe(crop_area=0.5, flip=True, jitter=0.5, grey=0, blur=0)


def encoder_of(adapter=6):
    torch.manual_seed(0)
    return Encoder("resnet8-w8", 16, [0.5] * 3, [0.25] * 3, adapter)


def views_of(images=300, dims=32, informative=4, seed=0):
    """Returns features of views, and classes. Images differ in few directions, their views in the
    others."""
    random = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(random.normal(size=(dims, dims)))
    kinds = np.arange(images) % 3
    signal = np.zeros((images, dims))
    signal[:, :informative] = 2 * random.normal(size=(3, informative))[kinds]
    signal[:, :informative] += 0.3 * random.normal(size=(images, informative))
    noise = random.normal(size=(images, VIEWS, dims)) * np.where(np.arange(dims) < informative, 0.1, 3.0)
    return ((signal[:, None] + noise) @ rotation).astype(np.float16), kinds


def nearest_agree(features, kinds):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit @ unit.T - 2 * np.eye(len(unit))
    return (kinds[cosine.argmax(1)] == kinds).mean()


@torch.no_grad()
def test_whitening_equalises_differences_between_views_and_keeps_those_between_images():
    features, kinds = views_of()
    layer = nn.Linear(32, 6)
    whiten(layer, features, 0)
    adapted = layer(torch.from_numpy(features).float()).numpy()
    assert np.abs(adapted.mean((0, 1))).max() < 0.1  # The mean is subtracted.
    first = features[:, 0].astype(np.float32)
    before = nearest_agree(first - first.mean(0), kinds)
    after = nearest_agree(adapted[:, 0], kinds)
    assert after > 0.95 > before + 0.2


def test_whitening_follows_its_formula():
    features, _ = views_of(images=60, dims=5, informative=2)
    layer = nn.Linear(5, 5)
    whiten(layer, features, 0)
    values = features.astype(np.float64)
    centres = values.mean(1)
    within = sum(
        np.outer(values[i, v] - centres[i], values[i, v] - centres[i])
        for i in range(60)
        for v in range(VIEWS)
    ) / (60 * VIEWS - 60)
    metric = np.linalg.inv(within + 3 * np.trace(within) / 5 * np.eye(5))
    weight = layer.weight.detach().numpy().astype(np.float64)
    gram = weight.T @ weight
    np.testing.assert_allclose(gram / np.trace(gram), metric / np.trace(metric), rtol=2e-3, atol=2e-3)


def test_the_loss_is_that_of_simclr_on_two_different_views():
    objective = Adapter(encoder_of(), 0.2, False)
    random = ImageRandom(0, 3, np.arange(40))
    features = torch.randn(40, 3, 32).half()
    loss, _ = objective.loss(Batch(features, torch.ones(40), random))
    random_40x2 = random.uniform(0, 2)
    pairs = [[], []]
    for i in range(40):
        first = int(random_40x2[i, 0] * 3)
        second = (first + 1 + int(random_40x2[i, 1] * 2)) % 3
        assert first != second
        for side, view in enumerate((first, second)):
            pairs[side].append(objective.layer.linear(features[i, view].float()))
    torch.testing.assert_close(loss, nt_xent(torch.stack(pairs[0] + pairs[1]), 0.2))


def test_every_pair_of_views_occurs():
    features = torch.zeros(600, 3, 32)
    features[:, torch.arange(3), torch.arange(3)] = 1  # The features encode the view's number.
    objective, given = Adapter(encoder_of(), 0.2, False), []
    objective.layer.linear.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    objective.loss(Batch(features, torch.ones(600), ImageRandom(0, 0, np.arange(600))))
    first, second = given[0][:, :3].argmax(1).chunk(2)
    pairs = {(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)}
    assert pairs == {(a, b) for a in range(3) for b in range(3) if a != b}


def test_training_changes_only_the_layer_and_lowers_the_loss():
    features, kinds = views_of()
    encoder = encoder_of()
    objective = Adapter(encoder, 0.2, False)
    whiten(objective.layer.linear, features, 0)
    backbone = {k: v.clone() for k, v in encoder.backbone.state_dict().items()}
    start = objective.layer.linear.weight.clone()
    data = TrainingData(features, np.ones(300, np.float32), np.arange(300))
    losses = []
    train(
        objective,
        data,
        Plan(60, 100, "adamw", 1e-3, 1e-3, 3, 0, "fp32"),
        CPU,
        lambda row: losses.append(row["loss"]),
    )
    assert losses[-1] < losses[0]
    assert not torch.equal(start, objective.layer.linear.weight)
    for name, value in encoder.backbone.state_dict().items():
        assert torch.equal(backbone[name], value), name
    with torch.no_grad():
        adapted = objective.layer.linear(torch.from_numpy(features[:, 0]).float()).numpy()
    assert nearest_agree(adapted, kinds) > 0.95


def test_training_that_is_saved_and_resumed_ends_with_the_same_weights(tmp_path, monkeypatch):
    features, _ = views_of(100)
    data = TrainingData(features, np.ones(100, np.float32), np.arange(100))
    plan = Plan(20, 50, "adamw", 1e-3, 1e-3, 2, 0, "fp32")

    def ready():
        objective = Adapter(encoder_of(), 0.2, False)
        whiten(objective.layer.linear, features, 0)
        return objective

    whole, stopped = ready(), ready()
    train(whole, data, plan, CPU)
    saving = Saving(tmp_path / "state", "again")
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)  # After every step.
    monkeypatch.setattr(loop, "LOG_SECONDS", 0.0)

    def stop(row):
        if row["step"] == 7:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped):
        train(stopped, data, plan, CPU, stop, saving)
    resumed = ready()
    train(resumed, data, plan, CPU, saving=saving)
    assert torch.equal(resumed.layer.linear.weight, whole.layer.linear.weight)
    assert not torch.equal(stopped.layer.linear.weight, whole.layer.linear.weight)


@torch.no_grad()
def test_view_features_are_backbone_features_of_random_views(pixels):
    images, _ = pixels(10)
    encoder, indices = encoder_of(), np.array([7, 2, 5])
    aspects = np.ones(10, np.float32)
    found = view_features(encoder, TrainingData(images, aspects, indices), RECIPE, 0, CPU, "fp32")
    assert found.shape == (3, VIEWS, 32) and found.dtype == np.float16
    again = view_features(encoder, TrainingData(images, aspects, indices[:2]), RECIPE, 0, CPU, "fp32")
    np.testing.assert_array_equal(found[:2], again)  # An image's views depend on the image alone.
    assert np.abs(found[:, 0] - found[:, 1]).max() > 0.01
    assert not encoder.training


def test_when_time_is_up_only_the_first_images_have_features(pixels, monkeypatch):
    images, _ = pixels(200)
    monkeypatch.setattr("clfew.methods.adapter.batch_size", lambda size, device: 4 * VIEWS)
    data = TrainingData(images, np.ones(200, np.float32), np.arange(200))
    arguments = (encoder_of(), data, RECIPE, 0, CPU, "fp32")
    assert len(view_features(*arguments, seconds=0.0)) == 4
    assert len(view_features(*arguments, seconds=None)) == 200


@pytest.mark.parametrize("dims", [3, 6])
def test_an_encoder_may_have_fewer_features_than_the_adapter(dims):
    features = np.random.default_rng(0).normal(size=(20, VIEWS, dims)).astype(np.float16)
    layer = nn.Linear(dims, 6)
    whiten(layer, features, 0)
    assert layer.weight.isfinite().all() and np.linalg.matrix_rank(layer.weight.detach().numpy()) == dims


@torch.no_grad()
def test_a_side_layer_weighs_the_encoders_features_and_its_own_equally():
    torch.manual_seed(0)
    features = (5 * torch.randn(50, VIEWS, 32) * torch.arange(1, 33) + 100).half()
    layer = SideLayer(32, 6)
    standardise(layer, features.numpy())
    given = features[:, 0].float()
    found = layer(given)
    assert found.shape == (50, layer.dim) == (50, 32 + 5 * 6)
    every = features.float().flatten(0, 1)
    own = (given - every.mean(0)) / every.std(0)
    learned = layer.linear(given)
    cosine = [torch.nn.functional.cosine_similarity(x[:1], x[1:]) for x in (found, own, learned)]
    torch.testing.assert_close(cosine[0], (cosine[1] + cosine[2]) / 2, atol=1e-4, rtol=1e-4)
