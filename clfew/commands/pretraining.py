"""One pretraining run: resolves its settings, prepares it, trains and saves the encoder."""

import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from clfew import console
from clfew.data.augment import Recipe
from clfew.data.cache_folder import ImageCache
from clfew.data.content import check_content, content_of
from clfew.data.groups import grouped
from clfew.data.held_out import SPLIT_RULE
from clfew.data.image_cache import cached_images, typical_side
from clfew.data.pixel_scale import scale_from
from clfew.data.source import Source
from clfew.data.sources import open_source, say_source
from clfew.data.splits import require_groups_to_test
from clfew.errors import UserError
from clfew.group.command import words_of
from clfew.methods.adapter import MOST_IMAGES, NETWORK, learned_from
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
    optimizer_choice,
    options_of,
    pretraining_images,
    training_data_of,
)
from clfew.models.artifacts import digests_of_trained, load_encoder, save_encoder
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
from clfew.models.init_weights import (
    SCRATCH,
    InitWeights,
    artifacts_of,
    load_init_weights,
    seen_before,
)
from clfew.models.kept_scale import scaled
from clfew.quality.pixels import say_check
from clfew.report.samples import write_samples
from clfew.runs.files import sync
from clfew.runs.folders import (
    ARTIFACTS,
    START,
    Run,
    check_new,
    command_line,
    new_run,
    read_config,
    resumed_run,
)
from clfew.runs.locks import held
from clfew.settings import PretrainSettings, arguments_of, bands_of, source_of
from clfew.training.batch import TrainingData
from clfew.training.budget import Budget, PlanOptions, budget_of, plan_within
from clfew.training.compilation import check_compile
from clfew.training.device import (
    choose_device,
    choose_precision,
    set_threads,
    set_up_as_started,
)
from clfew.training.loop import train
from clfew.training.optim import ENCODER_RATE
from clfew.training.plan import Plan
from clfew.training.saving import Saving, stoppable
from clfew.training.signals import StopRequest
from clfew.training.state import saved_position

FEWEST_IMAGES = 16
WORTH_SAYING = 1.5
"""A new plan is reported if the number of steps changes by this factor."""


