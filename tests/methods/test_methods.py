"""Tests that every method has to pass."""

import copy
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from marks import rest_is_slow
from torch import nn

from clfew.data.augment import Recipe
from clfew.finetuning.probes import knn_head
from clfew.methods.base import METHODS
from clfew.methods.setup import estimate_statistics, options_of
from clfew.models.encoder import Encoder
from clfew.models.features import apply_to_cache
from clfew.report.samples import draw_pictures, samples_of
from clfew.training.batch import TrainingData
from clfew.training.loop import train
from clfew.training.plan import Plan

CPU = torch.device("cpu")
VARIANTS = [
    *((name, {}) for name in METHODS),
    ("denoising", {"corruption": "gaussian"}), ("denoising", {"stacked": True}),
    ("inpainting", {"mask": "centre"}), ("inpainting", {"adversarial": True}),
]  # fmt: skip


def trained(objective, images, steps=60, batch=32, rate=3e-3, seed=0):
    """Trains for a few steps and returns the losses."""
    data = TrainingData(images, np.ones(len(images), np.float32), np.arange(len(images)))
    objective.look_at(torch.from_numpy(images), torch.ones(len(images)))
    rows = []
    plan = Plan(steps, batch, "adamw", rate, 1e-4, 5, seed, "fp32")
    train(objective, data, plan, CPU, rows.append)
    return [row["loss"] for row in rows]


def mean_loss(objective, images, make_batch):
    """Returns the mean loss of a few epochs' views, with BatchNorm's batch statistics and no dropout."""
    objective.train()
    for module in objective.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    state = copy.deepcopy(objective.state_dict())
    with torch.no_grad():
        losses = [objective.loss(make_batch(images, epoch=e))[0].item() for e in range(4)]
    objective.load_state_dict(state)
    return float(np.mean(losses))


def knn_accuracy(encoder, images, labels):
    """Returns the accuracy on one half of the images by the 5 nearest neighbours in the other half."""
    features = apply_to_cache(
        encoder, encoder.size, images, np.ones(len(images), np.float32), np.arange(len(images)), CPU
    )
    tested = np.arange(len(images)) % 8 >= 4
    known = np.flatnonzero(~tested)
    head = knn_head(features, known, labels[known], labels.max() + 1)
    head.neighbours.fill_(5)
    with torch.no_grad():
        predicted = head(torch.from_numpy(features[tested])).argmax(1).numpy()
    return (predicted == labels[tested]).mean()


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_the_loss_is_finite_and_its_gradients_reach_the_encoder(
    name, options, make_method, make_batch, make_images
):
    images, _ = make_images(16)
    objective = make_method(name, **options)
    objective.look_at(torch.from_numpy(images), torch.ones(16))
    loss, extras = objective.train().loss(make_batch(images))
    loss.backward()
    assert loss.ndim == 0 and loss.isfinite() and all(v.isfinite() for v in extras.values())
    first = next(objective.encoder.parameters())
    assert first.grad is not None and first.grad.abs().sum() > 0


