import math

import numpy as np
import pytest
import torch

from clfew.data.colour import rgb_to_lab
from clfew.methods.split_brain import LIGHTNESS_BINS, SplitBrain, cross_channel_loss
from clfew.models.backbones import Halves


def test_the_loss_is_cross_entropy_of_the_nearest_colour_and_of_the_lightness():
    generator = torch.Generator().manual_seed(0)
    bins = torch.randn(12, 2, generator=generator) * 40
    lab = torch.randn(2, 3, 3, 3, generator=generator) * 30
    lab[:, 0] = lab[:, 0].abs().clamp(0, 100)
    lab[0, 0, 0, 0] = 100  # The end of the range.
    colour = torch.randn(2, 12, 3, 3, generator=generator)
    light = torch.randn(2, LIGHTNESS_BINS, 3, 3, generator=generator)
    expected = [0.0, 0.0]
    for b, y, x in np.ndindex(2, 3, 3):
        distance = ((bins - lab[b, 1:, y, x]) ** 2).sum(1)
        p = colour[b, :, y, x].double().softmax(0)
        expected[0] -= math.log(p[int(distance.argmin())]) / 18
        q = light[b, :, y, x].double().softmax(0)
        expected[1] -= math.log(q[min(99, int(lab[b, 0, y, x]))]) / 18
    found = cross_channel_loss(colour, light, lab, bins)
    assert [loss.item() for loss in found] == pytest.approx(expected, rel=1e-5)


def test_each_half_has_half_the_width_and_features_are_side_by_side(make_method):
    objective: SplitBrain = make_method("split-brain", encoder="resnet8-w32")
    assert objective.encoder.name == "split:resnet8-w16" and objective.encoder.dim == 128
    assert SplitBrain.encoder_name("resnet18") == "split:resnet18"  # It cannot be halved.
    assert SplitBrain.encoder_name("split:resnet8-w16") == "split:resnet8-w16"


@torch.no_grad()
def test_neither_half_gets_what_it_predicts(make_method):
    backbone = make_method("split-brain").encoder.eval().backbone
    assert isinstance(backbone, Halves)
    inputs = torch.randn(3, 3, 24, 24)
    other_colour, other_light = inputs.clone(), inputs.clone()
    other_colour[:, 1:] += torch.randn(3, 2, 24, 24)
    other_light[:, :1] += torch.randn(3, 1, 24, 24)
    half = backbone(inputs).shape[1] // 2
    plain = backbone(inputs)
    torch.testing.assert_close(backbone(other_colour)[:, :half], plain[:, :half])
    torch.testing.assert_close(backbone(other_light)[:, half:], plain[:, half:])
    assert not torch.allclose(backbone(other_colour)[:, half:], plain[:, half:])
    assert not torch.allclose(backbone(other_light)[:, :half], plain[:, :half])


@torch.no_grad()
def test_the_encoder_gets_lightness_and_colour_within_the_unit_range(make_method):
    encoder = make_method("split-brain").encoder
    images = torch.rand(4, 3, 24, 24)
    inputs = encoder.prepare(images) * encoder.std + encoder.mean
    lab = rgb_to_lab(images)
    torch.testing.assert_close(inputs[:, 0], lab[:, 0] / 100, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(inputs[:, 1:] * 220 - 110, lab[:, 1:], rtol=1e-3, atol=1e-2)
    assert inputs.min() >= 0 and inputs.max() <= 1
