"""An exported network of each family answers as it does in torch.

Translating a network takes most of the time, more the more layers it has. So networks are tried without
their repeated blocks, those of some families as small ones of the same classes, and a few with
CLFEW_THOROUGH=1 only, which tries all as they are.
"""

import os
from unittest.mock import patch

import pytest
import torch
import torchvision
from exported import classifier_of, compare, exported, shallow, small

from clfew.exporting.to_onnx import can_export
from clfew.models import backbones
from clfew.models.backbones import _remove_classifier, register_encoder

pytest.importorskip("onnxruntime", reason="needs the extra clfew[onnx]")
pytestmark = pytest.mark.skipif(not can_export(), reason="needs torch 2.9 or later")

THOROUGH = os.environ.get("CLFEW_THOROUGH") == "1"

TORCHVISION = [
    ("resnet18", 32),
    ("alexnet", 64),
    ("convnext_tiny", 32),
    ("densenet121", 32),
    ("efficientnet_b0", 32),
    ("googlenet", 32),
    ("inception_v3", 96),
    ("maxvit_t", 224),
    ("mnasnet0_5", 32),
    ("mobilenet_v2", 32),
    ("mobilenet_v3_small", 32),
    ("regnet_y_400mf", 32),
    ("shufflenet_v2_x0_5", 32),
    ("squeezenet1_1", 32),
    ("swin_t", 32),
    ("vgg11", 32),
    ("vit_b_32", 64),
]
TIMM = [
    ("resnet10t", 64),
    ("test_vit", 160),
    ("tf_efficientnet_lite0", 64),
    ("mobilenetv4_conv_small", 64),
    ("convnext_atto", 64),
    ("vit_tiny_patch16_224", 64),
    ("deit_tiny_patch16_224", 64),
    ("poolformer_s12", 64),
    ("mixer_s32_224", 64),
    ("ghostnet_050", 64),
]


MODELS = torchvision.models
FEW_LAYERS = {
    "densenet121": lambda: MODELS.DenseNet(8, (2, 2), 16),
    "efficientnet_b0": lambda: MODELS.EfficientNet(efficientnet_blocks(), 0.2),
    "maxvit_t": lambda: MODELS.MaxVit((64, 64), 16, 2, [16, 32], [1, 1], 8, 0.1),
    "mobilenet_v2": lambda: MODELS.MobileNetV2(10, 0.5, [[1, 16, 1, 1], [6, 24, 2, 2]]),
    "mobilenet_v3_small": lambda: MODELS.MobileNetV3(*mobilenet_blocks()),
    "swin_t": lambda: MODELS.SwinTransformer([4, 4], 24, [2], [2], [7, 7]),
}
THOROUGH_ONLY = ("googlenet", "inception_v3", "timm:ghostnet_050")


def efficientnet_blocks():
    blocks, _ = MODELS.efficientnet._efficientnet_conf("efficientnet_b0", width_mult=1.0, depth_mult=1.0)
    return blocks[:4]


def mobilenet_blocks():
    blocks, channels = MODELS.mobilenetv3._mobilenet_v3_conf("mobilenet_v3_small")
    return blocks[:5], channels


def few_layers(name):
    """Registers a small network of a family's class; returns its name."""

    def build(size):
        network = FEW_LAYERS[name]()
        _remove_classifier(network)
        return network

    register_encoder(f"small-{name}", build)
    return f"small-{name}"


@pytest.fixture(autouse=True)
def forgotten():
    """Removes what a test has registered."""
    with patch.dict(backbones._REGISTERED):
        yield


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name, size", TORCHVISION + [(f"timm:{name}", size) for name, size in TIMM])
def test_networks_of_torchvision_and_timm(name, size):
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="needs the extra clfew[timm]")
    if THOROUGH:
        encoder = small(size, name)
    elif name in THOROUGH_ONLY:
        pytest.skip("it takes half a minute: CLFEW_THOROUGH=1 tries it")
    elif name in FEW_LAYERS:
        size = 64
        encoder = small(size, few_layers(name))
    else:
        encoder = small(size, name)
        shallow(encoder.backbone)
    classifier = with_spread(classifier_of(encoder), size)
    _, session = exported(classifier, size, size)
    compare(classifier, size, session, [(8, 8), (5000, 10), (640, 480)], within=1e-4)


def with_spread(classifier, size):
    """The classifier with a head that tells images apart: features of random weights differ little."""
    with torch.no_grad():
        features = classifier.encoder(torch.rand(16, 3, size, size) * torch.rand(16, 3, 1, 1))
        weight = classifier.head.weight
        weight.div_((features @ weight.T).std(0).mean())
        classifier.head.bias.copy_(-(features.mean(0) @ weight.T))
    return classifier
