"""`clfew compare`: compares pretraining methods with the same budget and the same labels."""

import copy
import shlex
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clfew import console
from clfew.commands.comparison import (
    Cells,
    Images,
    Settings,
    accuracy_of,
    features_by_stage,
    objective_of,
    open_images,
    pixels_of,
    rows_of,
    seconds_of,
)
from clfew.commands.pretrain import pretrain
from clfew.commands.pretrain import resume as resume_pretraining
from clfew.data.labels import parse_labels
from clfew.errors import Stopped, UsageError, UserError
from clfew.finetuning.start import Start, start_from_artifact, start_from_scratch
from clfew.methods.base import METHODS
from clfew.methods.setup import DEFAULT_MINUTES, estimate_statistics, options_of
from clfew.report.comparison import write_comparison
from clfew.runs.files import write_json
from clfew.runs.folders import Run, check_new, check_unchanged, new_run, read_config, resumed_run
from clfew.runs.locks import held
from clfew.training.batch import TrainingData
from clfew.training.device import set_threads
from clfew.training.signals import StopRequest

BASELINES = {
    "raw-pixels": "raw pixels, logistic regression",
    "random": "random encoder",
    "scratch": "same network from scratch",
}
MODES = ("linear", "knn", "propagate", "full")
_SECONDS_A_CELL = 4.0
"""How long a classifier takes to fit and test, roughly; used to estimate the time that is left."""


