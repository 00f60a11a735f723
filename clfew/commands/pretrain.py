"""`clfew pretrain`: trains an encoder on images without labels."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from clfew import console
from clfew.data.image_cache import ImageCache, cached_images, typical_side
from clfew.data.source import Source
from clfew.data.sources import LABELLED_FOLDERS, open_source
from clfew.errors import UserError
from clfew.methods.adapter import LAYER, NETWORK
from clfew.methods.base import METHODS, Method
from clfew.methods.collapse import collapse
from clfew.methods.setup import (
    DEFAULT_EPOCHS,
    DEFAULT_MINUTES,
    Objective,
    build_objective,
    check_settings,
    encoder_metadata,
    estimate_statistics,
    find_pretraining_start,
    options_of,
    pretraining_images,
    pretraining_plan,
    training_data_of,
)
from clfew.models.artifacts import load_encoder, save_encoder
from clfew.models.classifier import neck_width
from clfew.models.defaults import (
    cached_side,
    choose_batch,
    choose_encoder,
    choose_pretrained_size,
    choose_recipe,
    choose_size,
    normalisation,
)
from clfew.models.drift import report_drift
from clfew.models.encoder import Encoder
from clfew.models.init_weights import SCRATCH, load_init_weights
from clfew.report.samples import write_samples
from clfew.runs.files import sync
from clfew.runs.folders import (
    START,
    Run,
    check_new,
    check_unchanged,
    command_line,
    from_option,
    new_run,
    read_config,
    resumed_run,
)
from clfew.runs.locks import held
from clfew.training.batch import TrainingData
from clfew.training.budget import Budget
from clfew.training.compilation import check_compile
from clfew.training.device import choose_device, choose_precision, set_threads, set_up_as_started
from clfew.training.loop import train
from clfew.training.optim import ENCODER_RATE
from clfew.training.plan import Plan
from clfew.training.saving import Saving, stoppable
from clfew.training.state import saved_step

FEWEST_IMAGES = 16


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
    options: dict[str, Any] | None = None,
    flip: bool = True,
    transductive: bool = False,
    init: str = "auto",
    adapt: str = LAYER,
    save_samples: bool = False,
    seed: int = 0,
    split_seed: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    compilation: str = "auto",
    threads: int | None = None,
    out: Path | None = None,
) -> Path:
    """Pretrains on the images of `source` and returns the run folder.

    source: folder, CSV or hf:NAME. encoder: "auto" or a name (see `clfew.models.backbones`). size: side
    in pixels of the encoder's input. epochs or minutes: the budget. transductive: whether to learn from
    the images of the test split too. options: the method's options by name (see its class); a value of
    None is the method's default. init: the weights to start from (see `clfew.models.init_weights`);
    "auto" is "scratch" for every method except SimCLR. adapt: what is trained if the run starts from
    pretrained weights, "layer" (see `clfew.methods.adapter`; SimCLR only) or "network". save_samples:
    whether to write samples.png, which shows what the method does with a few images. split_seed: seed
    of the test split if the data has no split of its own; None is `seed`. Raises UserError; raises
    Stopped after a signal.
    """
    settings = {
        "source": source,
        "method": method,
        "encoder": encoder,
        "size": size,
        "epochs": epochs,
        "minutes": minutes,
        "batch": batch,
        "optimizer": optimizer,
        "lr": lr,
        **(options or {}),
        "flip": flip,
        "transductive": transductive,
        "init": init,
        "adapt": adapt,
        "save_samples": save_samples,
        "seed": seed,
        "precision": precision,
        "compile": compilation,
    }
    check_new(out)
    set_threads(threads)
    check_settings(method, optimizer, adapt, epochs, minutes)
    resolved = options_of(method, options or {})
    chosen_device, why_device = choose_device(device)
    check_compile(compilation, chosen_device)
    chosen_precision, why_precision = choose_precision(chosen_device, precision)
    init_weights, why_init = find_pretraining_start(init, encoder, method, chosen_device)
    if method != "simclr":
        adapt = NETWORK
    opened = open_source(source)
    native = typical_side(opened)
    if init_weights is None:
        resolved_size, why_size = choose_size(size, native, chosen_device, many=True)
    else:
        resolved_size, why_size = choose_pretrained_size(
            size, native, init_weights.expected, chosen_device
        )
    side = cached_side(resolved_size, native)
    cache = cached_images(opened, side)
    split_seed = seed if split_seed is None else split_seed
    indices = pretraining_images(opened, cache, transductive, split_seed)
    if len(indices) < FEWEST_IMAGES:
        raise UserError(
            f"{source} has {len(indices)} images to learn from, but pretraining needs {FEWEST_IMAGES}.",
            "add images, which need no labels.",
        )
    if init_weights is None:
        name, why_encoder = choose_encoder(encoder, resolved_size, len(indices), chosen_device)
        name = METHODS[method].encoder_name(name)
        mean, std = normalisation(cache, indices, METHODS[method].input)
    else:
        name, why_encoder = init_weights.encoder, "the network of these weights"
        mean, std = init_weights.expected.mean, init_weights.expected.std
    recipe, why_recipe = choose_recipe(min(resolved_size, native), cache, indices, flip)
    config: dict[str, Any] = {
        "command": "pretrain",
        "command_line": command_line(),
        "source": opened.spec,
        "fingerprint": opened.fingerprint,
        "digest": opened.digest(),
        "images": len(indices),
        "transductive": transductive,
        "split_seed": split_seed,
        "method": method,
        "options": resolved,
        "recipe": asdict(recipe),
        "samples": save_samples,
        "encoder": name,
        "size": resolved_size,
        "side": side,
        "mean": mean,
        "std": std,
        "init": SCRATCH if init_weights is None else init_weights.what,
        "adapt": NETWORK if init_weights is None else adapt,
        "device": str(chosen_device),
        "threads": torch.get_num_threads(),
    }
    console.say(f"images     {len(indices):,} of {len(opened):,} in {source}")
    for label, value, why in (
        ("start", "scratch" if init_weights is None else init_weights.what, why_init),
        ("size", f"{resolved_size} px", why_size),
        ("encoder", name, why_encoder),
        ("method", method, ", ".join(f"{k} {v}" for k, v in resolved.items()) or "no options"),
        ("device", chosen_device, why_device),
        ("precision", chosen_precision, why_precision),
    ):
        console.say(f"{label:<10} {value} ({why})")
    start = None
    if init_weights is not None:
        start = Encoder(name, resolved_size, mean, std)
        load_init_weights(init_weights, start)
    objective = build_objective(config, seed, start)
    views = objective.recipe if isinstance(objective, Method) else recipe
    colour = f"colour strength {views.jitter}" if views.jitter else "crops and flips, colours unchanged"
    console.say(f"views      {colour} ({why_recipe if views == recipe else 'set by the method'})")
    budget = Budget(epochs, minutes, DEFAULT_EPOCHS, DEFAULT_MINUTES)
    data, left = training_data_of(
        objective, config, cache, indices, chosen_device, chosen_precision, budget
    )
    resolved_batch, why_batch = choose_batch(batch, len(data), chosen_device, objective.large_batches)
    console.say(f"batch      {resolved_batch} ({why_batch})")
    plan = pretraining_plan(
        objective,
        data,
        chosen_device,
        left,
        batch=resolved_batch,
        optimizer=optimizer,
        lr=lr,
        seed=seed,
        precision=chosen_precision,
        compilation=compilation,
    )
    config["viewed"] = len(data)
    per_epoch = plan.steps_per_epoch(len(data))
    config |= {
        "plan": asdict(plan),
        "epochs": plan.steps / per_epoch,
        "minutes": minutes,
        "arguments": settings,
    }
    run = new_run("pretrain", out)
    with held(run.folder):
        if start is not None:  # Needed to resume the run and to measure the drift.
            metadata = encoder_metadata(config, start, "", 0)
            save_encoder(run.folder / START, start, nn.Sequential(), metadata, cache.digests[:0])
        run.write_bad_images(cache.bad)
        run.write_config(config)  # Last, because a run with a config can be resumed.
        with stoppable(_saving(run).resume_command):
            return _train(run, objective, data, plan, chosen_device, opened, cache, indices)


def resume(folder: Path, device: str = "auto", threads: int | None = None) -> Path:
    """Resumes an interrupted pretraining run and returns its folder.

    It runs on the device and threads that it was started with unless others are given. Raises UserError.
    """
    with resumed_run(folder, "pretrain") as config, stoppable(_saving(Run(folder)).resume_command):
        chosen_device = set_up_as_started(config, device, threads)
        plan = Plan(**config["plan"])
        check_compile("on" if plan.compile else "off", chosen_device)
        opened = open_source(config["source"])
        check_unchanged(folder, config, opened.digest())
        cache = cached_images(opened, config["side"])
        indices = pretraining_images(opened, cache, config["transductive"], config["split_seed"])
        start = None if config["init"] == SCRATCH else load_encoder(folder / START)[0]
        objective = build_objective(config, plan.seed, start)
        data, _ = training_data_of(objective, config, cache, indices, chosen_device, plan.precision)
        run = Run(folder)
        done = saved_step(_saving(run).file)
        console.say(f"resumed    {folder} " + (f"after step {done:,}" if done else "from its beginning"))
        run.keep_metrics_until(done)
        return _train(run, objective, data, plan, chosen_device, opened, cache, indices)


def _saving(run: Run) -> Saving:
    command = f"clfew pretrain --resume {shlex.quote(str(run.folder))}"
    return Saving(run.folder / "state", command)


def _train(
    run: Run,
    objective: Objective,
    data: TrainingData,
    plan: Plan,
    device: torch.device,
    source: Source,
    cache: ImageCache,
    indices: np.ndarray,
) -> Path:
    config = read_config(run.folder)
    saving = _saving(run)
    console.say(
        f"training   {config['epochs']:.4g} epochs, {plan.steps:,} steps with {plan.optimizer} "
        f"into {run.folder}"
    )
    last: dict[str, float] = {}
    with console.progress_bar("pretrain") as update:

        def log(row: dict[str, float]) -> None:
            run.log(row)
            note = (
                f"loss {row['loss']:.3f}  {row['images_per_second']:.0f} images/s  "
                f"{row['data_wait']:.0%} waiting"
            )
            if wrong := collapse(row):
                note += "  collapsing"
                if not collapse(last):  # Said at once, not after hours of training.
                    console.say(f"alarm      step {row['step']:,}: {wrong}")
            last.update(row)
            update(row["step"], plan.steps, note)

        rate = ENCODER_RATE if isinstance(objective, Method) and objective.gentle else 1.0
        train(
            objective,
            data,
            plan,
            device,
            log,
            saving,
            lr_scale=lambda name: rate if name.startswith("encoder.") else 1.0,
        )
    if wrong := collapse(last):
        console.say(
            f"alarm      {wrong}: the features carry little information. Train longer, or with "
            "another --lr."
        )
    if isinstance(objective, Method):
        objective.eval()
        if config["samples"]:
            write_samples(run.folder / "samples.png", objective, data, plan.seed, device)
        if not objective.shows_whole_images and not objective.gentle:
            estimate_statistics(objective.encoder, data, device)
    elif config["samples"]:
        console.say(
            "samples    samples.png is not written: the layer was trained on features, not on images"
        )
    start = run.folder / START
    if config["init"] != SCRATCH:
        arrays = (cache.pixels, cache.aspects, indices)
        config["drift"] = report_drift(start, objective.encoder, *arrays, device, plan.precision)
    neck = neck_width(objective.projector)
    metadata = encoder_metadata(config, objective.encoder, config["method"], neck)
    artifact = run.folder / "encoder.safetensors"
    sync(run.folder / "metrics.jsonl")  # The metrics must be on the disk before the artifact.
    save_encoder(artifact, objective.encoder, objective.projector, metadata, cache.digests[indices])
    saving.discard()
    console.say(f"saved      {artifact}")
    has_labels = source.is_labelled or any(Path(name).is_dir() for name in LABELLED_FOLDERS)
    hint = "" if has_labels else " LABELLED_FOLDER"
    console.next_command(f"clfew finetune{hint} --labels 1%{from_option(artifact, 'pretrain')}")
    return run.folder
