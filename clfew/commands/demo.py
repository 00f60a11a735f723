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
from clfew.commands.select import TO_LABEL, select_in
from clfew.data.held_out import split_source
from clfew.data.image_cache import open_image_cache
from clfew.data.label_lists import CHOSEN, read_label_list
from clfew.data.labels import parse_labels, sample_labels
from clfew.data.lists import ListFile
from clfew.data.sources import open_source
from clfew.finetuning.probes import linear_head
from clfew.models.metadata import read_metadata
from clfew.report.label_efficiency import draw_label_efficiency
from clfew.runs.files import write_bytes, write_csv, write_json
from clfew.runs.folders import new_run
from clfew.settings import FinetuneSettings, PretrainSettings, SelectSettings
from clfew.training.device import choose_device, set_threads

LABEL_SAMPLES = 5
BUDGETS = ("1/class", "1%")
METHODS = {
    "scratch": "same network from scratch",
    "raw-pixels": "logistic regression on raw pixels",
    "clfew": "clfew",
    "chosen": "clfew, labels that clfew chose",
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
    console.say(f"1 of 5     pretrain: SimCLR on 5,000 images without their labels, {minutes:g} minutes")
    common: dict[str, Any] = {"device": device, "threads": threads}
    pretrained, _ = pretrain_in(
        PretrainSettings(str(images), init="scratch", minutes=minutes, out=folder / "pretrain", **common)
    )
    console.say(f"2 of 5     finetune: few labels, {LABEL_SAMPLES} label samples, and two baselines")
    rows = _compare(images, folder, pretrained, common)
    console.say("3 of 5     select: clfew chooses as many images to label, without looking at a label")
    rows += [_chosen(images, folder, pretrained, labels, common) for labels in _budgets(rows)]
    console.say("4 of 5     eval: on 1,000 images that were not used for training")
    classifier = folder / "finetune-1%"
    evaluate(origin=str(classifier), out=folder / "eval", **common)
    console.say("5 of 5     predict: one image of each class")
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


def _chosen(
    images: Path, folder: Path, pretrained: Path, labels: int, common: dict[str, Any]
) -> dict[str, Any]:
    """Returns a row for as many labels of images that clfew chooses. What it chooses is always the same:
    there is no spread over label samples."""
    out, origin = folder / f"select-{labels}", str(pretrained)
    select_in(SelectSettings(str(images), budget=labels, origin=origin, out=out, **common))
    named = ListFile(out / TO_LABEL)
    source = open_source(str(images))
    chosen = [row.index for row in read_label_list(source, named).rows]
    filled_in = [(source.identities[i], source.classes[source.labels[i]]) for i in chosen]
    labelled = out / "labelled.csv"
    write_csv(labelled, ["path", "label", "how"], [(*row, CHOSEN) for row in filled_in])
    settings = FinetuneSettings(
        str(images),
        labels=str(labelled),
        origin=[origin],
        out=folder / f"finetune-chosen-{labels}",
        **common,
    )
    _, result = finetune_in(settings)
    return _row(labels, "chosen", [result["mean"]]) | {"ci95": result["ci95"]}


def _budgets(rows: list[dict[str, Any]]) -> list[int]:
    return sorted({row["labels"] for row in rows})


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
        "std": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
        "draws": accuracies,
    }


def _cell(row: dict[str, Any]) -> str:
    """Returns the mean of a row and, if there are several label samples, their standard deviation."""
    spread = f" ± {100 * row['std']:.1f}" if row["std"] is not None else ""
    return f"{100 * row['mean']:.1f}{spread} %"


def _show(rows: list[dict[str, Any]], folder: Path, seconds: float) -> None:
    budgets = _budgets(rows)
    by_key = {(row["labels"], row["method"]): row for row in rows}
    shown = []
    for method, title in METHODS.items():
        cells = [by_key[labels, method] for labels in budgets]
        shown.append((title, *map(_cell, cells)))
    console.print_table(
        (f"accuracy, mean ± std of {LABEL_SAMPLES} label samples", *(f"{n} labels" for n in budgets)),
        shown,
    )
    first = by_key[budgets[0], "chosen"]
    low, high = (100 * end for end in first["ci95"])
    console.write_out(
        f"{first['labels']} labels that clfew chose: {_cell(first)}, 95 % interval {low:.1f} to "
        f"{high:.1f} %, on the 1,000 test images\n"
        f"the run    {folder}  ({seconds:.0f} s)\n"
        f"report     {folder / 'eval' / 'report.html'}\n"
        f"pictures   {folder / 'label-efficiency.png'}, {folder / 'eval'}/*.png\n\n"
        "On your own images:\n"
        "  clfew pretrain ./unlabeled\n"
        "  clfew label\n"
        "  clfew predict image.jpg\n"
    )
