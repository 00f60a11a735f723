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
from clfew.commands.compare_jobs import Comparison, Job, share_out
from clfew.commands.comparison import (
    ComparisonPlan,
    Images,
    accuracy_of,
    features_by_stage,
    objective_of,
    open_images,
    pixels_of,
    rows_of,
    seconds_of,
)
from clfew.commands.pretraining import pretrain_in, resume_in
from clfew.data.content import check_content, content_of
from clfew.data.held_out import SPLIT_RULE
from clfew.data.labels import parse_labels
from clfew.data.sources import open_source
from clfew.errors import Stopped, UsageError, UserError
from clfew.finetuning.start import Network, Start, start_from_artifact, start_from_scratch
from clfew.group.command import is_together, on_its_own, size, together
from clfew.methods.base import METHODS
from clfew.methods.setup import DEFAULT_MINUTES, estimate_statistics
from clfew.report.comparison import write_comparison
from clfew.runs.files import write_json
from clfew.runs.folders import (
    ARTIFACTS,
    Run,
    check_new,
    new_run,
    read_config,
    resumed_run,
)
from clfew.runs.locks import held
from clfew.settings import CompareSettings, PretrainSettings, arguments_of, bands_of, source_of
from clfew.signatures import function_of
from clfew.training.batch import TrainingData
from clfew.training.budget import budget_of
from clfew.training.device import set_threads, without_traces
from clfew.training.saving import stoppable
from clfew.training.signals import StopRequest

RAW_PIXELS, SCRATCH = "raw-pixels", "scratch"
BASELINES = {
    RAW_PIXELS: "raw pixels, logistic regression",
    "random": "random encoder",
    SCRATCH: "same network from scratch",
}
"""The baselines, which every comparison has."""
MODES = ("linear", "knn", "propagate", "full")
_SECONDS_A_CELL = 4.0
"""How long a classifier takes to fit and test, roughly; used to estimate the time that is left."""


@together
def run(settings: CompareSettings) -> tuple[Path, dict[str, Any]]:
    """Pretrains with each method and tests classifiers on them, one for each budget and label sample.

    Returns the folder and the result: `rows`, one for each method and budget, and `pretraining`, one for
    each method and seed. Raises UserError; raises Stopped after a signal.
    """
    check_new(settings.out)
    plan = resolve(settings)
    set_threads(settings.threads)
    images, encoder_name = open_images(plan)  # Before a folder is made: this may raise.
    for method in plan.methods:
        objective_of(method, encoder_name, images)
    plan = replace(
        plan, source=images.source.spec, device=str(images.device), threads=torch.get_num_threads()
    )
    new = new_run("compare", settings.out)
    with held(new.folder):
        new.write_bad_images(images.cache.bad)
        new.write_config(
            {
                "command": "compare",
                "arguments": arguments_of(settings),
                "settings": asdict(plan),
                "source": images.source.spec,
                "digest": images.source.digest(),
                "content": content_of(images.source, images.cache),
            }
        )
        return _run(new, plan, images, encoder_name)


compare = function_of(CompareSettings, without_traces(run))


def resolve(settings: CompareSettings) -> ComparisonPlan:
    """Checks the settings and reads their lists. Raises UsageError."""
    minutes, epochs = settings.minutes, settings.epochs
    if minutes is None and epochs is None:
        minutes = DEFAULT_MINUTES
    if isinstance(epochs, (str, Path)):
        epochs = str(Path(epochs).resolve())
    arguments = arguments_of(settings)
    for name in ("out", "path_column", "label_column"):
        del arguments[name]
    plan = ComparisonPlan(
        **arguments
        | {
            "source": source_of(settings),
            "methods": list(METHODS) if settings.methods == "all" else _split(settings.methods),
            "labels": _split(settings.labels),
            "minutes": minutes,
            "epochs": epochs,
            "split_rule": SPLIT_RULE,
            "bands": bands_of(settings),
        }
    )
    _check(plan)
    for method in plan.methods:
        for number in range(plan.seeds):
            again = plan.epochs_of(method, number)
            if isinstance(again, str) and not Path(again).exists():
                raise UserError(
                    f"--epochs {settings.epochs} is neither a number nor a comparison with a training "
                    f"of {method}, seed {number}.",
                    "for example: --epochs 20, or --epochs runs/compare-1 for the steps of that one.",
                )
            budget_of(again, plan.minutes, 1, 1, "pretrain")
    return plan