@pytest.mark.parametrize("name", METHODS)
def test_the_same_random_numbers_give_the_same_loss_and_others_do_not(
    name, make_method, make_batch, make_images
):
    images, _ = make_images(8)
    objective = make_method(name)
    objective.look_at(torch.from_numpy(images), torch.ones(8))
    losses = []
    for epoch in (0, 0, 1):
        torch.manual_seed(0)  # Dropout.
        losses.append(objective.loss(make_batch(images, epoch=epoch))[0].item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(("name", "options"), rest_is_slow(VARIANTS, 4))
def test_training_lowers_the_loss(name, options, make_method, make_batch, make_images):
    images, _ = make_images(96)
    objective = make_method(name, **options)
    objective.look_at(torch.from_numpy(images), torch.ones(96))
    before = mean_loss(objective, images, make_batch)
    trained(objective, images, steps=40)
    assert mean_loss(objective, images, make_batch) < before


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.slow
def test_a_few_hundred_images_beat_random_weights_in_knn(name, make_method, clothes):
    images, labels = clothes
    recipe = Recipe(crop_area=0.4, jitter=0.5, grey=0.2, blur=0)
    objective = make_method(name, recipe=recipe)
    data = TrainingData(images, np.ones(len(images), np.float32), np.arange(len(images)))
    random = copy.deepcopy(objective.encoder)
    estimate_statistics(random, data, CPU)
    # These two are trained on pieces of few pixels, and need more steps.
    steps = 250 if name in ("jigsaw", "counting") else 100
    trained(objective, images, steps, batch=64, rate=objective.learning_rate or 3e-3)
    if not objective.shows_whole_images:
        estimate_statistics(objective.encoder, data, CPU)
    assert knn_accuracy(objective.encoder, images, labels) > knn_accuracy(random, images, labels)


@pytest.mark.parametrize("name", METHODS)
def test_pictures_have_titles_and_values_within_the_unit_range(name, make_method, make_images):
    images, _ = make_images(12)
    objective = make_method(name)
    objective.look_at(torch.from_numpy(images), torch.ones(12))
    data = TrainingData(images, np.ones(12, np.float32), np.arange(12))
    pictures = samples_of(objective, data, 0, CPU, images=3)
    assert len(pictures) >= 2
    for title, shown in pictures:
        assert title and len(shown) == 3 and shown.shape[1] == 3
        assert shown.isfinite().all() and shown.min() >= 0 and shown.max() <= 1
    assert draw_pictures(pictures).startswith(b"\x89PNG")


def test_options_are_the_methods_own_with_their_defaults():
    assert options_of("simclr", {"temperature": 0.5, "mask": None}) == {
        "temperature": 0.5,
        "loss": "nt-xent",
    }
    assert options_of("byol", {}) == {}
    with pytest.raises(Exception, match="--mask is no option of --method byol") as raised:
        options_of("byol", {"mask": "centre"})
    assert "inpainting" in raised.value.hint


def test_statistics_are_estimated_on_whole_images_and_weights_stay(make_method, make_images):
    images, _ = make_images(40)
    encoder = make_method("jigsaw").encoder
    weights = [p.clone() for p in encoder.parameters()]
    norm = next(m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d))
    inputs = []
    norm.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    norm.running_mean.fill_(7.0)
    data = TrainingData(images, np.ones(40, np.float32), np.arange(40))
    estimate_statistics(encoder, data, CPU)
    torch.testing.assert_close(norm.running_mean, inputs[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert norm.momentum == 0.1 and not norm.training
    assert all(torch.equal(a, b) for a, b in zip(weights, encoder.parameters(), strict=True))


def test_statistics_are_those_of_all_classes_though_images_are_listed_class_by_class(make_method):
    """With a dark class and a bright one, batches of one class would vary less than all images do."""
    random = np.random.default_rng(0)
    images = (
        random.integers(0, 60, (600, 24, 24, 3)) + 190 * (np.arange(600) >= 300)[:, None, None, None]
    )
    encoder = make_method("jigsaw").encoder
    norm = next(m for m in encoder.modules() if isinstance(m, nn.BatchNorm2d))
    inputs = []
    norm.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    data = TrainingData(images.astype(np.uint8), np.ones(600, np.float32), np.arange(600))
    estimate_statistics(encoder, data, CPU)
    whole = torch.cat(inputs).var((0, 2, 3))
    torch.testing.assert_close(norm.running_var, whole, rtol=0.05, atol=1e-6)


@pytest.mark.parametrize("name", ["colorization", "split-brain"])
@pytest.mark.parametrize("size", [17, 18, 19, 21, 22, 23])
def test_colours_are_predicted_at_any_size(name, size, make_method, make_batch, make_images):
    """A quarter of these sizes is less than the side of the encoder's last maps."""
    images, _ = make_images(4)
    objective = make_method(name, size=size)
    objective.look_at(torch.from_numpy(images), torch.ones(4))
    assert objective.loss(make_batch(images))[0].isfinite()


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_in_bf16_the_loss_is_nearly_the_same(name, options, make_method, make_batch, make_images):
    images, _ = make_images(16)
    objective = make_method(name, **options).eval()
    objective.look_at(torch.from_numpy(images), torch.ones(16))
    with torch.no_grad():
        exact = objective.loss(make_batch(images))[0].item()
        with torch.autocast("cpu", torch.bfloat16):
            rounded = objective.loss(make_batch(images))[0].item()
    assert rounded == pytest.approx(exact, rel=0.1)


def test_the_examples_method_trains_as_clfews_own_do(make_images):
    example = runpy.run_path(str(Path(__file__).parents[2] / "examples/custom_method.py"))
    images, _ = make_images(48)
    torch.manual_seed(0)
    encoder = Encoder("resnet8-w16", 24, [0.5] * 3, [0.25] * 3)
    objective = example["Rotation"](encoder, Recipe(crop_area=0.5, blur=0))
    losses = trained(objective, images, steps=40)
    assert losses[-1] < losses[0]
    data = TrainingData(images, np.ones(48, np.float32), np.arange(48))
    assert len(samples_of(objective, data, 0, CPU, images=3)) == 4


@pytest.mark.parametrize("name", METHODS)
def test_crops_of_one_scale_are_what_the_paper_has(name):
    sides = {
        "jigsaw": 255 / 256,
        "denoising": 1.0,
        "colorization": 176 / 256,
        "split-brain": 227 / 256,
        "counting": 224 / 256,
    }
    assert METHODS[name].crop_side == sides.get(name)
