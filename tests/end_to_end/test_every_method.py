"""Every pretraining method as a user runs it, and the other commands on its artifact."""

import json

import pytest
import safetensors.numpy
from marks import rest_is_slow

from clfew.methods.base import METHODS

OTHERS = [name for name in METHODS if name != "simclr"]
SMALL = ("--encoder", "resnet8-w16", "--batch", "32", "--epochs", "2")


@pytest.fixture(scope="module")
def many(clfew, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    images(folder / "photos", each=30, size=24)
    return folder


@pytest.mark.parametrize("method", rest_is_slow(OTHERS))
def test_from_pretraining_to_predictions(clfew, many, method):
    run, made = many / method, ("--from", method)
    clfew.ok(
        "pretrain", "photos", "--method", method, "--save-samples", "--out", method, *SMALL, cwd=many
    )
    assert (run / "samples.png").read_bytes().startswith(b"\x89PNG")
    config = json.loads((run / "config.json").read_text())
    assert config["recipe"]["crop_side"] == METHODS[method].crop_side
    metadata = json.loads(clfew.ok("info", method, "--format", "json", cwd=many).stdout)
    assert metadata["method"] == method and metadata["kind"] == "encoder"
    clfew.ok("embed", "photos", *made, "--out", f"{method}-features", cwd=many)
    features = safetensors.numpy.load_file(many / f"{method}-features/features.safetensors")["features"]
    assert features.shape == (90, metadata["dim"])
    fine = f"{method}-classifier"
    clfew.ok("finetune", "photos", "--labels", "3/class", *made, "--out", fine, cwd=many)
    clfew.ok("eval", "--from", fine, "--out", f"{method}-eval", cwd=many)
    row = clfew.ok(
        "predict", "photos/ring/003.png", "--from", fine, "--format", "jsonl", cwd=many
    ).rows()[0]
    assert row["label"] in ("cross", "ring", "stripe") if "label" in row else row


@pytest.mark.slow
def test_a_stage_is_read_by_finetune_and_embed_and_stays_in_the_classifier(clfew, many):
    clfew.ok("pretrain", "photos", "--method", "jigsaw", "--out", "staged", *SMALL, cwd=many)
    clfew.ok("embed", "photos", "--from", "staged", "--stage", "1", "--out", "first", cwd=many)
    assert safetensors.numpy.load_file(many / "first/features.safetensors")["features"].shape == (90, 16)
    clfew.ok(
        "finetune",
        "photos",
        "--labels",
        "3/class",
        "--mode",
        "linear",
        "--stage",
        "2",
        "--from",
        "staged",
        "--out",
        "second",
        cwd=many,
    )
    metadata = json.loads(clfew.ok("info", "second", "--format", "json", cwd=many).stdout)
    assert (metadata["stage"], metadata["dim"]) == (2, 32)
    clfew.ok("predict", "photos/ring/003.png", "--from", "second", cwd=many)
    clfew.ok("eval", "--from", "second", "--out", "second-eval", cwd=many)
    message = clfew.refused(
        "embed", "photos", "--from", "staged", "--stage", "9", "--out", "ninth", cwd=many
    )
    assert "there is no stage 9" in message and "1 to" in message


@pytest.mark.slow
def test_variants_of_methods(clfew, many):
    for number, extra in enumerate(
        [
            ("denoising", "--stacked"),
            ("denoising", "--corruption", "gaussian"),
            ("inpainting", "--mask", "centre", "--adversarial"),
            ("simclr", "--loss", "dcl"),
        ]
    ):
        name = f"variant-{number}"
        message = clfew.ok(
            "pretrain",
            "photos",
            "--init",
            "scratch",
            "--out",
            name,
            *SMALL,
            "--method",
            *extra,
            cwd=many,
        ).stderr
        assert f"{extra[1].removeprefix('--')} {extra[2] if len(extra) == 3 else ''}".strip() in message
        options = json.loads((many / name / "config.json").read_text())["options"]
        assert options[extra[1].removeprefix("--")] in (True, extra[2] if len(extra) > 2 else True)


@pytest.mark.parametrize(
    ("options", "rc", "words"),
    [
        (("--method", "jigsa"), 2, "did you mean jigsaw?"),
        (("--method", "moco"), 2, "choose simclr, byol"),
        (("--method", "byol", "--temperature", "0.5"), 2, "--temperature is no option of --method byol"),
        (("--method", "simclr", "--stacked"), 2, "it belongs to denoising"),
        (("--method", "denoising", "--corruption", "salt"), 2, "choose masking, salt-and-pepper"),
        (("--method", "inpainting", "--mask", "middle"), 2, "choose random or centre"),
        (("--method", "colorization", "--init", "imagenet"), 1, "--init scratch"),
        (("--method", "inpainting", "--encoder", "vit_b_16", "--size", "32"), 1, "convolutional"),
        (("--method", "jigsaw", "--encoder", "vit_b_16", "--size", "32"), 1, "convolutional"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(clfew, many, options, rc, words):
    message = clfew.refused("pretrain", "photos", *options, "--out", "never", rc=rc, cwd=many)
    assert words in message