@dataclass(frozen=True)
class Resolved:
    """What a run will do: every default is chosen, and the images are cached.

    config: the content of config.json so far. indices: of the images to learn from, in `cache`.
    init_weights: the weights to start from, None for random ones. recipe_reason: why the views are as
    they are.
    """

    config: dict[str, Any]
    source: Source
    cache: ImageCache
    indices: np.ndarray
    device: torch.device
    precision: str
    init_weights: InitWeights | None
    recipe_reason: str
    budget: Budget


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to train, new or resumed.

    start: the pretrained encoder that it starts from, None for random weights. data: the images, or for
    an adapter the features of their views. steps: those of the newest plan, of a run that is resumed.
    seen: digests of the images that the start was trained on.
    """

    config: dict[str, Any]
    source: Source
    cache: ImageCache
    indices: np.ndarray
    device: torch.device
    start: Encoder | None
    objective: Objective
    data: TrainingData
    plan: Plan
    steps: int
    seen: np.ndarray

    @property
    def precision(self) -> str:
        return self.plan.precision


def pretrain_in(
    settings: PretrainSettings,
    split_seed: int | None = None,
    stop: StopRequest | None = None,
    split_rule: int = SPLIT_RULE,
    recorded: dict[str, Any] | None = None,
    default_minutes: float = DEFAULT_MINUTES,
) -> tuple[Path, Source]:
    """Pretrains on images without labels, into a run folder of its own.

    split_seed: seed of the test split if the data has no split of its own; None is the run's seed. stop,
    split_rule: those of the command that this is a part of. recorded: what config.json holds instead of,
    or beside, what it would. default_minutes: the most that it takes where no budget is given. Returns
    the run folder and the images. Raises UserError; raises Stopped after a signal.
    """
    resolved = resolve(settings, split_seed, split_rule, default_minutes)
    prepared = prepare(settings, resolved)
    new = new_run("pretrain", settings.out)
    with held(new.folder):
        create(new, replace(prepared, config=prepared.config | (recorded or {})))
        with stoppable(_saving(new).resume_command):
            save(new, *train_steps(new, prepared, stop))
    return new.folder, prepared.source


def resume_in(
    folder: Path,
    device: str = "auto",
    threads: int | None = None,
    stop: StopRequest | None = None,
    source: str | None = None,
) -> tuple[Path, Source]:
    """Resumes an interrupted pretraining run: see `pretrain_in`. It runs on the device and threads that
    it was started with unless others are given. source: where the images are now. Raises UserError."""
    with resumed_run(folder, "pretrain") as config, stoppable(_saving(Run(folder)).resume_command):
        config = config | ({"source": open_source(source).spec} if source else {})
        prepared = restore(folder, config, device, threads)
        save(Run(folder), *train_steps(Run(folder), prepared, stop))
    return folder, prepared.source


def resolve(
    settings: PretrainSettings,
    split_seed: int | None = None,
    split_rule: int = SPLIT_RULE,
    default_minutes: float = DEFAULT_MINUTES,
) -> Resolved:
    """Chooses every default, opens and caches the images, and reports it. Raises UserError."""
    budget, options = checked(settings, default_minutes)
    set_threads(settings.threads)
    device, why_device = choose_device(settings.device)
    check_compile(settings.compile, device)
    precision, why_precision = choose_precision(device, settings.precision)
    init_weights, why_start = find_pretraining_start(
        settings.init, settings.encoder, settings.method, device
    )
    source = _open(settings, split_rule, init_weights)
    native = typical_side(source)
    size, why_size = _choose_size(settings, init_weights, native, device)
    cache = cached_images(source, cached_side(size, native))
    split_seed = settings.seed if split_seed is None else split_seed
    indices = pretraining_images(source, cache, settings.transductive, split_seed, split_rule)
    _require_images(settings, len(indices))
    network, why_encoder = _choose_network(settings, init_weights, size, cache, indices, device)
    recipe, why_recipe = choose_recipe(min(size, native), cache, indices, settings.flip)
    weights = "scratch" if init_weights is None else init_weights.what
    _say_images(settings, source, cache, indices)
    _report(
        start=(weights, why_start),
        size=(f"{size} px", why_size),
        encoder=(network["encoder"], why_encoder),
        method=(settings.method, ", ".join(f"{k} {v}" for k, v in options.items()) or "no options"),
        device=(device, why_device),
        precision=(precision, why_precision),
    )
    config = {
        "command": "pretrain",
        "command_line": command_line(),
        "source": source.spec,
        "fingerprint": source.fingerprint,
        "digest": source.digest(),
        "content": content_of(source, cache),
        "pixels": source.scale.as_data() if source.scale else None,
        "images": len(indices),
        "transductive": settings.transductive,
        **{"split_seed": split_seed, "split_rule": split_rule, "group_by": settings.group_by},
        "method": settings.method,
        "options": options,
        "recipe": asdict(replace(recipe, crop_side=METHODS[settings.method].crop_side)),
        "samples": settings.save_samples,
        "size": size,
        "side": cache.side,
        **network,
        "init": weights,
        "adapt": settings.adapt if init_weights and settings.method == "simclr" else NETWORK,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "minutes": settings.minutes,
        "arguments": arguments_of(settings),
    }
    return Resolved(config, source, cache, indices, device, precision, init_weights, why_recipe, budget)


def _say_images(
    settings: PretrainSettings, source: Source, cache: ImageCache, indices: np.ndarray
) -> None:
    console.say(f"images     {len(indices):,} of {len(source):,} in {settings.source}")
    unlabelled = source.relabelled(np.full(len(source), -1), [])  # Pretraining reads no label.
    say_check(unlabelled, cache, settings.source or "")


def _open(settings: PretrainSettings, split_rule: int, init_weights: InitWeights | None) -> Source:
    source = grouped(open_source(source_of(settings), split_rule), settings.group_by)
    if not settings.transductive:
        require_groups_to_test(source, settings.group_by)
    source = scaled(source, bands_of(settings), artifacts_of(init_weights))
    say_source(source)
    return source


def checked(
    settings: PretrainSettings, default_minutes: float = DEFAULT_MINUTES
) -> tuple[Budget, dict[str, Any]]:
    """Checks the settings; returns the budget and the options of the method. Raises UserError."""
    check_new(settings.out)
    options, epochs, minutes = _method_options(settings), settings.epochs, settings.minutes
    return budget_of(epochs, minutes, DEFAULT_EPOCHS, default_minutes, "pretrain"), options


def _method_options(settings: PretrainSettings) -> dict[str, Any]:
    """Checks the settings and returns the options of the method."""
    check_settings(settings.method, settings.optimizer, settings.adapt)
    given = {name: getattr(settings, name) for name in settings.METHOD_OPTIONS}
    return options_of(settings.method, given | (settings.options or {}))


def _require_images(settings: PretrainSettings, count: int) -> None:
    """Raises UserError for too few images."""
    if count < FEWEST_IMAGES:
        raise UserError(
            f"{settings.source} has {count} images to learn from, but pretraining needs "
            f"{FEWEST_IMAGES}.",
            "add images, which need no labels.",
        )


def _report(**choices: tuple[object, str]) -> None:
    """Reports each choice with its reason."""
    for name, (value, why) in choices.items():
        console.say(f"{name:<10} {value} ({why})")


def _choose_size(
    settings: PretrainSettings, init_weights: InitWeights | None, native: int, device: torch.device
) -> tuple[int, str]:
    """Returns the side of the encoder's input, and why. native: that of the images."""
    if init_weights is None:
        return choose_size(settings.size, native, device, many=True)
    return choose_pretrained_size(settings.size, native, init_weights.expected, device)


