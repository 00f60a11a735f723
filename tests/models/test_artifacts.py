import errno
import json
import os
import pickle
from dataclasses import asdict, replace

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from clfew.errors import UserError
from clfew.finetuning.probes import knn_head
from clfew.methods.simclr import projector
from clfew.models.artifacts import (
    load_classifier,
    load_encoder,
    read_evidence,
    save_classifier,
    save_encoder,
)
from clfew.models.classifier import Classifier, build_neck
from clfew.models.encoder import Encoder
from clfew.models.metadata import FORMAT_VERSION, ArtifactMetadata, read_metadata
from clfew.runs import files
from clfew.runs.checksum import add_checksum
from clfew.runs.files import write_bytes

METADATA = ArtifactMetadata(
    kind="encoder", encoder="resnet8-w8", size=16, side=20, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4],
    dim=32, method="simclr", flip=True, clfew_version="0.1.0", neck=64,
    training={"pretrain": {"epochs": 2.5}}, data={"pretrain": {"source": "/a", "split_seed": 0}},
)  # fmt: skip
LABELLED = {"source": "/a", "split_seed": 0, "labels": 6, "label_file": None}
SEEN = np.array([7, 2**64 - 1, 3], dtype=np.uint64)
CLASSES = ["cat", "dög", "x y"]


def trained(module):
    """Gives a module statistics and weights as after training: all different, so that a mix-up shows."""
    generator = torch.Generator().manual_seed(1)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.add_(0.1 * torch.rand(value.shape, generator=generator) + 0.01 * ("var" in name))
    return module.eval()


@pytest.fixture
def encoder_file(tmp_path):
    torch.manual_seed(0)
    encoder = trained(Encoder(METADATA.encoder, 16, METADATA.mean, METADATA.std))
    head = trained(projector(32, 64, 128))
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, encoder, head, METADATA, SEEN)
    return path, encoder, head


def classifier_of(mode):
    torch.manual_seed(0)
    width = 64 if mode == "full" else 0
    neck = build_neck(32, width)
    head = nn.Linear(width or 32, 3)
    if mode == "knn":
        random = np.random.default_rng(0)
        # Classes of unequal size: fewer neighbours vote than the head holds.
        labels = np.array([0] * 9 + [1] * 4 + [2] * 2)
        head = knn_head(random.normal(1, 1, (15, 32)).astype(np.float32), np.arange(15), labels, 3)
    encoder = Encoder(METADATA.encoder, 16, METADATA.mean, METADATA.std)
    classifier = Classifier(trained(encoder), trained(neck), head).eval()
    metadata = replace(
        METADATA,
        kind="classifier",
        classes=CLASSES,
        mode=mode,
        neck=width,
        data=METADATA.data | {"finetune": LABELLED},
    )
    return classifier, metadata


def classifier_file(tmp_path, mode="linear"):
    classifier, metadata = classifier_of(mode)
    path = tmp_path / "classifier.safetensors"
    save_classifier(path, classifier, metadata, SEEN, SEEN[:1])
    return path, classifier, metadata


def rewrite(path, metadata=None, tensors=None):
    """Writes the same file with other fields in its metadata or other tensors."""
    with safetensors.safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["clfew"]) | (metadata or {})
    content = {name: value for name, value in content.items() if value is not ...}
    old = safetensors.torch.load_file(path)
    new = {name: value for name, value in (old | (tensors or {})).items() if value is not None}
    whole = safetensors.torch.save(new, {"clfew": json.dumps(content)})
    path.write_bytes(add_checksum(whole) if content.get("format_version") == FORMAT_VERSION else whole)


def load(path):
    return (load_encoder if path.name.startswith("encoder") else load_classifier)(path)


@torch.no_grad()
def test_an_encoder_comes_back_with_the_first_layer_of_its_projector(encoder_file):
    path, encoder, head = encoder_file
    loaded, neck, metadata, seen = load_encoder(path)
    images = torch.rand(4, 3, 16, 16)
    features = encoder(images)
    assert torch.equal(loaded.eval()(images), features)
    assert torch.equal(neck.eval()(features), head[:3](features))
    assert metadata == METADATA
    assert seen.dtype == np.uint64 and sorted(seen) == sorted(SEEN)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["linear", "full", "propagate", "knn"])
