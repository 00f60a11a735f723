"""What a pretraining run trains, on what, and for how many steps."""

from typing import Any

import numpy as np
import torch

from clfew.adapter import LAYER, WIDTH, Adapter, adapter_optimizer
from clfew.augment import Recipe
from clfew.data.store import Store
from clfew.encoders import Encoder, freeze_first
from clfew.methods import METHODS
from clfew.methods.simclr import SimCLR
from clfew.training.batch import TrainingData
from clfew.training.budget import Budget, plan_within
from clfew.training.optim import (
    KEPT_SHARE,
    OptimizerChoice,
    choose_pretraining,
    gentle_pretraining,
)
from clfew.training.plan import Plan

DEFAULT_EPOCHS = 100.0
DEFAULT_MINUTES = 10.0
"""Without --epochs and --minutes a run takes 100 epochs, but no longer than this."""

Objective = SimCLR | Adapter


def build_objective(config: dict[str, Any], seed: int, start: Encoder | None) -> Objective:
    """What is trained, from random weights or those of `start`."""
    torch.manual_seed(seed)
    adapter = WIDTH if config["adapt"] == LAYER else 0
    encoder = Encoder(config["encoder"], config["size"], config["mean"], config["std"], adapter)
    if start is not None:
        encoder.backbone.load_state_dict(start.backbone.state_dict())
    if adapter:
        return Adapter(encoder, config["temperature"], config["loss"] == "dcl")
    if start is not None:
        freeze_first(encoder, KEPT_SHARE)
    return METHODS[config["method"]](
        encoder, Recipe(**config["recipe"]), config["temperature"], config["loss"], start is not None
    )


def learned_from(
    objective: Objective, config: dict[str, Any], store: Store, indices: np.ndarray,
    device: torch.device, precision: str, budget: Budget | None = None,
) -> tuple[TrainingData, Budget]:  # fmt: skip
    """The images, or for an adapter the features of their views; and what is left of the budget."""
    budget = budget or Budget(None, None, DEFAULT_EPOCHS, DEFAULT_MINUTES)
    if isinstance(objective, SimCLR):
        return TrainingData(store.pixels, store.aspects, indices), budget
    return objective.prepare(
        store, indices, Recipe(**config["recipe"]), config["split_seed"], device, precision, budget,
        config.get("viewed"),
    )  # fmt: skip


def pretraining_plan(
    objective: Objective, data: TrainingData, device: torch.device, budget: Budget, *,
    batch: int, optimizer: str, **settings: Any,
) -> Plan:  # fmt: skip
    size = sum(parameter.numel() for parameter in objective.parameters())

    def choose(steps: int) -> OptimizerChoice:
        if isinstance(objective, Adapter):
            return adapter_optimizer(optimizer)
        if objective.gentle:
            return gentle_pretraining(optimizer)
        return choose_pretraining(batch, steps, size, optimizer)

    return plan_within(budget, objective, data, device, batch=batch, choose_optimizer=choose, **settings)
