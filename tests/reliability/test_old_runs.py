"""Runs, artifacts and states that an earlier version wrote load, predict the same, and resume.

old_runs.zip holds small runs of version 0.1.0 on images that `write_images` paints again, the same
to the byte: finished ones, ones that a signal stopped (`NAME-stopped`), and in `expected/` what those
became where nothing stopped them.
"""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from clfew import evaluate, predict, register_encoder
from clfew.commands import compare, distill, finetune, pretrain
from clfew.models.artifacts import load_classifier, load_encoder
from clfew.models.metadata import read_metadata
from clfew.runs.checksum import add_checksum
from clfew.runs.files import digest_of
from clfew.runs.folders import is_finished

CLASSES = ("cross", "ring", "stripe")
MADE_IN = "/tmp/old-runs"
"""The folder that the runs name."""

METHODS = ("simclr", "jigsaw", "split-brain", "colorization")
MODES = ("linear", "knn", "propagate")


def tiny(size):
    """The encoder of all these runs: 8 features."""
    layers = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def write_images(folder, each=16, side=16):
    y, x = np.mgrid[:side, :side]
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number in range(each):
            noise = (x * 7 + y * 13 + x * y * (number + 3) + number * 29) % 61
            pixels = np.stack([noise + (110 if c == label else 20 + number) for c in range(3)], axis=2)
            file = folder / name / f"{number:02d}.ppm"
            file.write_bytes(b"P6\n%d %d\n255\n" % (side, side) + pixels.astype(np.uint8).tobytes())
            os.utime(file, ns=(1_700_000_000 * 10**9, 1_700_000_000 * 10**9))


def move(artifact, folder):
    """The artifact with the same tensors, of images in another folder; and its digest, old and new."""
    before = digest_of(artifact)
    tensors, (metadata, _) = safetensors.torch.load_file(artifact), read_metadata(artifact)
    description = json.dumps(vars(metadata)).replace(MADE_IN, str(folder))
    artifact.write_bytes(add_checksum(safetensors.torch.save(tensors, {"clfew": description})))
    return before, digest_of(artifact)


@pytest.fixture
def old(tmp_path):
    """The runs, whose settings name this folder's images and runs."""
    register_encoder("old-tiny", tiny)
    with zipfile.ZipFile(Path(__file__).with_name("old_runs.zip")) as archive:
        archive.extractall(tmp_path)
    write_images(tmp_path / "images")
    for file in tmp_path.rglob("config.json"):
        file.write_text(file.read_text().replace(MADE_IN, str(tmp_path)))
    return tmp_path


def images_of(predictions, folder):
    return [str(folder / "images" / row["path"]) for row in predictions]


def assert_close(artifact, expected):
    got, wanted = safetensors.torch.load_file(artifact), safetensors.torch.load_file(expected)
    # What thresholds are chosen by, old versions did not keep.
    assert {name for name in got if not name.startswith("evidence.")} == set(wanted)
    for name, tensor in wanted.items():
        # Another processor's sums end in other digits.
        torch.testing.assert_close(got[name], tensor, rtol=1e-2, atol=1e-3, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("mode", [*MODES, "expected/full", "expected/distill"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_classifier_predicts_what_it_predicted(old, mode, precision):
    expected = json.loads((old / mode / "predictions.json").read_text())
    rows = predict(images_of(expected, old), str(old / mode), device="cpu", precision=precision)
    for row, wanted in zip(rows, expected, strict=True):
        assert row.top[0][0] == wanted["label"]
        off = 1e-4 if precision == "fp32" else 0.05
        assert dict(row.top) == pytest.approx(dict(map(tuple, wanted["top"])), abs=off)


@pytest.mark.parametrize("mode", MODES)
def test_a_classifier_is_tested_on_the_split_that_it_kept(old, monkeypatch, mode):
    monkeypatch.chdir(old)
    move(old / mode / "classifier.safetensors", old)
    _, report = evaluate(origin=str(old / mode), device="cpu", precision="fp32")
    expected = json.loads((old / mode / "accuracy.json").read_text())
    assert {name: report[name] for name in ("accuracy", "n", "split")} == {
        name: expected[name] for name in ("accuracy", "n", "split")
    }
    assert report["ece"] == pytest.approx(expected["ece"], abs=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_an_encoder_loads(old, method):
    encoder, _, metadata, seen = load_encoder(old / "expected" / method / "encoder.safetensors")
    assert (metadata.method, metadata.encoder.removeprefix("split:")) == (method, "old-tiny")
    assert len(seen) == 39
    assert encoder(torch.rand(2, 3, 16, 16)).shape == (2, encoder.dim)


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_pretraining_run_resumes_to_the_same_weights(old, monkeypatch, method):
    monkeypatch.chdir(old)
    run = old / f"{method}-stopped"
    steps = len((run / "metrics.jsonl").read_text().splitlines())
    assert steps and not is_finished(run)
    pretrain.resume(run)
    assert_close(run / "encoder.safetensors", old / "expected" / method / "encoder.safetensors")


def test_a_stopped_finetuning_run_resumes_to_the_same_weights(old, monkeypatch):
    monkeypatch.chdir(old)
    before, after = move(old / "simclr/encoder.safetensors", old)
    config = old / "full-stopped/config.json"
    config.write_text(config.read_text().replace(before, after))
    _, result = finetune.resume(old / "full-stopped")
    expected = json.loads((old / "expected/full/result.json").read_text())
    assert [sample["accuracy"] for sample in result["draws"]] == pytest.approx(
        [sample["accuracy"] for sample in expected["draws"]], abs=0.12
    )
    path = old / "full-stopped/classifier.safetensors"
    assert_close(path, old / "expected/full/classifier.safetensors")
    load_classifier(path)


def test_a_stopped_distillation_resumes_to_the_same_weights(old, monkeypatch):
    monkeypatch.chdir(old)
    before, after = move(old / "linear/classifier.safetensors", old)
    config = old / "distill-stopped/config.json"
    config.write_text(config.read_text().replace(before, after))
    _, result = distill.resume(old / "distill-stopped")
    assert result["kept"]
    path = old / "distill-stopped/classifier.safetensors"
    assert_close(path, old / "expected/distill/classifier.safetensors")


def test_a_stopped_comparison_resumes(old, monkeypatch):
    monkeypatch.chdir(old)
    cells = (old / "compare-stopped/cells.json").read_text()
    assert json.loads(cells)
    _, result = compare.resume(old / "compare-stopped")
    methods = {row["method"] for row in result["rows"]}
    assert methods == {"raw-pixels", "random", "scratch", "simclr", "denoising"}