def compare(
    source: str,
    *,
    methods: str = "all",
    labels: str = "1%,5%,10%",
    draws: int = 5,
    seeds: int = 1,
    minutes: float | None = None,
    epochs: float | None = None,
    encoder: str = "auto",
    size: int | None = None,
    mode: str = "linear",
    flip: bool = True,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    out: Path | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Pretrains with each method and tests classifiers on them, one for each budget and label sample.

    methods: names separated by commas, or "all". labels: budgets, see `parse_labels`. draws: number of
    label samples per budget, the same samples for all methods. seeds: number of pretraining runs per
    method. minutes or epochs: the budget of each pretraining run. mode: how a classifier is trained:
    "linear", "knn" and "propagate" on frozen features of the stage that cross-validation on the labels
    chooses, "full" with the whole network. Returns the folder and the result: `rows`, one for each
    method and budget, and `pretraining`, one for each method and seed. Raises UserError; raises Stopped
    after a signal.
    """
    arguments = {
        "source": source,
        "methods": methods,
        "labels": labels,
        "draws": draws,
        "seeds": seeds,
        "minutes": minutes,
        "epochs": epochs,
        "encoder": encoder,
        "size": size,
        "mode": mode,
        "flip": flip,
        "seed": seed,
        "device": device,
        "precision": precision,
        "threads": threads,
    }
    check_new(out)
    if minutes is None and epochs is None:
        minutes = DEFAULT_MINUTES
    settings = Settings(
        source,
        _methods(methods),
        _split(labels),
        draws,
        seeds,
        minutes,
        epochs,
        encoder,
        size,
        mode,
        flip,
        seed,
        device,
        precision,
        threads,
    )
    _check(settings)
    set_threads(threads)
    images, encoder_name = open_images(settings)  # Before a folder is made: this may raise.
    for method in settings.methods:
        objective_of(method, encoder_name, images)
    settings = replace(
        settings, source=images.source.spec, device=str(images.device), threads=torch.get_num_threads()
    )
    run = new_run("compare", out)
    with held(run.folder):
        run.write_bad_images(images.cache.bad)
        run.write_config(
            {
                "command": "compare",
                "arguments": arguments,
                "settings": asdict(settings),
                "source": images.source.spec,
                "digest": images.source.digest(),
            }
        )
        return _run(run, settings, images, encoder_name)


def resume(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Resumes a comparison that was stopped. Raises UserError."""
    with resumed_run(folder, "compare") as config:
        settings = Settings(**config["settings"])
        _check(settings)
        set_threads(settings.threads)
        images, encoder_name = open_images(settings)
        check_unchanged(folder, config, images.source.digest())
        return _run(Run(folder), settings, images, encoder_name)


def _methods(names: str) -> list[str]:
    return list(METHODS) if names == "all" else _split(names)


def _split(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _check(settings: Settings) -> None:
    for method in settings.methods:
        if method not in METHODS:
            raise UsageError(
                f"--methods {method} is not known.", f"choose all, or some of {', '.join(METHODS)}."
            )
    if not settings.methods or not settings.labels:
        raise UsageError(
            "There is nothing to compare.", "for example: --methods simclr,byol --labels 1%,5%"
        )
    if settings.mode not in MODES:
        raise UsageError(f"--mode {settings.mode} is not known.", f"choose {', '.join(MODES)}.")
    if settings.minutes is not None and settings.epochs is not None:
        raise UsageError("--epochs and --minutes are two budgets for one run.", "give one of them.")
    for budget in settings.labels:
        if parse_labels(budget).file is not None:
            raise UsageError(f"--labels {budget} is a file.", "give budgets, such as 1%,5% or 2/class.")


def _run(run: Run, settings: Settings, images: Images, encoder: str) -> tuple[Path, dict[str, Any]]:
    command = f"clfew compare --resume {shlex.quote(str(run.folder))}"
    with StopRequest() as stop:

        def check() -> None:
            if stop.signal:
                raise Stopped(stop.signal, command)

        cells = Cells(run.folder / "cells.json", check)
        _say_plan(run, settings, images, encoder, cells)
        failed: dict[str, UserError] = {}
        try:
            for method in settings.methods:
                for number in range(settings.seeds):
                    check()
                    try:
                        _pretrain(run, settings, images, encoder, method, number)
                    except UserError as error:  # The other methods can still be compared.
                        failed[method] = error
                        if len(failed) == len(settings.methods):
                            raise
                        console.say(f"failed     {method}: {error.message}")
                        break
            _baselines(settings, images, encoder, cells)
            for method in (m for m in settings.methods if m not in failed):
                for number in range(settings.seeds):
                    check()
                    start = start_from_artifact(
                        _folder(run, method, number) / "encoder.safetensors", None
                    )
                    _evaluate(f"{method}/{number}", start, settings.mode, settings, images, cells)
        except Stopped as stopped:  # It names one training, but the whole comparison is resumed.
            raise Stopped(stopped.signal, command) from None
    messages = {method: error.message for method, error in failed.items()}
    result = _result(run, settings, images, encoder, cells, messages)
    write_comparison(run.folder, result)
    write_json(run.folder / "result.json", result)
    console.say(f"saved      {run.folder / 'compare.html'} and compare.png")
    return run.folder, result


def _say_plan(run: Run, settings: Settings, images: Images, encoder: str, cells: Cells) -> None:
    runs = [(method, number) for method in settings.methods for number in range(settings.seeds)]
    left = [m for m, n in runs if not (_folder(run, m, n) / "encoder.safetensors").exists()]
    networks = len(runs) + 2 * settings.seeds  # A random one and one from scratch for each seed.
    total = (networks + 1) * len(settings.labels) * settings.draws
    console.say(
        f"plan       {len(runs)} pretraining runs of {encoder} at {images.size} px on "
        f"{images.count:,} images and {total} classifiers, tested on {len(images.test):,} images"
    )
    finished = len(runs) - len(left)
    if finished or cells.done:
        console.say(f"           {finished} runs and {len(cells.done)} classifiers are finished already")
    if settings.minutes is not None:
        training = 60 * settings.minutes * len(left)
    else:
        epochs = settings.epochs or 0.0
        each = {m: seconds_of(m, encoder, images, epochs) for m in set(left)}
        training = sum(each[m] for m in left)
    seconds = training + _SECONDS_A_CELL * (total - len(cells.done))
    console.say(f"           about {seconds / 60:.0f} min to go")


def _folder(run: Run, method: str, number: int) -> Path:
    return run.folder / f"pretrain-{method}-{number}"


@console.without_next_command()
def _pretrain(
    run: Run, settings: Settings, images: Images, encoder: str, method: str, number: int
) -> None:
    folder = _folder(run, method, number)
    if (folder / "encoder.safetensors").exists():
        return
    place = f"{settings.methods.index(method) + 1} of {len(settings.methods)}"
    console.say("")
    console.say(f"{place:<10} {method}" + (f", seed {number}" if settings.seeds > 1 else ""))
    if read_config(folder):
        resume_pretraining(folder, settings.device, settings.threads)
        return
    shutil.rmtree(folder, ignore_errors=True)  # A run that was stopped before it could be resumed.
    pretrain(
        settings.source,
        method=method,
        encoder=encoder,
        size=images.size,
        epochs=settings.epochs,
        minutes=settings.minutes,
        options=options_of(method, {}),
        flip=settings.flip,
        init="scratch",
        save_samples=True,
        seed=settings.seed + number,
        split_seed=settings.seed,
        device=settings.device,
        precision=settings.precision,
        threads=settings.threads,
        out=folder,
    )


def _baselines(settings: Settings, images: Images, encoder: str, cells: Cells) -> None:
    """Measures the baselines, which every comparison has, with as many network seeds as the methods."""
    plan = _cells(settings, images)
    if not cells.has("raw-pixels/0", plan):
        pixels = [pixels_of(images)]
        cells.fill(
            "raw-pixels/0", plan, lambda _, sample: accuracy_of(pixels, images, sample, "linear", 0)
        )
    for number in range(settings.seeds):
        start = start_from_scratch(
            images.source,
            None,
            encoder,
            images.size,
            settings.flip,
            images.device,
            settings.seed + number,
            settings.seed,
        )
        mode = "linear" if settings.mode == "full" else settings.mode
        whole = TrainingData(images.cache.pixels, images.cache.aspects, images.pool)
        untouched = copy.deepcopy(start)
        estimate_statistics(start.encoder, whole, images.device)
        _evaluate(f"random/{number}", start, mode, settings, images, cells)
        _evaluate(f"scratch/{number}", untouched, "full", settings, images, cells)


def _cells(settings: Settings, images: Images) -> list[tuple[str, int, np.ndarray]]:
    return [(b, i, images.label_samples[b][i]) for b in settings.labels for i in range(settings.draws)]


def _evaluate(
    name: str, start: Start, mode: str, settings: Settings, images: Images, cells: Cells
) -> None:
    plan = _cells(settings, images)
    if cells.has(name, plan):
        return
    stages = [] if mode == "full" else features_by_stage(start.encoder, images)

    def measure(number: int, sample: np.ndarray) -> dict[str, Any]:
        return accuracy_of(stages, images, sample, mode, settings.seed + number, start)

    with console.progress_bar(f"test {name.split('/')[0]}") as update:
        cells.fill(name, plan, measure, update)


def _result(
    run: Run, settings: Settings, images: Images, encoder: str, cells: Cells, failed: dict[str, str]
) -> dict[str, Any]:
    pretraining, methods = [], [m for m in settings.methods if m not in failed]
    for method in methods:
        for number in range(settings.seeds):
            folder = _folder(run, method, number)
            config, rows = read_config(folder), Run(folder).metrics()
            pretraining.append(
                {
                    "method": method,
                    "seed": settings.seed + number,
                    "epochs": config["epochs"],
                    "seconds": rows[-1]["seconds"],
                    "images_per_second": float(np.median([r["images_per_second"] for r in rows])),
                    "loss": rows[-1]["loss"],
                    "optimizer": config["plan"]["optimizer"],
                    "learning_rate": config["plan"]["learning_rate"],
                    "samples": f"{folder.name}/samples.png",
                }
            )
    return {
        "source": read_config(run.folder)["arguments"]["source"],  # As the user typed it.
        "images": images.count,
        "test_images": len(images.test),
        "encoder": encoder,
        "size": images.size,
        "mode": settings.mode,
        "draws": settings.draws,
        "seeds": settings.seeds,
        "minutes": settings.minutes,
        "epochs": settings.epochs,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": str(images.device),
        "titles": {**{m: m for m in settings.methods}, **BASELINES},
        "rows": rows_of(cells, [*BASELINES, *methods], images.label_samples, settings),
        "failed": failed,
        "pretraining": pretraining,
    }
