"""Several encoders used as one, and the artifacts that hold them."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from clfew.errors import UserError
from clfew.models.artifacts import load_classifier, load_encoder, save_classifier
from clfew.models.classifier import Classifier, build_neck
from clfew.models.encoder import Encoder
from clfew.models.features import apply_to_cache, features_of
from clfew.models.init_weights import derives_from_published, find_init_weights
from clfew.models.metadata import ArtifactMetadata, read_metadata
from clfew.models.side_by_side import SideBySide

CPU = torch.device("cpu")
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
SMALL = ArtifactMetadata(
    kind="encoder", encoder="resnet8-w8", size=16, side=16, mean=MEAN, std=STD, dim=32, method="simclr",
    flip=True, clfew_version="0.1.0",
)  # fmt: skip
LARGE = replace(SMALL, encoder="resnet8-w16", size=24, side=30, dim=320, adapter=256)
LABELLED = {"source": "/a", "split_seed": 0, "labels": 6, "label_file": None}


def encoder_like(metadata):
    encoder = Encoder(metadata.encoder, metadata.size, MEAN, STD, metadata.adapter)
    assert encoder.dim == metadata.dim
    return encoder


@pytest.fixture
def both(pixels):
    """A small encoder beside a larger one with an adapter, and cached images."""
    torch.manual_seed(0)
    encoder = SideBySide([encoder_like(SMALL), encoder_like(LARGE)])
    images, _ = pixels(24, side=30)
    aspects = np.linspace(0.6, 1.6, 24).astype(np.float32)
    rows = np.arange(24)
    own = features_of(encoder, images, aspects, rows, CPU, "fp32", standardised=False)
    encoder.standardise_by(own)
    return encoder, images, aspects, own


def test_each_encoder_has_the_same_part_in_the_similarity_of_two_images(both):
    encoder, images, aspects, own = both
    features = features_of(encoder, images, aspects, np.arange(24), CPU, "fp32")
    parts = []
    for part in (own[:, :32], own[:, 32:]):
        standardised = (part - part.mean(0)) / (part.std(0) + 1e-6)
        parts.append(standardised / np.linalg.norm(standardised, axis=1, keepdims=True))
    assert features.shape == (24, 352)
    np.testing.assert_allclose(features, np.concatenate(parts, axis=1), atol=1e-5)
    np.testing.assert_allclose(features @ features.T, sum(p @ p.T for p in parts), atol=1e-5)


def test_a_feature_that_did_not_vary_is_not_all_there_is_of_an_image_in_which_it_does(both):
    encoder, _, _, own = both
    still = own.copy()
    still[:, 3] = 0.0
    encoder.standardise_by(still)
    new = torch.from_numpy(still[:1].repeat(2, 0))
    new[1, 3] = 0.1 * float(own[:, :32].std(0).mean())
    before, after = encoder.joined(new)
    assert torch.nn.functional.cosine_similarity(before[:32], after[:32], dim=0) > 0.3
    torch.testing.assert_close(before[32:], after[32:])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_features_that_are_reused_are_those_of_the_whole_network(both, precision):
    """Fine-tuning takes each network's features by itself, and predict applies all networks at once."""
    encoder, images, aspects, _ = both
    rows = np.array([3, 0, 17])
    reused = features_of(encoder, images, aspects, rows, CPU, precision)
    at_once = apply_to_cache(encoder, encoder.size, images, aspects, rows, CPU, precision)
    np.testing.assert_allclose(reused, at_once, atol=1e-5 if precision == "fp32" else 0.03)


def metadata_of(encoder, parts=(SMALL, LARGE)):
    return replace(
        LARGE, kind="classifier", encoder=encoder.name, dim=encoder.dim, adapter=0, mode="linear",
        classes=["cat", "dog"], parts=[asdict(part) for part in parts], data={"finetune": LABELLED},
    )  # fmt: skip


@pytest.fixture
def saved(both, tmp_path):
    def save(**changes):
        encoder = both[0]
        classifier = Classifier(encoder, build_neck(encoder.dim, 0), nn.Linear(encoder.dim, 2)).eval()
        path = tmp_path / "classifier.safetensors"
        none = np.array([], dtype=np.uint64)
        save_classifier(path, classifier, replace(metadata_of(encoder), **changes), none, none)
        return path, classifier

    return save


def test_a_classifier_on_several_encoders_predicts_the_same_when_loaded(saved, both):
    path, classifier = saved()
    loaded, metadata, _ = load_classifier(path)
    images = torch.rand(3, 3, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), classifier(images), atol=1e-6, rtol=1e-5)
    assert [part["encoder"] for part in metadata.parts] == ["resnet8-w8", "resnet8-w16"]
    encoder, _, _, _ = load_encoder(path)  # To fine-tune again.
    assert isinstance(encoder, SideBySide) and encoder.dim == 352


DAMAGED = {
    "one part": lambda m: {"parts": m.parts[:1]},
    "nine parts": lambda m: {"parts": m.parts[:1] * 9},
    "no object": lambda m: {"parts": [1, 2]},
    "a part with parts": lambda m: {"parts": [m.parts[0] | {"parts": m.parts}, m.parts[1]]},
    "a part that is a classifier": lambda m: {
        "parts": [
            m.parts[0]
            | {"kind": "classifier", "mode": "knn", "classes": ["a", "b"]}
            | {"data": {"finetune": LABELLED}},
            m.parts[1],
        ]
    },
    "a part that lacks a field": lambda m: {
        "parts": [{k: v for k, v in m.parts[0].items() if k != "mean"}, m.parts[1]]
    },
    "a size that is no part's": lambda m: {"size": 32},
    "an adapter of its own": lambda m: {"adapter": 16},
    "other networks": lambda m: {"parts": m.parts[::-1]},
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_metadata_whose_parts_make_no_sense_is_refused(saved, both, damage):
    path, _ = saved(**DAMAGED[damage](metadata_of(both[0])))
    with pytest.raises(UserError):
        load_classifier(path)


def test_several_networks_have_no_stages_and_are_no_single_start(saved, both):
    with pytest.raises(UserError, match="several networks"):
        both[0].read_at(2)
    with pytest.raises(UserError, match="side by side"):
        find_init_weights(str(saved()[0]), "auto", CPU)


def test_it_derives_from_published_weights_if_one_part_does(saved):
    metadata, _ = read_metadata(saved()[0])
    assert not derives_from_published(metadata)
    parts = [part | {"training": {"init": {"what": "ImageNet"}}} for part in metadata.parts[:1]]
    assert derives_from_published(replace(metadata, parts=[*metadata.parts[1:], *parts]))


def test_metadata_from_before_there_were_parts_is_read(saved, monkeypatch):
    """Written as version 3 was: without the field."""
    from clfew.models import artifacts

    encoder = encoder_like(SMALL)
    path = saved()[0].with_name("encoder.safetensors")

    def without_parts(metadata):
        row = asdict(metadata)
        del row["parts"]
        return row | {"format_version": 3}

    monkeypatch.setattr(artifacts, "asdict", without_parts)
    artifacts.save_encoder(path, encoder, nn.Sequential(), SMALL, np.array([], dtype=np.uint64))
    assert read_metadata(path)[0].parts == []
    assert load_encoder(path)[0].dim == 32
