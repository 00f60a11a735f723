"""`clfew pretrain`: learn an encoder from images without labels."""

import functools
import shlex
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import clfew
from clfew import console
from clfew.artifacts import About, save_encoder
from clfew.augment import Recipe
from clfew.choices import (
    choose_batch,
    choose_encoder,
    choose_recipe,
    choose_size,
    normalisation,
    stored_side,
)
from clfew.classifier import neck_width
from clfew.data.sources import LABELLED_FOLDERS, Source, open_source
from clfew.data.splits import test_indices
from clfew.data.store import Store, open_store, typical_side
from clfew.encoders import Encoder
from clfew.errors import UsageError, UserError
from clfew.files import write_csv
from clfew.methods import METHODS
from clfew.methods.simclr import SimCLR
from clfew.runs import Run, check_new, command_line, from_option, new_run, read_config
from clfew.training.batch import TrainingData
from clfew.training.compilation import check_compile, choose_compile
from clfew.training.device import choose_device, choose_precision, set_threads
from clfew.training.loop import Saving, seconds_per_step, train
from clfew.training.optim import OPTIMIZERS, choose_pretraining
from clfew.training.plan import Plan
from clfew.training.state import saved_step

FEWEST_IMAGES = 16
DEFAULT_EPOCHS = 100.0
DEFAULT_MINUTES = 10.0
"""Without --epochs and --minutes a run takes 100 epochs, but no longer than this."""

_HOW = ("loss", "temperature", "recipe", "plan", "epochs")
_FROM_WHAT = ("source", "fingerprint", "images", "transductive", "split_seed")


def pretrain(
    source: str,
    *,
    method: str = "simclr",
    encoder: str = "auto",
    size: int | None = None,
    epochs: float | None = None,
    minutes: float | None = None,
    batch: int | None = None,
    optimizer: str = "auto",
    lr: float | None = None,
    temperature: float = 0.2,
    loss: str = "nt-xent",
    flip: bool = True,
    transductive: bool = False,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    compilation: str = "auto",
    threads: int | None = None,
    out: Path | None = None,
) -> Path:
    """Pretrains on the images of `source` and returns the run folder.

    source: folder, CSV or hf:NAME. encoder: "auto" or a name (see `clfew.encoders`). size: side in
    pixels of what the encoder sees. epochs or minutes: the budget. transductive: learn from the
    images of the test split too. Raises UserError; Stopped after a signal.
    """
    check_new(out)
    set_threads(threads)
    _check_settings(method, optimizer, loss, epochs, minutes)
    chosen_device, why_device = choose_device(device)
    check_compile(compilation, chosen_device)
    chosen_precision, why_precision = choose_precision(chosen_device, precision)
    opened = open_source(source)
    native = typical_side(opened)
    resolved_size, why_size = choose_size(size, native, chosen_device, many=True)
    side = stored_side(resolved_size, native)
    store = stored(opened, side)
    indices = _pretraining_images(opened, store, transductive, seed)
    if len(indices) < FEWEST_IMAGES:
        raise UserError(
            f"{source} has {len(indices)} images to learn from, and pretraining needs {FEWEST_IMAGES}.",
            "add images: unlabelled ones will do.",
        )
    name, why_encoder = choose_encoder(encoder, resolved_size, len(indices), chosen_device)
    resolved_batch, why_batch = choose_batch(batch, len(indices), chosen_device)
    mean, std = normalisation(store, indices)
    recipe, why_recipe = choose_recipe(resolved_size, store, indices, flip)
    config: dict[str, Any] = {
        "command": "pretrain", "command_line": command_line(),
        "source": opened.spec, "fingerprint": opened.fingerprint,
        "images": len(indices), "transductive": transductive, "split_seed": seed,
        "method": method, "loss": loss, "temperature": temperature, "recipe": asdict(recipe),
        "encoder": name, "size": resolved_size, "side": side, "mean": mean, "std": std,
        "device": str(chosen_device), "threads": torch.get_num_threads(),
    }  # fmt: skip
    console.say(f"images     {len(indices):,} of {len(opened):,} in {source}")
    for label, value, why in (
        ("size", f"{resolved_size} px", why_size), ("encoder", name, why_encoder),
        ("batch", resolved_batch, why_batch), ("views", f"colour strength {recipe.jitter}", why_recipe),
        ("device", chosen_device, why_device),
        ("precision", chosen_precision, why_precision),
    ):  # fmt: skip
        console.say(f"{label:<10} {value} ({why})")
    objective = _build(config, seed)
    data = TrainingData(store.pixels, store.aspects, indices)
    plan = _plan(
        objective,
        data,
        chosen_device,
        epochs,
        minutes,
        resolved_batch,
        optimizer,
        lr,
        seed,
        chosen_precision,
        compilation,
    )
    per_epoch = plan.steps_per_epoch(len(indices))
    run = new_run("pretrain", out)
    run.write_config(
        config | {"plan": asdict(plan), "epochs": plan.steps / per_epoch, "minutes": minutes}
    )
    if store.bad:
        write_csv(run.folder / "bad_images.csv", ["path", "reason"], store.bad)
    return _train(run, objective, data, plan, chosen_device, opened, store)