@together
def resume(folder: Path, source: str | None = None) -> tuple[Path, dict[str, Any]]:
    """Resumes a comparison that was stopped. source: where the images are now. Raises UserError."""
    with resumed_run(folder, "compare") as config:
        plan = ComparisonPlan(**config["settings"])
        plan = replace(plan, source=open_source(source).spec) if source else plan
        _check(plan)
        set_threads(plan.threads)
        images, encoder_name = open_images(plan)
        check_content(folder, config, images.source)
        return _run(Run(folder), plan, images, encoder_name)


def _split(text: str) -> list[str]:
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _check(settings: ComparisonPlan) -> None:
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
    for budget in settings.labels:
        if parse_labels(budget).listed is not None:
            raise UsageError(f"--labels {budget} is a file.", "give budgets, such as 1%,5% or 2/class.")


def _run(
    run: Run, settings: ComparisonPlan, images: Images, encoder: str
) -> tuple[Path, dict[str, Any]]:
    command = f"clfew compare --resume {shlex.quote(str(run.folder))}"
    try:
        with stoppable(command), StopRequest() as stop:
            comparison = Comparison(run, settings, images, encoder, stop, command)
            processes = size()
            with on_its_own():
                _say_plan(comparison, processes)
            if is_together():
                failed = share_out(comparison, jobs_of(settings), do)
            else:
                failed = _do_all(comparison)
    except Stopped as stopped:  # It names one training, but the whole comparison is resumed.
        raise Stopped(stopped.signal, command) from None
    messages = {method: error.message for method, error in failed.items()}
    result = _result(comparison, messages)
    write_comparison(run.folder, result)
    write_json(run.folder / "result.json", result)
    console.say(f"saved      {run.folder / 'compare.html'} and compare.png")
    return run.folder, result


def _do_all(comparison: Comparison) -> dict[str, UserError]:
    """Takes all measurements in this process; returns the errors of the methods that fail."""
    settings = comparison.settings
    failed = _pretrain_all(comparison)
    _raw_pixels(comparison)
    for number in range(settings.seeds):
        _untrained(comparison, number)
    for method in (m for m in settings.methods if m not in failed):
        for number in range(settings.seeds):
            comparison.check()
            _evaluate_method(comparison, method, number)
    return failed


def jobs_of(settings: ComparisonPlan) -> list[Job]:
    """Returns the parts of a comparison that several processes share out, the longest first."""
    numbers = range(settings.seeds)
    trained = [(method, number) for method in settings.methods for number in numbers]
    return [*trained, *((SCRATCH, number) for number in numbers), (RAW_PIXELS, 0)]


def do(comparison: Comparison, job: Job) -> None:
    """Does one of the jobs. Raises UserError if a method fails."""
    name, number = job
    comparison.check()
    if name == RAW_PIXELS:
        _raw_pixels(comparison)
    elif name == SCRATCH:
        _untrained(comparison, number)
    else:
        _pretrain(comparison, name, number)
        _evaluate_method(comparison, name, number)


def _pretrain_all(comparison: Comparison) -> dict[str, UserError]:
    """Pretrains with each method, and returns the errors of those that fail. Raises the last one if all
    fail."""
    failed: dict[str, UserError] = {}
    methods = comparison.settings.methods
    for method in methods:
        for number in range(comparison.settings.seeds):
            comparison.check()
            try:
                _pretrain(comparison, method, number)
            except UserError as error:  # The other methods can still be compared.
                failed[method] = error
                if len(failed) == len(methods):
                    raise
                console.say(f"failed     {method}: {error.message}")
                break
    return failed


def _say_plan(comparison: Comparison, processes: int) -> None:
    settings, images, cells = comparison.settings, comparison.images, comparison.cells
    runs = [(method, number) for method in settings.methods for number in range(settings.seeds)]
    artifacts = [(m, comparison.folder_of(m, n) / ARTIFACTS["pretrain"]) for m, n in runs]
    left = [method for method, artifact in artifacts if not artifact.exists()]
    networks = len(runs) + 2 * settings.seeds  # A random one and one from scratch for each seed.
    total = (networks + 1) * len(settings.labels) * settings.draws
    console.say(
        f"plan       {len(runs)} pretraining runs of {comparison.encoder} at {images.size} px on "
        f"{images.count:,} images and {total} classifiers, tested on {len(images.test):,} images"
    )
    finished = len(runs) - len(left)
    if finished or cells.done:
        console.say(f"           {finished} runs and {len(cells.done)} classifiers are finished already")
    if settings.minutes is not None:
        training = 60 * settings.minutes * len(left)
    else:
        each = {m: _seconds_of(comparison, m) for m in set(left)}
        training = sum(each[m] for m in left)
    seconds = training + _SECONDS_A_CELL * (total - len(cells.done))
    console.say(f"           about {seconds / 60 / processes:.0f} min to go")


