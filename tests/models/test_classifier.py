"""Heads compute in float32 whatever the autocast."""

import pytest
import torch
from torch import nn

from clfew.models.classifier import Classifier, NeighbourHead, UnitHead, build_neck
from clfew.models.encoder import Encoder

CLASSES = 3


def heads(dim):
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(12, dim, generator=generator), torch.arange(12) % CLASSES
    torch.manual_seed(0)
    return {
        "linear": nn.Linear(dim, CLASSES),
        "unit": UnitHead(dim, CLASSES),
        "knn": NeighbourHead(features, labels, CLASSES, k=5),
    }


@pytest.mark.parametrize("head", ["linear", "unit", "knn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_has_the_same_outputs_in_autocast(head, dtype):
    encoder = Encoder("resnet8-w8", 16, [0.5] * 3, [0.25] * 3)
    classifier = Classifier(encoder, build_neck(encoder.dim, 0), heads(encoder.dim)[head]).eval()
    features = torch.randn(7, encoder.dim).to(dtype)
    expected = classifier.from_features(features.float())
    with torch.autocast("cpu", torch.bfloat16):
        outputs = classifier.from_features(features)
    assert outputs.dtype == torch.float32
    assert torch.equal(outputs, expected)


@pytest.mark.parametrize("head", ["linear", "unit", "knn"])
def test_a_neck_may_be_rounded_and_the_head_behind_it_is_not(head):
    torch.manual_seed(0)
    encoder = Encoder("resnet8-w8", 16, [0.5] * 3, [0.25] * 3)
    classifier = Classifier(encoder, build_neck(encoder.dim, 8), heads(8)[head]).eval()
    images = torch.rand(5, 3, 16, 16)
    expected = classifier(images)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = classifier(images)
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs.softmax(1), expected.softmax(1), atol=0.05, rtol=0)
