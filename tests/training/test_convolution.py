"""The weight gradients against PyTorch's own, in float64 where both are exact enough to compare."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clfew.training import convolution
from clfew.training.convolution import MatrixWeightGradients, weight_gradient


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding"),
    [
        ((8, 8), (3, 3), (1, 1), (1, 1)),
        ((7, 9), (3, 3), (2, 2), (1, 1)),
        ((1, 1), (3, 3), (1, 1), (1, 1)),
        ((2, 1), (3, 3), (2, 2), (1, 1)),
        ((6, 5), (1, 1), (2, 2), (0, 0)),
        ((9, 8), (5, 3), (2, 1), (2, 0)),
        ((3, 3), (3, 3), (1, 1), (0, 0)),
        ((2, 2), (7, 7), (1, 1), (3, 3)),
        ((2, 2), (1, 1), (4, 4), (1, 1)),  # It meets nothing but padding.
    ],
)
@pytest.mark.parametrize("gathered", [1, 10**9])
def test_weight_gradient_is_autograds(monkeypatch, side, kernel, stride, padding, gathered):
    monkeypatch.setattr(convolution, "_GATHERED_BYTES", gathered)  # One image at a time, or all.
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 4, *side, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 4, *kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    output = F.conv2d(images, weight, None, stride, padding)
    gradient = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad(output, weight, gradient)
    result = weight_gradient(images, gradient, kernel, stride, padding)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    assert result.is_contiguous(memory_format=torch.channels_last)


def network(channels):
    layers = [nn.Conv2d(3, channels, 3, 2, 1), nn.Conv2d(channels, 16, 3, 1, 1), nn.Conv2d(16, 8, 1)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def gradients(module, images):
    module(images).square().mean().backward()
    return [parameter.grad for parameter in module.parameters()]


@pytest.mark.parametrize("channels", [convolution.FEWEST_CHANNELS, 8])
def test_networks_have_the_same_gradients_inside_the_context(monkeypatch, channels):
    torch.manual_seed(0)
    module = network(channels)
    images = torch.randn(4, 3, 12, 12).contiguous(memory_format=torch.channels_last)
    expected = gradients(copy.deepcopy(module), images)
    calls = []
    original = convolution.weight_gradient
    monkeypatch.setattr(convolution, "weight_gradient", lambda *args: calls.append(1) or original(*args))
    with MatrixWeightGradients():
        result = gradients(module, images)
    assert len(calls) == (channels == convolution.FEWEST_CHANNELS)
    for got, wanted in zip(result, expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_what_is_not_float32_channels_last_without_groups_is_left_alone(monkeypatch):
    monkeypatch.setattr(convolution, "weight_gradient", None)  # Calling it would fail.
    many = convolution.FEWEST_CHANNELS
    images = torch.randn(2, many, 6, 6)
    last = images.contiguous(memory_format=torch.channels_last)
    with MatrixWeightGradients():
        gradients(nn.Conv2d(many, 8, 3), images)
        gradients(nn.Conv2d(many, many, 3, groups=many), last)
        gradients(nn.Conv2d(many, 8, 3, dilation=2), last)
        gradients(nn.Conv2d(many, 8, 3, padding="same"), last)
        gradients(nn.Conv2d(many, 8, 3).double(), last.double())
        with torch.autocast("cpu", torch.bfloat16):
            gradients(nn.Conv2d(many, 8, 3), last)
        frozen = nn.Conv2d(many, 8, 3).requires_grad_(False)
        frozen(last.clone().requires_grad_()).sum().backward()
