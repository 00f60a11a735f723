"""`clfew demo`: runs the whole pipeline on the images that come with clfew.

These are Fashion-MNIST's first 5,000 training and 1,000 test images (Xiao, Rasul, Vollgraf, 2017; MIT).
"""

import time
import zipfile
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clfew import console
from clfew.commands.evaluate import evaluate
from clfew.commands.finetune import finetune_in
from clfew.commands.predict import predict
from clfew.commands.pretraining import pretrain_in
from clfew.data.held_out import split_source
from clfew.data.image_cache import open_image_cache
from clfew.data.labels import parse_labels, sample_labels
from clfew.data.sources import open_source
from clfew.finetuning.probes import linear_head
from clfew.models.metadata import read_metadata
from clfew.report.label_efficiency import draw_label_efficiency
from clfew.runs.files import write_bytes, write_json
from clfew.runs.folders import new_run
from clfew.settings import FinetuneSettings, PretrainSettings
from clfew.training.device import choose_device, set_threads

LABEL_SAMPLES = 5
BUDGETS = ("1/class", "1%")
METHODS = {
    "scratch": "same network from scratch",
    "raw-pixels": "logistic regression on raw pixels",
    "clfew": "clfew",
}


def run(out: Path | None, *, minutes: float, device: str, threads: int | None) -> Path:
    """Unpacks the images, pretrains, fine-tunes, tests and predicts; writes demo.json and pictures.

    Returns the folder. Raises UserError if `out` exists already.
    """
    started = time.monotonic()
    set_threads(threads)
    choose_device(device)  # Raises, before anything is unpacked, if there is no such device.
    folder = new_run("demo", out).folder
    images = folder / "images"
    with (
        resources.files("clfew.commands.demo_data").joinpath("fashion-mnist-6k.zip").open("rb") as packed
    ):
        zipfile.ZipFile(packed).extractall(images)
    console.say(f"1 of 4     pretrain: SimCLR on 5,000 images without their labels, {minutes:g} minutes")
    common: dict[str, Any] = {"device": device, "threads": threads}
    pretrained, _ = pretrain_in(
        PretrainSettings(str(images), init="scratch", minutes=minutes, out=folder / "pretrain", **common)
    )
    console.say(f"2 of 4     finetune: few labels, {LABEL_SAMPLES} label samples, and two baselines")
    rows = _compare(images, folder, pretrained, common)
    console.say("3 of 4     eval: on 1,000 images that were not used for training")
    classifier = folder / "finetune-1%"
    evaluate(origin=str(classifier), out=folder / "eval", **common)
    console.say("4 of 4     predict: one image of each class")
    examples = [str(min(d.iterdir())) for d in sorted((images / "test").iterdir())]
    for row in predict(examples, str(classifier), top=1, **common):
        label, probability = row.top[0]
        console.write_out(f"{row.path}  {label} {100 * probability:.0f} %\n")
    seconds = time.monotonic() - started
    write_json(folder / "demo.json", rows)
    write_bytes(folder / "label-efficiency.png", draw_label_efficiency(rows, METHODS))
    _show(rows, folder, seconds)
    return folder


def _compare(
    images: Path, folder: Path, pretrained: Path, common: dict[str, Any]
) -> list[dict[str, Any]]:
    """Returns a row for each label budget and method, all on the same label samples."""
    metadata, _ = read_metadata(pretrained / "encoder.safetensors")
    rows = []
    for budget in BUDGETS:
        name = budget.replace("/", "-per-")
        arguments: dict[str, Any] = {"labels": budget, "repeat": LABEL_SAMPLES, **common}
        scratch_settings = FinetuneSettings(
            str(images),
            origin=["scratch"],
            encoder=metadata.encoder,
            out=folder / f"scratch-{name}",
            **arguments,
        )
        few_settings = FinetuneSettings(
            str(images), origin=[str(pretrained)], out=folder / f"finetune-{name}", **arguments
        )
        (_, scratch), (_, few) = finetune_in(scratch_settings), finetune_in(few_settings)
        accuracies = {
            "scratch": [sample["accuracy"] for sample in scratch["draws"]],
            "raw-pixels": _raw_pixels(images, budget, metadata.side),
            "clfew": [sample["accuracy"] for sample in few["draws"]],
        }
        labels = few["draws"][0]["labels"]
        rows += [_row(labels, method, values) for method, values in accuracies.items()]
    return rows


def _raw_pixels(images: Path, budget: str, side: int) -> list[float]:
    """Returns the accuracies of logistic regression on pixels, on the label samples of `finetune`."""
    source = open_source(str(images))
    cache = open_image_cache(source, side)
    split = split_source(source, cache, 0)
    pool, test = split.pool, split.test
    inputs = cache.pixels.reshape(len(source), -1).astype(np.float32) / 255
    accuracies = []
    for seed in range(LABEL_SAMPLES):
        sample = sample_labels(source, pool, parse_labels(budget), seed)
        rows, classes = np.searchsorted(pool, sample), len(source.classes)
        head, _ = linear_head(inputs[pool], rows, source.labels[sample], classes, seed)
        with torch.no_grad():
            predicted = head(torch.from_numpy(inputs[test])).argmax(1).numpy()
        accuracies.append(float((predicted == source.labels[test]).mean()))
    return accuracies


def _row(labels: int, method: str, accuracies: list[float]) -> dict[str, Any]:
    return {
        "labels": labels,
        "method": method,
        "mean": float(np.mean(accuracies)),
        "std": float(np.std(accuracies, ddof=1)),
        "draws": accuracies,
    }


def _show(rows: list[dict[str, Any]], folder: Path, seconds: float) -> None:
    budgets = sorted({row["labels"] for row in rows})
    by_key = {(row["labels"], row["method"]): row for row in rows}
    shown = []
    for method, title in METHODS.items():
        cells = [by_key[labels, method] for labels in budgets]
        shown.append((title, *(f"{100 * c['mean']:.1f} ± {100 * c['std']:.1f} %" for c in cells)))
    console.print_table(
        (f"accuracy, mean ± std of {LABEL_SAMPLES} label samples", *(f"{n} labels" for n in budgets)),
        shown,
    )
    console.write_out(
        f"the run    {folder}  ({seconds:.0f} s)\n"
        f"report     {folder / 'eval' / 'report.html'}\n"
        f"pictures   {folder / 'label-efficiency.png'}, {folder / 'eval'}/*.png\n\n"
        "On your own images:\n"
        "  clfew pretrain ./unlabeled\n"
        "  clfew finetune --labels 1%\n"
        "  clfew predict image.jpg\n"
    )
