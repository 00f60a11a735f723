"""From the options of a pretraining run to the network, the training data and the number of steps."""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import nn

from clfew.data.augment import Recipe, evaluation_view
from clfew.data.cache_folder import ImageCache
from clfew.data.held_out import split_source
from clfew.data.randomness import epoch_order
from clfew.data.source import Source
from clfew.data.splits import evenly_spaced
from clfew.data.to_device import to_device
from clfew.errors import UsageError, UserError
from clfew.methods.adapter import LAYER, NETWORK, WIDTH, Adapter, adapter_optimizer
from clfew.methods.base import METHODS, Method
from clfew.methods.simclr import is_decoupled
from clfew.models.encoder import RGB, Encoder, freeze_first
from clfew.models.init_weights import InitWeights, find_init_weights
from clfew.models.metadata import ArtifactMetadata
from clfew.training.batch import TrainingData
from clfew.training.budget import Budget
from clfew.training.optim import (
    KEPT_FRACTION,
    OPTIMIZERS,
    OptimizerChoice,
    choose_pretraining,
    gentle_pretraining,
)
from clfew.version import __version__

DEFAULT_EPOCHS = 100.0
DEFAULT_MINUTES = 10.0
"""Without --epochs and --minutes a run takes 100 epochs, but no longer than this."""

_LOOK_AT_IMAGES = 2000
_TRAINING_KEYS = ("init", "adapt", "options", "recipe", "plan", "epochs", "drift")
_DATA_KEYS = (
    "source",
    "fingerprint",
    "content",
    "images",
    "transductive",
    "split_seed",
    "split_rule",
    "group_by",
    "pixels",
)
_NOT_OPTIONS = ("self", "encoder", "recipe", "gentle")

Objective = Method | Adapter


