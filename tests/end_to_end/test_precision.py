"""Every command, method, mode and head in both precisions, whatever the processor computes in.

Without bfloat16 arithmetic a processor emulates it, so the networks here are the smallest there are.
"""

import json
import statistics

import numpy as np
import pytest
import safetensors.numpy
from marks import rest_is_slow
from PIL import Image

from clfew import predict

METHODS = [
    ("simclr",),
    ("simclr", "--loss", "dcl"),
    ("byol",),
    ("jigsaw",),
    ("context-prediction",),
    ("denoising",),
    ("denoising", "--stacked"),
    ("colorization",),
    ("inpainting",),
    ("inpainting", "--adversarial"),
    ("split-brain",),
    ("counting",),
]
MODES = ("linear", "weighted", "knn", "propagate", "full", "auto")
PRECISIONS = ("fp32", "bf16")
NEIGHBOURS = 12
SURE = {"knn": 3 / NEIGHBOURS}
"""A margin between the two likeliest classes that rounding must not turn round, 0.05 where none is
named. Rounding may put one neighbour in another's place, which moves about 2 / NEIGHBOURS at once."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clfew):
    """Images that are not all easy, a pretraining run in each precision, and a classifier of each mode
    on the one in fp32."""
    folder = tmp_path_factory.mktemp("precision")
    random = np.random.default_rng(0)
    for number, name in enumerate(("cross", "ring", "stripe")):
        (folder / "images" / name).mkdir(parents=True)
        for index in range(24):
            pixels = random.integers(0, 200, (16, 16, 3))
            pixels[..., number] += random.integers(0, 50)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / name / f"{index:02d}.png")
    for precision in PRECISIONS:
        run(
            clfew,
            folder,
            "pretrain images --encoder resnet8-w8 --epochs 4 --batch 16 --size 16 "
            f"--init scratch --precision {precision} --out encoder-{precision}",
        )
    for mode in MODES:
        finetune(clfew, folder, mode, "fp32", f"classifier-{mode}")
    return folder


def run(clfew, cwd, *parts):
    """Runs a command that must succeed; its words are in the parts."""
    return clfew.ok(*" ".join(map(str, parts)).split(), cwd=cwd)


def finetune(clfew, folder, mode, precision, out, *options):
    # Cross-validation on three labels a class is quick; in mode knn, labels are neighbours.
    labels = f"{NEIGHBOURS}/class" if mode == "knn" else "3/class"
    return run(
        clfew,
        folder,
        f"finetune images --from encoder-{precision} --labels {labels} --mode "
        f"{mode} --epochs 12 --precision {precision} --out {out}",
        *options,
    )


def predictions(clfew, folder, classifier, precision, *images):
    done = run(
        clfew,
        folder,
        "predict",
        *(images or ["images"]),
        f"--from {classifier} --format jsonl --top 3 --precision {precision}",
    )
    return [(row["path"], row["label"], dict(row["top"])) for row in done.rows()]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", rest_is_slow(((method,) for method in METHODS), 3), ids=" ".join)
def test_every_method_trains(clfew, folder, tmp_path, method, precision):
    run(
        clfew,
        tmp_path,
        f"pretrain {folder / 'images'} --method",
        *method,
        "--encoder resnet8-w8 --epochs 1 --size 32 --batch 16 --init scratch "
        f"--precision {precision} --out run",
    )
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([row["loss"] for row in rows]).all()
    assert json.loads((tmp_path / "run/config.json").read_text())["plan"]["precision"] == precision
    tensors = safetensors.numpy.load_file(tmp_path / "run/encoder.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} <= {np.dtype("f4"), np.dtype("i8")}


@pytest.mark.parametrize("precision", rest_is_slow(reversed(PRECISIONS)))
def test_pretrained_weights_adapt(clfew, folder, tmp_path, precision):
    weights = folder / "encoder-fp32"
    for adapt in ("layer", "network"):
        run(
            clfew,
            tmp_path,
            f"pretrain {folder / 'images'} --init {weights} --adapt {adapt} --epochs "
            f"1 --batch 16 --precision {precision} --out {adapt}",
        )
        run(
            clfew,
            tmp_path,
            f"finetune {folder / 'images'} --labels 2/class --from {adapt} --mode "
            f"linear --precision {precision} --out on-{adapt}",
        )


@pytest.mark.parametrize("mode", rest_is_slow(reversed(MODES)))
def test_every_mode_is_fitted_and_tested_in_bf16(clfew, folder, mode):
    finetune(clfew, folder, mode, "bf16", f"bf16-{mode}", "--repeat", 2)
    for classifier in (f"bf16-{mode}", f"classifier-{mode}"):
        done = run(
            clfew,
            folder,
            f"eval images --from {classifier} --precision bf16 --format json --out tested-{classifier}",
        )
        assert 0 <= json.loads(done.stdout)["accuracy"] <= 1


def test_a_network_from_scratch_is_trained_in_bf16(clfew, folder):
    run(
        clfew,
        folder,
        "finetune images --from scratch --encoder resnet8-w8 --size 16 --labels "
        "6/class --epochs 2 --precision bf16 --out bf16-scratch",
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mode", rest_is_slow(mode for mode in MODES if mode != "auto"))
def test_a_teacher_of_every_mode_teaches(clfew, folder, mode, precision):
    done = run(
        clfew,
        folder,
        f"distill images --from classifier-{mode} --epochs 1 --batch 16 --keep "
        f"--precision {precision} --format json --out student-{mode}-{precision}",
    )
    assert json.loads(done.stdout)["kept"]
    predictions(clfew, folder, f"student-{mode}-{precision}", precision)


@pytest.mark.parametrize("mode", rest_is_slow(["full", "linear", "knn", "propagate"]))
def test_a_comparison_in_bf16(clfew, folder, tmp_path, mode):
    done = run(
        clfew,
        tmp_path,
        f"compare {folder / 'images'} --methods simclr --labels 2/class --draws "
        f"1 --epochs 1 --encoder resnet8-w8 --size 16 --mode {mode} --precision "
        "bf16 --format jsonl",
    )
    assert {row["method"] for row in done.rows()} == {"raw-pixels", "random", "scratch", "simclr"}


def test_features_in_both_precisions_are_close(clfew, folder):
    found = {}
    for precision in PRECISIONS:
        run(
            clfew,
            folder,
            f"embed images --from encoder-fp32 --precision {precision} --out features-{precision}",
        )
        path = folder / f"features-{precision}/features.safetensors"
        found[precision] = safetensors.numpy.load_file(path)["features"]
    assert found["bf16"].dtype == np.float32
    scale = found["fp32"].std()
    assert 0 < np.abs(found["fp32"] - found["bf16"]).mean() < 0.02 * scale


@pytest.mark.parametrize("mode", MODES)
def test_both_precisions_predict_the_same(clfew, folder, mode):
    exact = predictions(clfew, folder, f"classifier-{mode}", "fp32")
    rounded = predictions(clfew, folder, f"classifier-{mode}", "bf16")
    off, sure = [], 0
    for (path, label, top), (other_path, other_label, other_top) in zip(exact, rounded, strict=True):
        assert path == other_path
        first, second, *_ = sorted(top.values(), reverse=True)
        if first - second > SURE.get(mode, 0.05):
            sure += 1
            assert label == other_label, (path, top, other_top)
        off += [abs(top[name] - other_top[name]) for name in top]
    assert sure > 10
    assert statistics.median(off) <= 0.01


@pytest.mark.parametrize("mode", rest_is_slow(MODES, 2))
def test_a_prediction_does_not_depend_on_the_images_beside_it(folder, mode):
    def together(paths):
        origin = str(folder / f"classifier-{mode}")
        found = predict(paths, origin=origin, top=3, precision="fp32", device="cpu", threads=1)
        return {prediction.path: dict(prediction.top) for prediction in found}

    all_of_them = together(sorted(map(str, (folder / "images").rglob("*.png"))))
    paths = list(all_of_them)[::7]
    for count in (1, 2, 5):
        for start in range(0, len(paths), count):
            for path, top in together(paths[start : start + count]).items():
                assert top == pytest.approx(all_of_them[path], abs=1e-5)