def test_a_classifier_of_each_mode_gives_the_same_outputs(tmp_path, mode):
    path, classifier, metadata = classifier_file(tmp_path, mode)
    loaded, loaded_metadata, seen = load_classifier(path)
    images = torch.rand(6, 3, 16, 16)
    assert not any(module.training for module in loaded.modules())
    assert loaded_metadata == metadata
    assert seen["pretraining"].tolist() == sorted(SEEN.tolist())
    assert seen["finetuning"].tolist() == [7]
    assert torch.equal(loaded(images), classifier(images))


@torch.no_grad()
def test_a_network_that_computes_its_widths_with_tensors_comes_back(tmp_path):
    encoder = Encoder("regnet_y_400mf", 32, METADATA.mean, METADATA.std)
    metadata = replace(METADATA, encoder=encoder.name, size=32, dim=encoder.dim, neck=0)
    save_encoder(tmp_path / "x", encoder, nn.Sequential(), metadata, SEEN)
    loaded = load_encoder(tmp_path / "x")[0]
    assert all(torch.equal(value, encoder.state_dict()[n]) for n, value in loaded.state_dict().items())


def test_an_encoder_can_be_taken_out_of_a_classifier(tmp_path):
    path, classifier, _ = classifier_file(tmp_path, "full")
    encoder, neck, metadata, seen = load_encoder(path)
    images = torch.rand(4, 3, 16, 16)
    features = classifier.encoder(images)
    assert torch.equal(encoder.eval()(images), features)
    assert torch.equal(neck.eval()(features), classifier.neck(features))
    assert metadata.kind == "classifier" and len(seen) == 3


def test_a_file_of_version_1_is_read_correctly(encoder_file):
    path, encoder, _ = encoder_file
    rewrite(path, {"format_version": 1, "temperature": ..., "adapter": ...})
    loaded, _, metadata, _ = load_encoder(path)
    assert metadata == METADATA and metadata.temperature == 1 and metadata.adapter == 0
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded.eval()(images), encoder.eval()(images))


@torch.no_grad()
def test_temperature_and_adapter_come_back(tmp_path):
    encoder = Encoder(METADATA.encoder, 16, METADATA.mean, METADATA.std, adapter=5)
    classifier = Classifier(trained(encoder), nn.Sequential(), nn.Linear(62, 3)).eval()
    classifier.temperature = 2.5
    metadata = replace(
        METADATA,
        kind="classifier",
        classes=CLASSES,
        mode="distilled",
        neck=0,
        dim=62,
        adapter=5,
        temperature=2.5,
        data={"finetune": LABELLED},
    )
    path = tmp_path / "classifier.safetensors"
    save_classifier(path, classifier, metadata, SEEN, SEEN[:1])
    loaded, loaded_metadata, _ = load_classifier(path)
    images = torch.rand(6, 3, 16, 16)
    assert loaded_metadata == metadata and torch.equal(loaded(images), classifier(images))
    features = classifier.encoder(images)
    assert features.shape == (6, 32 + 6 * 5)
    torch.testing.assert_close(loaded(images), classifier.head(features) / 2.5)


def test_an_encoder_is_no_classifier(encoder_file):
    with pytest.raises(UserError, match="is an encoder, not a classifier") as error:
        load_classifier(encoder_file[0])
    assert "clfew finetune" in error.value.hint