def options_of(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """Returns all options of a method: the given ones (not None) and the defaults of the others. Raises
    UsageError if the method does not have a given option."""
    parameters = inspect.signature(METHODS[method].__init__).parameters
    own = {name: p.default for name, p in parameters.items() if name not in _NOT_OPTIONS}
    for name, value in given.items():
        if value is not None and name not in own:
            having = [other for other in METHODS if name in inspect.signature(METHODS[other]).parameters]
            raise UsageError(
                f"--{name} is no option of --method {method}.", f"it belongs to {', '.join(having)}."
            )
    return own | {name: value for name, value in given.items() if value is not None}


def find_pretraining_start(
    init: str, encoder: str, method: str, device: torch.device
) -> tuple[InitWeights | None, str]:
    """Returns the weights to start from (None for random ones), and the reason.

    Only SimCLR's adapter leaves pretrained weights unchanged, so other methods start from scratch unless
    `init` names weights. Raises UserError if the method's network cannot use pretrained weights.
    """
    if method == "simclr":
        return find_init_weights(init, encoder, device)
    if init == "auto":
        return None, f"the default of {method}"
    init_weights, why = find_init_weights(init, encoder, device)
    if init_weights is not None and METHODS[method].input != RGB:
        raise UserError(
            f"--method {method} cannot use pretrained weights: they take RGB images, and its network "
            f"takes {METHODS[method].input} images.",
            "start from scratch: --init scratch.",
        )
    return init_weights, why


def build_objective(config: dict[str, Any], seed: int, start: Encoder | None) -> Objective:
    """Returns the module that is trained, with random weights or those of `start`. Raises UserError if
    the method cannot use the encoder."""
    torch.manual_seed(seed)
    adapter = WIDTH if config["adapt"] == LAYER else 0
    method, options = METHODS[config["method"]], config["options"]
    encoder = Encoder(
        config["encoder"], config["size"], config["mean"], config["std"], adapter, method.input
    )
    if start is not None:
        encoder.backbone.load_state_dict(start.backbone.state_dict())
    if adapter:
        return Adapter(encoder, options["temperature"], is_decoupled(options["loss"]))
    if start is not None:
        freeze_first(encoder, KEPT_FRACTION)
    return method(encoder, Recipe(**config["recipe"]), start is not None, **options)


def training_data_of(
    objective: Objective,
    config: dict[str, Any],
    cache: ImageCache,
    indices: np.ndarray,
    device: torch.device,
    precision: str,
    budget: Budget | None = None,
) -> tuple[TrainingData, Budget]:
    """Returns the images, or for an adapter the features of their views, and what is left of the
    budget."""
    budget = budget or Budget(None, None, DEFAULT_EPOCHS, DEFAULT_MINUTES)
    if isinstance(objective, Method):
        some = evenly_spaced(indices, _LOOK_AT_IMAGES)
        objective.look_at(torch.from_numpy(cache.pixels[some]), torch.from_numpy(cache.aspects[some]))
        return TrainingData(cache.pixels, cache.aspects, indices), budget
    return objective.prepare(
        cache,
        indices,
        Recipe(**config["recipe"]),
        config["split_seed"],
        device,
        precision,
        budget,
        config.get("viewed"),
    )


@torch.no_grad()
def estimate_statistics(
    encoder: Encoder, data: TrainingData, device: torch.device, images: int = 4096
) -> None:
    """Replaces the statistics of the encoder's BatchNorm layers, which are of its training inputs, by
    those of whole, clean images: the mean over random batches of at most `images` images."""
    layers = [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # A plain mean over batches.
    encoder.to(device).train()
    # Folders list images class by class: a batch of neighbours would vary less than all images do.
    some = data.indices[epoch_order(0, 0, len(data))[:images]]
    for rows in np.array_split(some, max(1, len(some) // 256)):
        pixels, aspects = to_device(data.pixels[rows], device), to_device(data.aspects[rows], device)
        encoder(evaluation_view(pixels, aspects, encoder.size))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    encoder.eval()


def optimizer_choice(
    objective: Objective, batch: int, optimizer: str
) -> Callable[[int], OptimizerChoice]:
    """Returns the function that chooses the optimizer for a number of steps (see `PlanOptions`)."""
    size = sum(parameter.numel() for parameter in objective.parameters() if parameter.requires_grad)

    def choose(steps: int) -> OptimizerChoice:
        if isinstance(objective, Adapter):
            return adapter_optimizer(optimizer)
        if objective.gentle:
            return gentle_pretraining(optimizer)
        if objective.learning_rate and optimizer == "auto":
            return "adamw", objective.learning_rate, 1e-4, "stable for this method"
        return choose_pretraining(batch, steps, size, optimizer)

    return choose


def pretraining_images(
    source: Source, cache: ImageCache, transductive: bool, seed: int, rule: int
) -> np.ndarray:
    """Returns the readable images outside the test split; with `transductive`, all readable images.
    Labels are used only to draw the test split."""
    if transductive:
        return cache.good
    return split_source(source, cache, seed, rule).pool


def check_settings(method: str, optimizer: str, adapt: str) -> None:
    for option, value, allowed in (
        ("--method", method, list(METHODS)),
        ("--optimizer", optimizer, ["auto", *OPTIMIZERS]),
        ("--adapt", adapt, [LAYER, NETWORK]),
    ):
        if value not in allowed:
            close = get_close_matches(value, allowed, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose {', '.join(allowed)}."
            raise UsageError(f"{option} {value} is not known.", hint)


def encoder_metadata(
    config: dict[str, Any], encoder: Encoder, method: str, neck: int
) -> ArtifactMetadata:
    """Returns the metadata of an encoder, from the configuration of the run that trained it."""
    training = {name: config[name] for name in _TRAINING_KEYS if name in config}
    return ArtifactMetadata(
        kind="encoder",
        encoder=config["encoder"],
        size=config["size"],
        side=config["side"],
        mean=config["mean"],
        std=config["std"],
        dim=encoder.dim,
        method=method,
        flip=config["recipe"]["flip"],
        neck=neck,
        clfew_version=__version__,
        adapter=0 if encoder.adapter is None else encoder.adapter.linear.out_features,
        sees=encoder.input,
        training={"pretrain": {"command": config["command_line"]} | training},
        data={"pretrain": {k: config[k] for k in _DATA_KEYS if k in config}},
    )