def _choose_network(
    settings: PretrainSettings,
    init_weights: InitWeights | None,
    size: int,
    cache: ImageCache,
    indices: np.ndarray,
    device: torch.device,
) -> tuple[dict[str, Any], str]:
    """Returns the encoder's name and its input normalisation, as config.json has them, and why."""
    if init_weights is not None:
        expected = init_weights.expected
        names = {"encoder": init_weights.encoder, "mean": expected.mean, "std": expected.std}
        return names, "the network of these weights"
    method = METHODS[settings.method]
    name, why = choose_encoder(settings.encoder, size, len(indices), device)
    mean, std = normalisation(cache, indices, method.input)
    return {"encoder": method.encoder_name(name), "mean": mean, "std": std}, why


def prepare(settings: PretrainSettings, resolved: Resolved) -> Prepared:
    """Builds what is trained, its data and the plan of steps. Raises UserError."""
    config, device, cache = resolved.config, resolved.device, resolved.cache
    start = None
    if resolved.init_weights is not None:
        start = Encoder(config["encoder"], config["size"], config["mean"], config["std"])
        load_init_weights(resolved.init_weights, start)
    objective = build_objective(config, settings.seed, start)
    recipe = Recipe(**config["recipe"])
    views = objective.recipe if isinstance(objective, Method) else recipe
    colour = f"colour strength {views.jitter}" if views.jitter else "crops and flips, colours unchanged"
    why = resolved.recipe_reason if views == recipe else "set by the method"
    console.say(f"views      {colour} ({why})")
    budget = resolved.budget
    if budget.repeated is not None:
        config = config | {"viewed": budget.repeated.images}
    data, left = training_data_of(
        objective, config, cache, resolved.indices, device, resolved.precision, budget
    )
    if len(data) < len(resolved.indices):
        console.say(
            f"learned    from {len(data):,} of these images, drawn at random: at most {MOST_IMAGES:,}, "
            "and as many as there is time for"
        )
    batch, why_batch = choose_batch(settings.batch, len(data), device, objective.large_batches)
    each = words_of(batch)
    console.say(f"batch      {batch} ({why_batch}{f'; {each}' if each else ''})")
    plan_options = PlanOptions(
        batch,
        optimizer_choice(objective, batch, settings.optimizer),
        settings.lr,
        settings.seed,
        resolved.precision,
        settings.compile,
    )
    plan = plan_within(left, objective, data, device, plan_options)
    config = config | {
        "images": len(data),
        "viewed": len(data),
        "plan": asdict(plan),
        "epochs": plan.last_step() / plan.steps_per_epoch(len(data)),
    }
    init_weights, indices, steps = resolved.init_weights, resolved.indices, plan.last_step()
    seen = cache.digests[:0] if init_weights is None else seen_before(init_weights)
    return Prepared(
        config, resolved.source, cache, indices, device, start, objective, data, plan, steps, seen
    )


def create(run: Run, prepared: Prepared) -> None:
    """Writes what a new run needs to be resumed."""
    if prepared.start is not None:  # To measure the drift, too.
        metadata = encoder_metadata(prepared.config, prepared.start, "", 0)
        save_encoder(run.folder / START, prepared.start, nn.Sequential(), metadata, prepared.seen)
    run.write_bad_images(prepared.cache.bad)
    run.write_config(prepared.config)  # Last, because a run with a config can be resumed.


def restore(folder: Path, config: dict[str, Any], device: str, threads: int | None) -> Prepared:
    """Prepares a run again that was interrupted. Raises UserError if its images have changed."""
    chosen = set_up_as_started(config, device, threads)
    plan = Plan(**config["plan"])
    check_compile("on" if plan.compile else "off", chosen)
    source = open_source(config["source"], config.get("split_rule", 1))
    source = grouped(source, config.get("group_by"))
    check_content(folder, config, source)
    source = replace(source, scale=scale_from(config.get("pixels")))
    cache = cached_images(source, config["side"])
    indices = pretraining_images(
        source, cache, config["transductive"], config["split_seed"], config.get("split_rule", 1)
    )
    start = None if config["init"] == SCRATCH else load_encoder(folder / START)[0]
    objective = build_objective(config, plan.seed, start)
    data, _ = training_data_of(objective, config, cache, indices, chosen, plan.precision)
    position = saved_position(_saving(Run(folder)).file)
    done, newest = position["step"], replace(plan, replanned=position.get("replanned", plan.replanned))
    console.say(f"resumed    {folder} " + (f"after step {done:,}" if done else "from its beginning"))
    Run(folder).keep_metrics_until(done)
    steps = newest.last_step()
    config = config | {"epochs": steps / plan.steps_per_epoch(len(data))}
    seen = cache.digests[:0] if start is None else digests_of_trained(folder / START)
    return Prepared(config, source, cache, indices, chosen, start, objective, data, plan, steps, seen)


