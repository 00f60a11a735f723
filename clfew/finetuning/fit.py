"""Makes a classifier from an encoder and a few labels, in one of four modes."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clfew.data.augment import Recipe, random_views
from clfew.finetuning.asked import MACRO_F1
from clfew.finetuning.expected_shares import ExpectedShares
from clfew.finetuning.label_propagation import neighbour_graph, propagation_head
from clfew.finetuning.metric import BY_ACCURACY, Metric
from clfew.finetuning.probes import NEVER, knn_head, linear_head, smallest_class, voters, weighted_head
from clfew.finetuning.start import Start
from clfew.group.command import say_remainder
from clfew.models.classifier import Classifier, build_neck, neck_width
from clfew.models.encoder import freeze_statistics
from clfew.models.features import apply_to_cache
from clfew.training.batch import Batch, TrainingData
from clfew.training.loop import train
from clfew.training.plan import Plan
from clfew.training.saving import Saving, Trainings
from clfew.training.signals import StopRequest

FROZEN_STATISTICS_BELOW = 10
"""With fewer labels per class than this, BatchNorm keeps its statistics: a few images give poor ones."""

ROOT = 0.5
"""The power of the shares for which heads decide by macro F1. On held-out parts of the training splits
of aerial photographs and hand signs, with 40 and 100 labels drawn at random, propagation reached a macro
F1 of .86 with it where one class had 5 %, and of .46 with a tail 50 to 1; with the shares themselves .78
and .38, with equal ones .74 and .47."""

EPOCHS, LEAST_STEPS = 60, 150
"""The length of a training of mode `full` (SimCLRv2, section 4.1); from 5,000 labels on, half as many
epochs."""

Log = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class Task:
    """Cached images, of which a few have labels.

    pixels, aspects: the arrays of an image cache. pool: indices of the images outside the test split,
    labelled or not. labels: int64, the class of each image in the cache, -1 where unknown. classes: the
    number of classes. features: float32, one row for each image of `pool` and then one for each further
    unlabelled image; None where the mode does not use features. trainings: where trainings on these
    images save their states; None where none is saved. stop: of the command, if it trains several times.
    is_scaled: whether the scale of the features means something, as that of encoders side by side:
    otherwise each is standardised. groups: int64, the group of each image in the cache, whose images are
    on one side of each fold; None where every image is alone. shares: of the classes, where they are
    expected to be unequal. metric: by which classifiers are chosen, and for which they decide.
    """

    pixels: np.ndarray
    aspects: np.ndarray
    pool: np.ndarray
    labels: np.ndarray
    classes: int
    features: np.ndarray | None
    device: torch.device
    precision: str
    trainings: Trainings | None = None
    stop: StopRequest | None = None
    is_scaled: bool = False
    groups: np.ndarray | None = None
    shares: ExpectedShares | None = None
    metric: Metric = BY_ACCURACY

    def groups_of(self, indices: np.ndarray) -> np.ndarray | None:
        """Returns the groups of some images, None where every image is alone."""
        return None if self.groups is None else self.groups[indices]

    def judged_shares(self) -> np.ndarray | None:
        """Returns the class shares, (C,), with which classifiers are judged: those expected, or equal
        ones for the balanced accuracy. None where the labels have them, or nothing is known."""
        if self.metric.is_balanced:
            return np.full(self.classes, 1 / self.classes)
        return None if self.shares is None or self.shares.is_in_labels else self.shares.share

    def decided_shares(self, has_C: np.ndarray) -> np.ndarray | None:
        """Returns the class shares, (C,), for which a head decides that takes the classes to have the
        shares `has_C`; None for the same. They are those that it is judged by, but for macro F1 half way
        to equal ones: what is right most often names rare classes too rarely (see ROOT)."""
        judged_C = self.judged_shares()
        if self.metric.name != MACRO_F1:
            return judged_C
        root_C: np.ndarray = (has_C if judged_C is None else judged_C) ** ROOT
        return root_C / root_C.sum()

    def weights_of(self, labelled: np.ndarray) -> np.ndarray | None:
        """Returns how many images each label stands for, (L,), 1 on average: more where its class has
        fewer of the labels than of the shares that count (see `judged_shares`). None where each stands
        for as many."""
        share_C = self.judged_shares()
        if share_C is None:
            return None
        labels = self.labels[labelled]
        weights_L = share_C[labels] / np.bincount(labels, minlength=self.classes)[labels]
        normalised: np.ndarray = weights_L / weights_L.mean()
        return None if np.allclose(normalised, 1) else normalised

    def smallest_class(self, labelled: np.ndarray) -> int:
        """Returns the number of labels, in groups the number of groups, of the class that has the
        fewest: so many folds can hold some of it out."""
        return smallest_class(self.labels[labelled], self.groups_of(labelled))

    def next_saving(self) -> Saving | None:
        """Returns where the training that starts now saves its state."""
        return None if self.trainings is None else self.trainings.next()

    @cached_property
    def graph(self) -> Any:
        """The graph of nearest neighbours among all images with features (see `neighbour_graph`)."""
        assert self.features is not None
        return neighbour_graph(self.features, self.is_scaled)


@dataclass(frozen=True)
class FullSettings:
    """Settings of mode `full`; None means the default for the number of labels (see `_plan`)."""

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
    start: Start,
    task: Task,
    labelled: np.ndarray,
    mode: str,
    seed: int,
    settings: FullSettings = FullSettings(),
    log: Log = lambda row: None,
    judged: np.ndarray | None = None,
) -> tuple[Classifier, dict[str, Any]]:
    """Fits a classifier to the labels of a few images.

    labelled: indices of the labelled images, a subset of `task.pool`. mode: one of MODES. judged: the
    labelled images of the classifier that this one, of a part of them, stands for; what depends on the
    number of labels is then as it is there. Returns the classifier, in eval mode, and the settings that
    were chosen. `start` is not changed.
    """
    if mode == "full":
        return fit_full(start, task, labelled, seed, settings, log, judged)
    head, extra = fit_probe(mode, task, labelled, seed, judged)
    no_neck = build_neck(start.encoder.dim, 0)
    return Classifier(copy.deepcopy(start.encoder), no_neck, head).eval(), extra


def predict_cached(classifier: Classifier, task: Task, indices: np.ndarray) -> np.ndarray:
    """Returns the logits (len(indices), C) of cached images."""
    size = classifier.encoder.size
    arrays = (task.pixels, task.aspects, indices)
    return apply_to_cache(classifier, size, *arrays, task.device, task.precision)


def fit_probe(
    mode: str, task: Task, labelled: np.ndarray, seed: int, judged: np.ndarray | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Fits a head on the features of the task, in mode "linear", "weighted", "knn" or "propagate";
    returns it and the settings that were chosen. judged: see `fit`."""
    assert task.features is not None
    rows = np.searchsorted(task.pool, labelled)
    labels = task.labels[labelled]
    all_labels = labels if judged is None else task.labels[judged]
    if mode in ("linear", "weighted"):
        fewest = task.smallest_class(labelled if judged is None else judged)
        groups = task.groups_of(labelled)
        inputs = (task.features, rows, labels, task.classes, seed)
        if mode == "weighted":
            return weighted_head(*inputs, fewest, task.is_scaled, groups)
        linear, used = linear_head(*inputs, fewest, task.is_scaled, groups)
        _decide_for(linear, task, labels, np.bincount(labels, minlength=task.classes) / len(labels))
        return linear, used
    if mode == "knn":
        neighbours = knn_head(task.features, rows, labels, task.classes, voters(all_labels))
        return neighbours, {"k": neighbours.k}
    held_out = np.setdiff1d(np.arange(0) if judged is None else judged, labelled)
    propagated = propagation_head(
        task.features,
        task.graph,
        rows,
        labels,
        task.classes,
        task.is_scaled,
        np.searchsorted(task.pool, held_out),
        task.shares,
    )
    equal = np.full(task.classes, 1 / task.classes)
    _decide_for(propagated, task, labels, equal if task.shares is None else task.shares.share)
    return propagated, {"images": len(task.features)}


