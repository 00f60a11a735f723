"""Images of wide pixels and bands go through every command on one scale, that of the first run."""

import csv
import json

import numpy as np
import pytest
import safetensors.numpy
import tifffile

from clfew.data.pixel_scale import PixelScale
from clfew.models.kept_scale import kept_scale
from clfew.models.metadata import read_metadata

TRAIN = "--encoder resnet8-w8 --epochs 1 --init scratch --size 16"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clfew):
    """Two classes that only the fourth of four bands tells apart, and a run that learned from it."""
    folder, random = tmp_path_factory.mktemp("bands"), np.random.default_rng(0)
    for name, brightness in (("dry", 600), ("wet", 2400)):
        (folder / "data" / name).mkdir(parents=True)
        for i in range(14):
            pixels = random.integers(0, 3000, (20, 20, 4))
            pixels[..., 3] = brightness + random.integers(-200, 200, (20, 20))
            tifffile.imwrite(
                folder / f"data/{name}/{i}.tif",
                pixels.astype(np.uint16),
                photometric="minisblack",
                planarconfig="contig",
            )
    run(clfew, folder, f"pretrain data --bands 4,4,4 {TRAIN} --out pretrained")
    run(clfew, folder, "finetune data --labels 4/class --mode linear --from pretrained --out tuned")
    return folder


def run(clfew, folder, words):
    return clfew.ok(*words.split(), cwd=folder)


def scale_in(file):
    return kept_scale(read_metadata(file)[0])


def test_the_artifacts_keep_the_scale(folder):
    first = scale_in(folder / "pretrained/encoder.safetensors")
    assert first.bands == (4, 4, 4) and 300 < first.low < 500 and 2500 < first.high < 2700
    assert scale_in(folder / "tuned/classifier.safetensors") == first


def test_it_is_said(clfew, folder):
    found = run(clfew, folder, "finetune data --labels 4/class --mode linear --from pretrained")
    assert "pixels as learned from: " in found.stderr and "bands 4, 4, 4" in found.stderr
    again = run(clfew, folder, f"pretrain data {TRAIN}")
    assert "bands 1, 2, 3 of 4 (--bands takes others)" in again.stderr
    assert " white (percentiles 0.1 and 99.9 of 28 images)" in again.stderr


def test_predict_and_eval_read_one_image_on_the_scale_of_the_source(clfew, folder):
    """One image alone, whose own percentiles would make it as bright as any other."""
    for name in ("dry", "wet"):
        found = run(clfew, folder, f"predict data/{name}/0.tif --from tuned --format json")
        assert json.loads(found.stdout)[0]["label"] == name
    tested = run(clfew, folder, "eval --from tuned --format json")
    assert json.loads(tested.stdout)["accuracy"] == 1.0
    elsewhere = run(clfew, folder, "eval data --from tuned --format json")
    assert "pixels as learned from" in json.loads(elsewhere.stdout)["read_as"]


def test_embed_and_distill_keep_it(clfew, folder):
    run(clfew, folder, "embed data --from pretrained --out features")
    features = safetensors.numpy.load_file(folder / "features/features.safetensors")["features"]
    with open(folder / "features/paths.csv", newline="") as file:
        wet = np.array([row["path"].startswith("wet") for row in csv.DictReader(file)])
    between = np.linalg.norm(features[wet].mean(0) - features[~wet].mean(0))
    assert between > 3 * features[wet].std(0).max()
    run(clfew, folder, "distill data --from tuned --epochs 1 --keep --out student")
    first = scale_in(folder / "pretrained/encoder.safetensors")
    assert scale_in(folder / "student/classifier.safetensors") == first


@pytest.mark.slow
def test_compare_takes_bands(clfew, folder):
    words = "compare data --bands 4,4,4 --methods simclr --epochs 1 --labels 4/class --draws 2"
    found = run(clfew, folder, f"{words} --encoder resnet8-w8 --size 16 --out compared --format json")
    rows = {row["method"]: row for row in json.loads(found.stdout)["rows"]}
    assert rows["raw-pixels"]["mean"] == 1.0
    scale = scale_in(folder / "compared/pretrain-simclr-0/encoder.safetensors")
    assert scale == scale_in(folder / "pretrained/encoder.safetensors")


def test_a_resumed_run_keeps_it(clfew, folder):
    config = folder / "again/config.json"
    run(clfew, folder, f"pretrain data --bands 4,4,4 {TRAIN} --out again")
    first = (folder / "again/encoder.safetensors").read_bytes()
    (folder / "again/encoder.safetensors").unlink()
    assert json.loads(config.read_text())["pixels"]["bands"] == [4, 4, 4]
    run(clfew, folder, "pretrain --resume again")
    assert (folder / "again/encoder.safetensors").read_bytes() == first
    refused = clfew("pretrain", "--resume", "again", "--bands", "1,2,3", cwd=folder)
    assert refused.rc == 2 and "--bands 1,2,3 cannot be changed on resume" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "rc", "said"),
    [
        ("finetune data --labels 4/class --from pretrained --bands 1,2,3", 2, "are other bands than"),
        (
            "finetune data --labels 4/class --from scratch --bands 1,2",
            2,
            "does not name one band or three",
        ),
        ("pretrain data --bands 4,3,zwei", 2, "does not name one band or three"),
        ("pretrain data --bands 0,1,2", 2, "by numbers from 1"),
        (f"pretrain data --bands 5,3,2 {TRAIN}", 1, "it has 4 bands, and band 5 is taken"),
        ("embed data --init scratch --encoder resnet8-w8 --bands 9", 1, "it has 4 bands, and band 9"),
    ],
)
def test_mistakes_are_one_sentence(clfew, folder, words, rc, said):
    found = clfew(*words.split(), cwd=folder)
    assert found.rc == rc and said in found.stderr and "hint: " in found.stderr


def test_encoders_on_different_scales_are_not_mixed(clfew, folder):
    run(clfew, folder, f"pretrain data --bands 4 {TRAIN} --out other")
    words = "finetune data --labels 4/class --from pretrained --from other"
    found = clfew(*words.split(), cwd=folder)
    assert found.rc == 1 and "different scales" in found.stderr


def test_whole_16_bits_are_a_scale_too(clfew, folder):
    """Of darker images of the same kind, too, which have another scale of their own."""
    random = np.random.default_rng(1)
    for name, highest in (("whole", 65535), ("darker", 9000)):
        for label in ("a", "b"):
            (folder / name / label).mkdir(parents=True)
            for i in range(12):
                pixels = random.integers(0, highest, (20, 20)).astype(np.uint16)
                tifffile.imwrite(folder / f"{name}/{label}/{i}.tif", pixels)
    run(clfew, folder, f"pretrain whole {TRAIN} --out of-whole")
    run(clfew, folder, f"pretrain darker {TRAIN} --out of-darker")
    assert scale_in(folder / "of-whole/encoder.safetensors") == PixelScale()
    words = "finetune darker --labels 2/class --mode linear --from of-whole --out of-both"
    run(clfew, folder, words)
    assert scale_in(folder / "of-both/classifier.safetensors") == PixelScale()
    words = "finetune darker --labels 2/class --from of-whole --from of-darker"
    found = clfew(*words.split(), cwd=folder)
    assert found.rc == 1 and "different scales" in found.stderr
    words = "distill --from of-both --init of-darker --keep --epochs 1"
    refused = clfew(*words.split(), cwd=folder)
    assert refused.rc == 1 and "different scales" in refused.stderr