def resume(folder: Path, device: str = "auto", threads: int | None = None) -> Path:
    """Goes on with an interrupted pretraining run and returns its folder. Raises UserError."""
    config = read_config(folder)
    if config.get("command") != "pretrain":
        raise UserError(f"{folder} is no pretraining run.", "name its folder, such as runs/pretrain-1.")
    if (folder / "encoder.safetensors").exists():
        raise UserError(
            f"{folder} has finished: there is nothing to resume.",
            "to train longer, start another run with more --epochs.",
        )
    set_threads(threads)
    plan, chosen_device = Plan(**config["plan"]), choose_device(device)[0]
    check_compile("on" if plan.compile else "off", chosen_device)
    opened = open_source(config["source"])
    if opened.fingerprint != config["fingerprint"]:
        raise UserError(
            f"The images in {config['source']} have changed since {folder} was started.",
            "start a new run: clfew pretrain with the same options.",
        )
    store = stored(opened, config["side"])
    indices = _pretraining_images(opened, store, config["transductive"], config["split_seed"])
    objective = _build(config, plan.seed)
    data = TrainingData(store.pixels, store.aspects, indices)
    run = Run(folder)
    run.keep_metrics_until(saved_step(folder / "state"))
    return _train(run, objective, data, plan, chosen_device, opened, store)


def stored(source: Source, side: int) -> Store:
    """The pixel store of a source, with progress while it is built and a word on bad images."""
    with console.progress_bar("decoding") as update:
        store = open_store(source, side, update)
    if store.bad:
        name, reason = store.bad[0]
        console.say(
            f"skipped    {len(store.bad)} of {len(source)} images, which cannot be used "
            f"(first {console.printable(name)}: {reason}); bad_images.csv in the run lists them"
        )
    if source.ignored:
        console.say(f"passed over {source.ignored} files that are no images")
    return store


def _train(
    run: Run, objective: SimCLR, data: TrainingData, plan: Plan, device: torch.device,
    source: Source, store: Store,
) -> Path:  # fmt: skip
    config = read_config(run.folder)
    saving = Saving(run.folder / "state", f"clfew pretrain --resume {shlex.quote(str(run.folder))}")
    console.say(
        f"training   {config['epochs']:.4g} epochs, {plan.steps:,} steps with {plan.optimizer} "
        f"into {run.folder}"
    )
    with console.progress_bar("pretrain") as update:

        def log(row: dict[str, float]) -> None:
            run.log(row)
            note = (
                f"loss {row['loss']:.3f}  {row['images_per_second']:.0f} images/s  "
                f"{row['data_wait']:.0%} waiting"
            )
            update(row["step"], plan.steps, note)

        train(objective, data, plan, device, log, saving)
    about = About(
        kind="encoder", encoder=config["encoder"], size=config["size"], side=config["side"],
        mean=config["mean"], std=config["std"], dim=objective.encoder.dim,
        method=config["method"], flip=config["recipe"]["flip"], neck=neck_width(objective.projector),
        clfew_version=clfew.__version__,
        training={"pretrain": {"command": config["command_line"]} | {k: config[k] for k in _HOW}},
        data={"pretrain": {k: config[k] for k in _FROM_WHAT}},
    )  # fmt: skip
    artifact = run.folder / "encoder.safetensors"
    save_encoder(artifact, objective.encoder, objective.projector, about, store.digests[data.indices])
    saving.discard()
    console.say(f"saved      {artifact}")
    has_labels = source.is_labelled or any(Path(name).is_dir() for name in LABELLED_FOLDERS)
    hint = "" if has_labels else " LABELLED_FOLDER"
    console.next_command(f"clfew finetune{hint} --labels 1%{from_option(artifact, 'pretrain')}")
    return run.folder


