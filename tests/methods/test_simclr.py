import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from clfew.data.augment import Recipe
from clfew.data.randomness import ImageRandom
from clfew.methods.simclr import SimCLR, nt_xent, projector
from clfew.models.encoder import Encoder
from clfew.training.batch import Batch, TrainingData
from clfew.training.loop import train
from clfew.training.plan import Plan


def slow_nt_xent(first, second, temperature, decoupled=False):
    """SimCLR's Algorithm 1 with its interleaved order (2k - 1, 2k), in the precision of the inputs."""
    z = torch.stack([view for pair in zip(first, second, strict=True) for view in pair])
    total = torch.zeros((), dtype=z.dtype)

    def similarity(i, j):
        return (z[i] @ z[j]) / (z[i].norm() * z[j].norm())

    def pair_loss(i, j):
        left_out = {i, j} if decoupled else {i}
        denominator = sum(
            torch.exp(similarity(i, k) / temperature) for k in range(len(z)) if k not in left_out
        )
        return -torch.log(torch.exp(similarity(i, j) / temperature) / denominator)

    for k in range(len(first)):
        total = total + pair_loss(2 * k, 2 * k + 1) + pair_loss(2 * k + 1, 2 * k)
    return total / len(z)


def embeddings(pairs=5, features=7, seed=0):
    # Of various lengths, so that a missing normalisation shows.
    z = torch.randn(
        2 * pairs, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return z * torch.linspace(0.3, 4, 2 * pairs, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_equals_the_loop_over_pairs(temperature):
    z = embeddings()
    expected = slow_nt_xent(z[:5], z[5:], temperature)
    assert nt_xent(z, temperature).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_dcl_leaves_the_positive_out_of_the_denominator(temperature):
    z = embeddings(seed=1)
    expected = slow_nt_xent(z[:5], z[5:], temperature, decoupled=True)
    assert nt_xent(z, temperature, decoupled=True).item() == pytest.approx(expected.item(), rel=1e-5)
    assert nt_xent(z, temperature).item() > expected.item()


@pytest.mark.parametrize("decoupled", [False, True])
def test_gradients_equal_those_of_the_loop(decoupled):
    z = embeddings(pairs=4, seed=2).requires_grad_()
    slow_nt_xent(z[:4], z[4:], 0.3, decoupled).backward()
    fast = z.detach().clone().requires_grad_()
    nt_xent(fast, 0.3, decoupled).backward()
    torch.testing.assert_close(fast.grad, z.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decoupled", [False, True])
def test_the_loss_is_symmetric_in_the_views(decoupled):
    z = embeddings(seed=3)
    swapped = torch.cat([z[5:], z[:5]])
    loss = nt_xent(z, 0.2, decoupled).item()
    assert nt_xent(swapped, 0.2, decoupled).item() == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(("decoupled", "others"), [(False, 2 * 6 - 1), (True, 2 * 6 - 2)])
def test_equal_embeddings_cost_the_log_of_the_number_of_others(decoupled, others):
    z = torch.ones(12, 8) * 3
    assert nt_xent(z, 0.1, decoupled).item() == pytest.approx(math.log(others), rel=1e-5)


def test_perfect_pairs_of_opposite_directions_have_the_closed_form():
    # Two images whose views coincide and which point away from each other: cosines 1, -1, -1.
    z = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]])
    expected = math.log(1 + 2 * math.exp(-2 / 0.5))
    assert nt_xent(z, 0.5).item() == pytest.approx(expected, rel=1e-5)


def test_bfloat16_at_a_low_temperature_is_computed_in_float32():
    z = embeddings(pairs=16, features=32).to(torch.bfloat16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent(z, 0.05)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.isfinite() and z.grad.isfinite().all()
    # The same embeddings in full precision: only their own rounding is lost, none in the loss.
    exact = slow_nt_xent(z[:16].double(), z[16:].double(), 0.05)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_the_projector_is_three_linear_layers_each_with_batchnorm_and_ends_without_relu():
    layers = list(projector(10, 20, 6))
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2 + [nn.Linear, nn.BatchNorm1d]
    assert [type(layer) for layer in layers] == kinds
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(10, 20), (20, 20), (20, 6)]
    assert all(m.bias is None for m in linear)


def tiny_simclr(loss="nt-xent"):
    torch.manual_seed(0)
    encoder = Encoder("resnet8-w8", 16, [0.5] * 3, [0.25] * 3)
    return SimCLR(encoder, Recipe(crop_area=0.4, jitter=0.3, blur=0), temperature=0.2, loss=loss)


def fixed_batch(images):
    rows = np.arange(len(images))
    return Batch(torch.from_numpy(images), torch.ones(len(images)), ImageRandom(9, 10**6, rows))


def test_the_loss_is_computed_from_two_views_of_each_image_through_encoder_and_projector(pixels):
    objective, (images, _) = tiny_simclr(), pixels(8)
    outputs = []
    objective.projector.register_forward_hook(lambda *args: outputs.append(args[2].detach()))
    loss, extras = objective.loss(fixed_batch(images))
    assert outputs[0].shape == (16, 128)
    assert loss.item() == pytest.approx(
        slow_nt_xent(outputs[0][:8], outputs[0][8:], 0.2).item(), rel=1e-4
    )
    unit = outputs[0] / outputs[0].norm(dim=1, keepdim=True)
    std = unit.std(dim=0).mean().item() * 128**0.5
    assert extras["spread"].item() == pytest.approx(std, rel=1e-5)


def test_loss_dcl_selects_the_decoupled_loss(pixels):
    batch = fixed_batch(pixels(8)[0])
    assert tiny_simclr("dcl").loss(batch)[0].item() < tiny_simclr().loss(batch)[0].item()


def test_gradients_reach_every_parameter(pixels):
    objective = tiny_simclr()
    objective.loss(fixed_batch(pixels(8)[0]))[0].backward()
    for name, parameter in objective.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_thirty_steps_lower_the_loss(pixels):
    images, _ = pixels(32)
    objective = tiny_simclr()
    batch = fixed_batch(images)
    # On a copy: in training mode the loss also moves BatchNorm's statistics.
    before = copy.deepcopy(objective).loss(batch)[0].item()
    data = TrainingData(images, np.ones(32, np.float32), np.arange(32))
    train(objective, data, Plan(30, 16, "adamw", 3e-3, 1e-4, 3, 0, "fp32"), torch.device("cpu"))
    after = objective.loss(batch)[0].item()
    assert after < before - 0.3
