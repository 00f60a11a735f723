"""An exported network answers as the classifier that it was made from, whatever the classifier is."""

import functools

import numpy as np
import pytest
from exported import (
    CLASSES,
    KINDS,
    classifier_of,
    compare,
    exported,
    images,
    outputs,
    probabilities,
    small,
)
from marks import rest_is_slow
from torch import nn

from clfew.errors import UserError
from clfew.exporting.to_onnx import can_export

pytest.importorskip("onnxruntime", reason="needs the extra clfew[onnx]")
pytestmark = pytest.mark.skipif(not can_export(), reason="needs torch 2.9 or later")


@functools.cache
def exported_kind(kind):
    """A classifier, the side of its images before the network, and what is made of it."""
    classifier = KINDS[kind]()
    size = classifier.encoder.size
    return (classifier, size + 4, *exported(classifier, size + 4, size))


@pytest.mark.parametrize("kind", rest_is_slow(KINDS, 2))
def test_each_kind_of_classifier(kind):
    classifier, side, model, session = exported_kind(kind)
    compare(classifier, side, session)
    (taken,) = model.graph.input
    dims = [dim.dim_param or dim.dim_value for dim in taken.type.tensor_type.shape.dim]
    assert (taken.name, dims) == ("images", ["N", "H", "W", 3])
    given = {each.name: each.type.tensor_type.shape.dim for each in model.graph.output}
    assert list(given) == ["probabilities", "features"]
    assert [given["probabilities"][0].dim_param, given["probabilities"][1].dim_value] == ["N", CLASSES]
    assert given["features"][1].dim_value == classifier.encoder.dim


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_batch_is_not_fixed(batch):
    classifier, side, _, session = exported_kind("linear")
    pixels = np.concatenate(list(images([(30, 20)] * 4)))[:batch]
    np.testing.assert_allclose(
        session.probabilities(pixels), probabilities(classifier, pixels, side), rtol=0, atol=2e-5
    )


def test_features_are_those_of_embed():
    classifier, side, _, session = exported_kind("knn")
    (pixels,) = images([(33, 27)])
    features = session.features(pixels)
    assert features.shape == (2, classifier.encoder.dim)
    np.testing.assert_allclose(features, outputs(classifier.encoder, pixels, side), rtol=1e-4, atol=1e-5)


def test_weights_are_inside_and_onnx_finds_the_model_valid():
    import onnx

    _, _, model, _ = exported_kind("linear")
    onnx.checker.check_model(model, full_check=True)
    assert not any(each.external_data for each in model.graph.initializer)
    assert [each.domain for each in model.opset_import] == [""] and model.opset_import[0].version == 18


class FixedBatch(nn.Module):
    """A network whose code fixes the size of a batch."""

    def forward(self, images):
        return images.mean((2, 3)).reshape(len(images), 3) * float(images.shape[0])


class ByValue(nn.Module):
    """A network that does one thing or another by what it sees."""

    def forward(self, images):
        means = images.mean((2, 3))
        return means if bool(means.sum() > 0) else -means


@pytest.mark.parametrize("network", [FixedBatch, ByValue])
def test_a_network_that_no_graph_describes_is_refused(network):
    encoder = small()
    encoder.backbone, encoder.name, encoder.dim = network(), "mine", 3
    with pytest.raises(UserError, match="mine cannot be exported: torch has no ONNX form of it"):
        exported(classifier_of(encoder), 16, 16)


def test_a_network_above_two_gib_is_refused_before_it_is_loaded():
    from clfew.exporting.to_onnx import LARGEST, require_small

    fits = {"classifier.head.weight": (1, LARGEST // 4), "seen.pretraining": (2**40,)}
    require_small("resnet18", fits)
    with pytest.raises(UserError, match=r"The weights of vit_h_14 take 2\.0 GiB"):
        require_small("vit_h_14", fits | {"classifier.head.bias": (1,)})


def test_a_torch_whose_exporter_does_not_go_with_the_rest_is_said(monkeypatch):
    from clfew.exporting import to_onnx

    monkeypatch.setattr(to_onnx, "LEAST_TORCH", "99.1")
    with pytest.raises(UserError, match=r"An export needs torch 99\.1 or later, and this is 2\."):
        to_onnx.require_onnx()