def _build(config: dict[str, Any], seed: int) -> SimCLR:
    torch.manual_seed(seed)
    encoder = Encoder(config["encoder"], config["size"], config["mean"], config["std"])
    return METHODS[config["method"]](
        encoder, Recipe(**config["recipe"]), config["temperature"], config["loss"]
    )


def _plan(
    objective: SimCLR, data: TrainingData, device: torch.device, epochs: float | None,
    minutes: float | None, batch: int, optimizer: str, lr: float | None, seed: int, precision: str,
    compilation: str,
) -> Plan:  # fmt: skip
    per_epoch = max(1, len(data) // batch)
    steps = round((epochs or DEFAULT_EPOCHS) * per_epoch)
    budget = 60 * (minutes or DEFAULT_MINUTES)
    size = sum(parameter.numel() for parameter in objective.parameters())
    started = time.monotonic()

    @functools.cache
    def step_seconds(compile: bool) -> float:
        likely, rate, decay, _ = choose_pretraining(batch, steps, size, optimizer)
        trial = Plan(100, batch, likely, rate, decay, 1, seed, precision, compile)
        return seconds_per_step(objective, data, trial, device, budget)

    if epochs is None and compilation != "on":
        fitting = max(1, int(budget * 0.95 / step_seconds(False)))
        steps = fitting if minutes else min(steps, fitting)
    compile, why_compile = choose_compile(compilation, device, steps, step_seconds)
    if epochs is None:
        # The trial of a compiled network takes more than its twentieth of the budget.
        left = min(0.95 * budget, budget - (time.monotonic() - started))
        if compile and left < 0.5 * budget:
            raise UserError(
                f"Compiling takes more than half of the {budget / 60:g} minutes.",
                "do without: --compile off; or give more --minutes.",
            )
        fitting = max(1, int(left / step_seconds(compile)))
        steps = fitting if minutes else min(round(DEFAULT_EPOCHS * per_epoch), fitting)
        console.say(
            f"budget     {budget / 60:g} minutes are {fitting / per_epoch:.4g} epochs at this speed"
            + ("" if minutes else f"; the default is {DEFAULT_EPOCHS:g} epochs or what fits in them")
        )
    steps = max(1, steps)
    chosen, rate, decay, why = choose_pretraining(batch, steps, size, optimizer)
    console.say(f"optimizer  {chosen}, learning rate {lr or rate:.3g} ({why})")
    console.say(f"compile    {'on' if compile else 'off'} ({why_compile})")
    warmup = max(1, min(10 * per_epoch, steps // 10))
    return Plan(steps, batch, chosen, lr or rate, decay, warmup, seed, precision, compile)


def _pretraining_images(source: Source, store: Store, transductive: bool, seed: int) -> np.ndarray:
    """The good images outside the test split, whose labels decide nothing else here."""
    if transductive:
        return store.good
    return np.setdiff1d(store.good, test_indices(source, seed), assume_unique=True)


def _check_settings(
    method: str, optimizer: str, loss: str, epochs: float | None, minutes: float | None
) -> None:
    for option, value, allowed in (
        ("--method", method, list(METHODS)),
        ("--optimizer", optimizer, ["auto", *OPTIMIZERS]),
        ("--loss", loss, ["nt-xent", "dcl"]),
    ):
        if value not in allowed:
            raise UsageError(f"{option} {value} is not known.", f"choose {', '.join(allowed)}.")
    if epochs is not None and minutes is not None:
        raise UsageError("--epochs and --minutes are two budgets for one run.", "give one of them.")