def test_the_metadata_is_read_with_shapes_alone(encoder_file):
    metadata, shapes = read_metadata(encoder_file[0])
    assert metadata == METADATA and shapes["projector.0.weight"] == (64, 32)


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 5}, {"format_version": True}, {"temperature": 0.0}, {"temperature": 1},
        {"temperature": float("nan")}, {"adapter": -1}, {"adapter": 8},
        {"kind": "classifier"}, {"kind": "other"},
        {"encoder": "resnet8-w16"}, {"encoder": "resnet14-w8"}, {"encoder": "no such"}, {"encoder": 5},
        {"size": 3}, {"size": 10**6}, {"size": "16"}, {"size": 16.0}, {"side": 0}, {"side": 10**6},
        {"mean": [0.5, 0.5]}, {"mean": ["a", "b", "c"]}, {"std": None}, {"dim": 0}, {"dim": -32},
        {"neck": 63}, {"neck": -1}, {"neck": 2**40}, {"flip": 1}, {"classes": ["a", "b"]},
        {"classes": [1, 2]}, {"mode": "linear"}, {"training": []}, {"data": "x"}, {"method": ...},
        {"unknown": 1},
    ],
)  # fmt: skip
def test_impossible_metadata_is_refused(encoder_file, change):
    path = encoder_file[0]
    load_encoder(path)
    rewrite(path, change)
    with pytest.raises(UserError):
        load_encoder(path)


@pytest.mark.parametrize(
    "change",
    [
        {"dim": 33}, {"mean": [float("nan"), 0.5, 0.5]}, {"std": [0.0, 0.2, 0.2]},
        {"std": [-0.2, 0.2, 0.2]}, {"std": [float("inf"), 0.2, 0.2]},
    ],
)  # fmt: skip
def test_metadata_that_makes_features_wrong_is_refused(encoder_file, change):
    rewrite(encoder_file[0], change)
    with pytest.raises(UserError):
        load_encoder(encoder_file[0])


@pytest.mark.parametrize(
    "change",
    [
        {"classes": ["a", "b"]}, {"classes": ["a", "b", "a"]}, {"classes": ["a"]}, {"mode": "knn"},
        {"mode": "other"}, {"mode": ""}, {"kind": "encoder"}, {"neck": 64},
    ],
)  # fmt: skip
def test_metadata_that_does_not_fit_the_classifier_is_refused(tmp_path, change):
    path, _, _ = classifier_file(tmp_path)
    rewrite(path, change)
    with pytest.raises(UserError):
        load_classifier(path)


SHARES = {
    "origin": "as given",
    "is_in_labels": False,
    "classes": CLASSES,
    "share": [0.3, 0.3, 0.4],
    "low": [0, 0.1, 0.2],
    "high": [0.5, 0.5, 1],
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metric": "ap:fish"}, "its metric"),
        ({"metric": ["accuracy"]}, "its metric"),
        ({"shares": []}, "class shares are incomplete"),
        ({"shares": {**SHARES, "classes": CLASSES[:2]}}, "not those of its classes"),
        ({"shares": {**SHARES, "low": [0, 0]}}, "not those of its classes"),
        ({"shares": {**SHARES, "classes": "abc"}}, "class shares are incomplete"),
        ({"shares": {**SHARES, "origin": 1}}, "class shares are incomplete"),
        ({"shares": {**SHARES, "is_in_labels": "yes"}}, "class shares are incomplete"),
        ({"shares": {n: v for n, v in SHARES.items() if n != "high"}}, "class shares are incomplete"),
        ({"shares": {**SHARES, "low": [-1, 0, 0]}}, "between"),
        ({"shares": {**SHARES, "share": [0.5, None, 0.5]}}, "between"),
        ({"baselines": {"name": "x"}}, "baselines have no names"),
        ({"baselines": [{"accuracy": 0.5}]}, "baselines have no names"),
        ({"baselines": [{"name": "x", "accuracy": "0.5"}]}, "baselines are not between"),
        ({"baselines": [{"name": "x", "class": 3}]}, "baselines are not between"),
    ],
)
def test_what_is_kept_of_fine_tuning_is_checked(tmp_path, change, words):
    path, _, _ = classifier_file(tmp_path)
    good = {"metric": "ap:cat", "shares": SHARES, "baselines": [{"name": "x", "accuracy": 1}]}
    rewrite(path, {"training": {"finetune": good}})
    assert load_classifier(path)[1].training["finetune"] == good
    rewrite(path, {"training": {"finetune": good | change}})
    with pytest.raises(UserError, match=words):
        load_classifier(path)


