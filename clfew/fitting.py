"""From an encoder and a few labels to a classifier, in one of four modes or the best of them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clfew.augment import Recipe, random_views
from clfew.classifier import Classifier, build_neck, neck_width
from clfew.encoders import Encoder, freeze_statistics
from clfew.features import apply_to_store
from clfew.probes import folds, knn_head, linear_head
from clfew.propagation import neighbour_graph, propagated_shares, propagation_head
from clfew.training.batch import Batch, TrainingData
from clfew.training.loop import train
from clfew.training.plan import Plan

FINE_TUNE_FROM = 10
"""Labels a class from which `auto` also tries to fine-tune: with fewer, its gain over a linear probe
is smaller than cross-validation can see, and its cost is not."""

FROZEN_STATISTICS_BELOW = 10
"""Labels a class below which BatchNorm keeps its statistics: a few images give none worth having."""

Log = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Start:
    """What fine-tuning starts from: an encoder, the projector's first layer, and whether it has
    learned anything yet."""

    encoder: Encoder
    neck: nn.Sequential
    is_pretrained: bool
    flip: bool


@dataclass(frozen=True)
class Task:
    """Stored images, of which a few have labels.

    pixels, aspects: a store's arrays. pool: indices of the images outside the test split, labelled
    or not. labels: int64, of each image of the store, -1 where unknown. features: float32, one row
    for each of `pool` and then of any further unlabelled images; not there when starting from
    scratch.
    """

    pixels: np.ndarray
    aspects: np.ndarray
    pool: np.ndarray
    labels: np.ndarray
    classes: int
    features: np.ndarray | None
    device: torch.device
    precision: str

    @cached_property
    def graph(self) -> Any:
        """Nearest neighbours among all images with features."""
        assert self.features is not None
        return neighbour_graph(self.features)


@dataclass(frozen=True)
class FullSettings:
    """Settings of mode `full`; None is the default for the number of labels (see `_plan`)."""

    epochs: float | None = None
    batch: int | None = None
    learning_rate: float | None = None


class FineTuning(nn.Module):
    """Cross-entropy on crops and flips of labelled images (SimCLRv2, section 4.1)."""

    def __init__(self, classifier: Classifier, flip: bool, freeze_statistics: bool) -> None:
        super().__init__()
        self.classifier, self.freeze_statistics = classifier, freeze_statistics
        self.recipe = Recipe(crop_area=0.3, flip=flip, jitter=0, grey=0, blur=0)

    def train(self, mode: bool = True) -> "FineTuning":
        super().train(mode)
        if self.freeze_statistics:
            freeze_statistics(self)
        return self

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        size = self.classifier.encoder.size
        views = random_views(batch.images, batch.aspects, size, self.recipe, batch.random, views=1)
        logits = self.classifier(views).float()
        assert batch.labels is not None
        accuracy = (logits.argmax(1) == batch.labels).float().mean()
        return F.cross_entropy(logits, batch.labels), {"train_accuracy": accuracy}


def fit(
    start: Start, task: Task, labelled: np.ndarray, mode: str, seed: int,
    settings: FullSettings = FullSettings(), log: Log = lambda row: None,
) -> tuple[Classifier, dict[str, Any]]:  # fmt: skip
    """A classifier from the labels of images `labelled` (a subset of `task.pool`).

    mode: "full", "linear", "knn", "propagate" or "auto". Returns the classifier, in eval mode, and
    what was decided: the mode, why, and its settings. `start` is not changed.
    """
    chosen: dict[str, Any] = {"mode": mode}
    if mode == "auto":
        chosen = choose_mode(start, task, labelled, seed, settings)
    if chosen["mode"] == "full":
        classifier, plan = _fit_full(start, task, labelled, seed, settings, log)
        return classifier, chosen | plan
    head, extra = _fit_probe(chosen["mode"], task, labelled, seed)
    nothing = build_neck(start.encoder.dim, 0)
    classifier = Classifier(copy.deepcopy(start.encoder), nothing, head)
    return classifier.eval(), chosen | extra


def choose_mode(
    start: Start, task: Task, labelled: np.ndarray, seed: int, settings: FullSettings
) -> dict[str, Any]:
    """The mode that does best in cross-validation on the labelled images, with its reason.

    With one label in some class there is nothing to cross-validate with: then labels are
    propagated, which at one label a class did better than a linear probe on Fashion-MNIST and no
    worse on hand signs (held-out parts of their training splits; other images were not tried).
    """
    if not start.is_pretrained:
        return {"mode": "full", "reason": "from scratch there are no features to probe"}
    smallest = np.unique(task.labels[labelled], return_counts=True)[1].min()
    splits = folds(task.labels[labelled], seed)
    if not splits:
        return {"mode": "propagate", "reason": "one label in some class: nothing to compare modes on"}
    modes = (["full"] if smallest >= FINE_TUNE_FROM else []) + ["propagate", "linear", "knn"]
    scores = {}
    for mode in modes:
        hits = [
            _held_out_hits(mode, start, task, labelled[fitted], labelled[held_out], seed, settings)
            for fitted, held_out in splits
        ]
        scores[mode] = round(float(np.concatenate(hits).mean()), 4)
    best = max(modes, key=lambda mode: scores[mode])
    listed = ", ".join(f"{mode} {score:.2f}" for mode, score in scores.items())
    return {"mode": best, "reason": f"cross-validated: {listed}", "cross_validation": scores}


def _held_out_hits(
    mode: str, start: Start, task: Task, fitted: np.ndarray, held_out: np.ndarray, seed: int,
    settings: FullSettings,
) -> np.ndarray:  # fmt: skip
    """1.0 for each image of `held_out` that a classifier fitted on `fitted` gets right, else 0.0."""
    rows = np.searchsorted(task.pool, held_out)
    if mode == "full":
        classifier, _ = _fit_full(start, task, fitted, seed, settings, lambda row: None)
        scores = predict_store(classifier, task, held_out)
    elif mode == "propagate":
        known = np.searchsorted(task.pool, fitted)
        scores = propagated_shares(task.graph, known, task.labels[fitted], task.classes)[rows]
    else:
        head, _ = _fit_probe(mode, task, fitted, seed)
        assert task.features is not None
        with torch.no_grad():
            scores = head(torch.from_numpy(task.features[rows])).numpy()
    return (scores.argmax(1) == task.labels[held_out]).astype(np.float64)


def predict_store(classifier: Classifier, task: Task, indices: np.ndarray) -> np.ndarray:
    """Logits (len(indices), C) for stored images."""
    size = classifier.encoder.size
    arrays = (task.pixels, task.aspects, indices)
    return apply_to_store(classifier, size, *arrays, task.device, task.precision)


def _fit_probe(
    mode: str, task: Task, labelled: np.ndarray, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    assert task.features is not None
    rows = np.searchsorted(task.pool, labelled)
    labels = task.labels[labelled]
    if mode == "linear":
        head, strength = linear_head(task.features, rows, labels, task.classes, seed)
        return head, {"strength": strength}
    if mode == "knn":
        neighbours = knn_head(task.features, rows, labels, task.classes)
        return neighbours, {"k": neighbours.k}
    propagated = propagation_head(task.features, task.graph, rows, labels, task.classes)
    return propagated, {"images": len(task.features)}


def _fit_full(
    start: Start, task: Task, labelled: np.ndarray, seed: int, settings: FullSettings, log: Log
) -> tuple[Classifier, dict[str, Any]]:
    torch.manual_seed(seed)
    encoder, neck = copy.deepcopy(start.encoder), copy.deepcopy(start.neck)
    head = nn.Linear(neck_width(neck) or encoder.dim, task.classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    smallest = int(np.unique(task.labels[labelled], return_counts=True)[1].min())
    freeze = start.is_pretrained and smallest < FROZEN_STATISTICS_BELOW
    objective = FineTuning(Classifier(encoder, neck, head), start.flip, freeze)
    plan = _plan(len(labelled), start.is_pretrained, seed, task.precision, settings)
    data = TrainingData(task.pixels, task.aspects, labelled, task.labels[labelled])
    # Self-supervised weights want a smaller step than a classifier that starts at zero (VICReg's
    # and OpenSelfSup's few-label recipes; they find factors of 3 to 100).
    below_head = 0.1 if start.is_pretrained else 1.0
    train(
        objective, data, plan, task.device, log,
        lr_scale=lambda name: 1.0 if ".head." in name else below_head,
    )  # fmt: skip
    epochs = plan.steps / plan.steps_per_epoch(len(labelled))
    used = {"epochs": epochs, "batch": plan.batch, "learning_rate": plan.learning_rate,
            "frozen_statistics": freeze}  # fmt: skip
    return objective.classifier.eval(), used


def _plan(images: int, is_pretrained: bool, seed: int, precision: str, settings: FullSettings) -> Plan:
    """60 epochs, 30 from 5,000 labels on (SimCLRv2, section 4.1), but no fewer than 150 steps."""
    batch = settings.batch or min(64, images)
    per_epoch = max(1, images // batch)
    epochs = settings.epochs or (60 if images < 5000 else 30)
    steps = max(1, round(epochs * per_epoch))
    if settings.epochs is None:
        steps = max(150, steps)
    peak = settings.learning_rate or (5e-3 if is_pretrained else 2e-3)
    decay = 0.0 if is_pretrained else 5e-4
    return Plan(steps, batch, "adamw", peak, decay, max(1, steps // 20), seed, precision)