def fit_full(
    start: Start,
    task: Task,
    labelled: np.ndarray,
    seed: int,
    settings: FullSettings,
    log: Log,
    judged: np.ndarray | None = None,
) -> tuple[Classifier, dict[str, Any]]:
    """Trains the whole network with a new head; returns the classifier, in eval mode, and the settings
    used. judged: see `fit`."""
    torch.manual_seed(seed)
    encoder, neck = copy.deepcopy(start.encoder), copy.deepcopy(start.neck)
    head = nn.Linear(neck_width(neck) or encoder.dim, task.classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    without = np.setdiff1d(np.arange(task.classes), task.labels[labelled])
    with torch.no_grad():
        head.bias[torch.from_numpy(without)] = NEVER
    smallest = smallest_class(task.labels[labelled if judged is None else judged])
    freeze = start.is_pretrained and smallest < FROZEN_STATISTICS_BELOW
    objective = FineTuning(Classifier(encoder, neck, head), start.flip, freeze)
    plan = _plan(len(labelled), start.is_pretrained, seed, task.precision, settings)
    say_remainder(plan.batch)
    data = TrainingData(task.pixels, task.aspects, labelled, task.labels[labelled])
    # Self-supervised weights need a smaller learning rate than a head that starts at zero (VICReg's
    # and OpenSelfSup's few-label recipes, which use factors of 3 to 100).
    below_head = 0.1 if start.is_pretrained else 1.0
    train(
        objective,
        data,
        plan,
        task.device,
        log,
        task.next_saving(),
        # By where it is: a backbone may have a layer that is called head too, as ConvNeXt's norm.
        lambda name: 1.0 if name.startswith("classifier.head.") else below_head,
        task.stop,
    )
    labels = task.labels[labelled]
    _decide_for(head, task, labels, np.bincount(labels, minlength=task.classes) / len(labels))
    epochs = plan.steps / plan.steps_per_epoch(len(labelled))
    used = {
        "epochs": epochs,
        "batch": plan.batch,
        "learning_rate": plan.learning_rate,
        "frozen_statistics": freeze,
    }
    return objective.classifier.eval(), used


def _decide_for(head: nn.Linear, task: Task, labels_L: np.ndarray, has_C: np.ndarray) -> None:
    """Changes the biases of a head that takes the classes to have the shares `has_C`, where it decides
    for others (see `Task.decided_shares`): of the classes that have labels, each becomes as much
    likelier as its share is larger (Saerens et al., 2002, equation 2.4)."""
    share_C = task.decided_shares(has_C)
    if share_C is None:
        return
    present = np.unique(labels_L)
    likelier = np.log(share_C[present].clip(1e-6) / has_C[present].clip(1e-6))
    with torch.no_grad():
        head.bias[torch.from_numpy(present)] += torch.from_numpy(likelier).to(head.bias)


def _plan(images: int, is_pretrained: bool, seed: int, precision: str, settings: FullSettings) -> Plan:
    """Plans EPOCHS, but at least LEAST_STEPS, where nothing else is asked for."""
    batch = min(settings.batch or 64, images)
    per_epoch = max(1, images // batch)
    epochs = settings.epochs or (EPOCHS if images < 5000 else EPOCHS / 2)
    steps = max(1, round(epochs * per_epoch))
    if settings.epochs is None:
        steps = max(LEAST_STEPS, steps)
    peak = settings.learning_rate or (5e-3 if is_pretrained else 2e-3)
    decay = 0.0 if is_pretrained else 5e-4
    return Plan(steps, batch, "adamw", peak, decay, max(1, steps // 20), seed, precision)