EVIDENCE = {
    "test.confidence": np.array([0.9, 0.8, 0.7]),
    "test.right": np.array([True, True, False]),
    "labels.probabilities": np.full((4, 3), 1 / 3),
    "labels.classes": np.array([0, 1, 2, 0]),
    "labels.weights": np.ones(4),
}


def with_evidence(tmp_path, evidence):
    _, classifier, metadata = classifier_file(tmp_path)
    path = tmp_path / "evidence.safetensors"
    save_classifier(path, classifier, metadata, SEEN, SEEN[:1], evidence)
    return path


def test_what_thresholds_are_chosen_by_comes_back(tmp_path):
    path = with_evidence(tmp_path, EVIDENCE)
    found = read_evidence(path)
    assert set(found) == set(EVIDENCE)
    for name, values in EVIDENCE.items():
        assert found[name] == pytest.approx(values.astype(float))
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(load_classifier(path)[0](images), classifier_file(tmp_path)[1](images))
    assert read_evidence(with_evidence(tmp_path, {})) == {}


@pytest.mark.parametrize(
    "change",
    [
        {"test.right": None},
        {"labels.weights": None},
        {"test.confidence": np.array([0.9, 0.8])},
        {"test.confidence": np.array([0.9, np.nan, 0.8])},
        {"labels.probabilities": np.ones((4, 2))},
        {"labels.probabilities": np.ones(4)},
        {"labels.classes": np.zeros((4, 1), int)},
    ],
)
def test_damaged_evidence_is_refused(tmp_path, change):
    kept = {n: v for n, v in (EVIDENCE | change).items() if v is not None}
    with pytest.raises(UserError, match="evidence is damaged"):
        read_evidence(with_evidence(tmp_path, kept))


@pytest.mark.parametrize(
    "value",
    [None, torch.full((8, 3, 3, 3), float("nan")), torch.full((8, 3, 3, 3), torch.inf), torch.ones(3)],
)
def test_a_weight_that_is_missing_of_another_shape_or_not_finite_is_refused(encoder_file, value):
    rewrite(encoder_file[0], tensors={"encoder.backbone.0.weight": value})
    with pytest.raises(UserError):
        load_encoder(encoder_file[0])


def test_an_extra_weight_is_refused(encoder_file):
    rewrite(encoder_file[0], tensors={"encoder.backbone.99.weight": torch.ones(3)})
    with pytest.raises(UserError, match="do not fit"):
        load_encoder(encoder_file[0])


def test_missing_digests_are_refused(encoder_file):
    rewrite(encoder_file[0], tensors={"seen.pretraining": None})
    with pytest.raises(UserError):
        load_encoder(encoder_file[0])


def test_files_of_other_programs_are_refused(tmp_path):
    path = tmp_path / "encoder.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match=r"not a whole safetensors file \(its header cannot be read\)"):
        load_encoder(path)
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_encoder(path)
    for metadata in (None, {"format": "pt"}, {"clfew": "{"}, {"clfew": "[]"}, {"clfew": "null"}):
        path.write_bytes(safetensors.torch.save({"a": torch.ones(2)}, metadata))
        with pytest.raises(UserError):
            load_encoder(path)
    for missing in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(UserError, match="There is no file"):
            read_metadata(missing)


def test_the_metadata_survives_a_round_trip_of_json(tmp_path):
    path, _, metadata = classifier_file(tmp_path)
    with safetensors.safe_open(path, framework="numpy") as file:
        assert json.loads(file.metadata()["clfew"]) == asdict(metadata)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_of_a_file_follows_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_bytes(tmp_path / "file", b"content")
        assert os.umask(umask) == umask  # Left as it was.
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(UserError, match=r"7 bytes.*No space left"):
        write_bytes(path, b"new one")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        write_bytes(tmp_path / "none" / "file", b"x")