def _saving(run: Run) -> Saving:
    command = f"clfew pretrain --resume {shlex.quote(str(run.folder))}"
    return Saving(run.folder / "state", command)


class _Progress:
    """Writes the rows of the log to the run and to the terminal, and raises the alarm when a collapse
    begins. last: the last row, {} before the first."""

    def __init__(self, run: Run, steps: int, update: Callable[..., None]) -> None:
        self._run, self._steps, self._update = run, steps, update
        self.last: dict[str, float] = {}

    def __call__(self, row: dict[str, float]) -> None:
        self._run.log(row)
        planned = int(row.get("steps", self._steps))
        if not 1 / WORTH_SAYING < planned / self._steps < WORTH_SAYING:
            console.say(f"planned    {planned:,} steps in all, at the speed of step {row['step']:,}")
            self._steps = planned
        note = (
            f"loss {row['loss']:.3f}  {row['images_per_second']:.0f} images/s  "
            f"{row['data_wait']:.0%} waiting"
        )
        if wrong := collapse(row):
            note += "  collapsing"
            if not collapse(self.last):  # Said at once, not after hours of training.
                console.say(f"alarm      step {row['step']:,}: {wrong}")
        self.last = row
        self._update(row["step"], planned, note)


def train_steps(
    run: Run, prepared: Prepared, stop: StopRequest | None
) -> tuple[Prepared, dict[str, float]]:
    """Takes the steps that are left. Returns the run with the plan that was carried out, and the last
    row of the log, {} if no step was left."""
    plan, objective = prepared.plan, prepared.objective
    console.say(
        f"training   {prepared.config['epochs']:.4g} epochs, {prepared.steps:,} steps with "
        f"{plan.optimizer} into {run.folder}"
    )
    rate = ENCODER_RATE if isinstance(objective, Method) and objective.gentle else 1.0
    with console.progress_bar("pretrain") as update:
        progress = _Progress(run, prepared.steps, update)
        plan = train(
            objective,
            prepared.data,
            plan,
            prepared.device,
            progress,
            _saving(run),
            lambda name: rate if name.startswith("encoder.") else 1.0,
            stop,
        )
    epochs = plan.last_step() / plan.steps_per_epoch(len(prepared.data))
    config = prepared.config | {"epochs": epochs, "replanned": [plan.replanned]}
    return replace(prepared, plan=plan, config=config), progress.last


def save(run: Run, prepared: Prepared, last_row: dict[str, float]) -> None:
    """Writes the samples, what has become of the plan, and the artifact with its metadata."""
    objective, device, config = prepared.objective, prepared.device, dict(prepared.config)
    carried_out = {name: config[name] for name in ("epochs", "replanned")}
    run.write_config(read_config(run.folder) | carried_out)
    config["plan"] = asdict(prepared.plan)
    if wrong := collapse(last_row):
        console.say(
            f"alarm      {wrong}: the features carry little information. Train longer, or with "
            "another --lr."
        )
    if isinstance(objective, Method):
        objective.eval()
        if config["samples"]:
            path = run.folder / "samples.png"
            write_samples(path, objective, prepared.data, prepared.plan.seed, device)
        if not objective.shows_whole_images and not objective.gentle:
            estimate_statistics(objective.encoder, prepared.data, device)
    elif config["samples"]:
        console.say(
            "samples    samples.png is not written: the layer was trained on features, not on images"
        )
    cache, indices = prepared.cache, prepared.indices
    if prepared.start is not None:
        arrays = (cache.pixels, cache.aspects, indices)
        start = run.folder / START
        config["drift"] = report_drift(start, objective.encoder, *arrays, device, prepared.precision)
    neck = neck_width(objective.projector)
    metadata = encoder_metadata(config, objective.encoder, config["method"], neck)
    artifact = run.folder / ARTIFACTS["pretrain"]
    seen = indices
    if not isinstance(objective, Method):
        seen = np.sort(learned_from(indices, config["split_seed"], config["viewed"]))
    sync(run.folder / "metrics.jsonl")  # The metrics must be on the disk before the artifact.
    digests = np.union1d(prepared.seen, cache.digests[seen])
    save_encoder(artifact, objective.encoder, objective.projector, metadata, digests)
    _saving(run).discard()
    console.say(f"saved      {artifact}")