def _seconds_of(comparison: Comparison, method: str) -> float:
    epochs = comparison.settings.epochs_of(method, 0)
    if isinstance(epochs, str):
        epochs = float(read_config(Path(epochs))["epochs"])
    return seconds_of(method, comparison.encoder, comparison.images, epochs or 0.0)


def _pretrain(comparison: Comparison, method: str, number: int) -> None:
    settings, folder = comparison.settings, comparison.folder_of(method, number)
    if (folder / ARTIFACTS["pretrain"]).exists():
        return
    place = f"{settings.methods.index(method) + 1} of {len(settings.methods)}"
    console.say("")
    console.say(f"{place:<10} {method}" + (f", seed {number}" if settings.seeds > 1 else ""))
    if read_config(folder):
        resume_in(folder, settings.device, settings.threads, comparison.stop, settings.source)
        return
    shutil.rmtree(folder, ignore_errors=True)  # A run that was stopped before it could be resumed.
    pretraining = PretrainSettings(
        settings.source,
        method=method,
        encoder=comparison.encoder,
        size=comparison.images.size,
        epochs=settings.epochs_of(method, number),
        minutes=settings.minutes,
        flip=settings.flip,
        bands=",".join(map(str, settings.bands)) if settings.bands else None,
        group_by=settings.group_by,
        init="scratch",
        save_samples=True,
        seed=settings.seed + number,
        device=settings.device,
        precision=settings.precision,
        threads=settings.threads,
        out=folder,
    )
    pretrain_in(pretraining, settings.seed, comparison.stop, settings.split_rule)


def _raw_pixels(comparison: Comparison) -> None:
    images, cells, samples = comparison.images, comparison.cells, comparison.label_samples
    if not cells.has(f"{RAW_PIXELS}/0", samples):
        pixels = [pixels_of(images)]
        cells.fill(
            f"{RAW_PIXELS}/0",
            samples,
            lambda _, sample: accuracy_of(pixels, images, sample, "linear", 0),
        )


def _untrained(comparison: Comparison, number: int) -> None:
    """Measures a random network, as it is and trained from scratch; there are as many of them as each
    method has seeds."""
    settings, images = comparison.settings, comparison.images
    network = Network(
        comparison.encoder,
        images.size,
        settings.flip,
        seed=settings.seed + number,
        split_seed=settings.seed,
        split_rule=settings.split_rule,
    )
    start = start_from_scratch(images.source, None, network, images.device)
    mode = "linear" if settings.mode == "full" else settings.mode
    whole = TrainingData(images.cache.pixels, images.cache.aspects, images.pool)
    untouched = copy.deepcopy(start)
    estimate_statistics(start.encoder, whole, images.device)
    _evaluate(comparison, f"random/{number}", start, mode)
    _evaluate(comparison, f"{SCRATCH}/{number}", untouched, "full")


def _evaluate_method(comparison: Comparison, method: str, number: int) -> None:
    artifact = comparison.folder_of(method, number) / ARTIFACTS["pretrain"]
    start = start_from_artifact(artifact, None)
    _evaluate(comparison, f"{method}/{number}", start, comparison.settings.mode)


def _evaluate(comparison: Comparison, name: str, start: Start, mode: str) -> None:
    images, samples = comparison.images, comparison.label_samples
    if comparison.cells.has(name, samples):
        return
    stages = [] if mode == "full" else features_by_stage(start.encoder, images)

    def measure(number: int, sample: np.ndarray) -> dict[str, Any]:
        seed = comparison.settings.seed + number
        return accuracy_of(stages, images, sample, mode, seed, start, comparison.stop)

    with console.progress_bar(f"test {name.split('/')[0]}") as update:
        comparison.cells.fill(name, samples, measure, update)


def _result(comparison: Comparison, failed: dict[str, str]) -> dict[str, Any]:
    run, settings, images = comparison.run, comparison.settings, comparison.images
    pretraining, methods = [], [m for m in settings.methods if m not in failed]
    for method in methods:
        for number in range(settings.seeds):
            folder = comparison.folder_of(method, number)
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
        "read_as": images.source.summary(),
        "encoder": comparison.encoder,
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
        "rows": rows_of(
            comparison.cells,
            [*BASELINES, *methods],
            images.label_samples,
            settings,
            len(images.test),
            len(images.data.known),
            None if images.data.groups is None else images.data.groups[images.test],
        ),
        "failed": failed,
        "pretraining": pretraining,
    }
