"""Measures for a comparison: classifiers of the same labels on the features of different encoders.

Shape suffixes: N images of pool and test, D features.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clfew.data.augment import Recipe
from clfew.data.cache_folder import ImageCache
from clfew.data.groups import grouped
from clfew.data.image_cache import cached_images, typical_side
from clfew.data.labels import LabelSpec, parse_labels, sample_labels, say_classes_without_label
from clfew.data.source import Source
from clfew.data.sources import open_source, say_source
from clfew.data.splits import require_groups_to_test, require_testable
from clfew.errors import UserError
from clfew.finetuning.fit import Task, fit, fit_probe, predict_cached
from clfew.finetuning.labelled_data import LabelledData, bounded, labelled_data, say_groups, with_labels
from clfew.finetuning.metrics import accuracy_interval, deviation, packed, unpacked
from clfew.finetuning.model_selection import is_clearly_better
from clfew.finetuning.probes import few_label_correct, folds
from clfew.finetuning.start import Start
from clfew.methods.base import METHODS, Method
from clfew.models.defaults import cached_side, choose_batch, choose_encoder, choose_size
from clfew.models.encoder import Encoder
from clfew.models.features import apply_to_cache
from clfew.models.kept_scale import scaled
from clfew.runs.files import write_json
from clfew.training.batch import TrainingData
from clfew.training.device import choose_device, choose_precision
from clfew.training.loop import seconds_per_step
from clfew.training.plan import Plan
from clfew.training.signals import StopRequest

PIXELS_SIDE = 32


def pretraining_folder(method: str, number: int) -> str:
    """Returns the name of the folder of a method's pretraining run."""
    return f"pretrain-{method}-{number}"


@dataclass(frozen=True)
class ComparisonPlan:
    """What a comparison does: its settings, with their lists read. They are kept in config.json.

    epochs: a number, or the full path of a comparison whose steps are taken again.
    """

    source: str
    methods: list[str]
    labels: list[str]
    draws: int
    seeds: int
    minutes: float | None
    epochs: float | str | None
    encoder: str
    size: int | None
    mode: str
    flip: bool
    seed: int
    device: str
    precision: str
    threads: int | None
    split_rule: int = 1
    """Of comparisons before it had a number; new ones have SPLIT_RULE."""
    bands: tuple[int, ...] | None = None
    group_by: str | None = None

    def epochs_of(self, method: str, number: int) -> float | str | None:
        """Returns the epochs of a pretraining run, as `pretrain --epochs` takes them."""
        if isinstance(self.epochs, str):
            return str(Path(self.epochs) / pretraining_folder(method, number))
        return self.epochs


@dataclass(frozen=True)
class Images:
    """The images of a comparison.

    count: number of images outside the test split. data: these images, of which the pool is a part if
    they are very many, and the test images. label_samples: for each budget, the labelled images of each
    label sample. size: side in pixels of the encoders' input.
    """

    count: int
    data: LabelledData
    label_samples: dict[str, list[np.ndarray]]
    size: int
    device: torch.device
    precision: str

    @property
    def source(self) -> Source:
        return self.data.source

    @property
    def cache(self) -> ImageCache:
        return self.data.cache

    @property
    def pool(self) -> np.ndarray:
        return self.data.pool

    @property
    def test(self) -> np.ndarray:
        return self.data.test


def open_images(settings: ComparisonPlan) -> tuple[Images, str]:
    """Returns the images with their label samples, and the name of the encoder for all methods."""
    device, _ = choose_device(settings.device)
    precision, _ = choose_precision(device, settings.precision)
    source, _ = with_labels(
        grouped(open_source(settings.source, settings.split_rule), settings.group_by), LabelSpec(), []
    )
    source = scaled(source, tuple(settings.bands) if settings.bands else None, [])
    say_source(source)
    require_testable(source)
    require_groups_to_test(source, settings.group_by)
    native = typical_side(source)
    size, _ = choose_size(settings.size, native, device, many=True)
    cache = cached_images(source, cached_side(size, native))
    data = labelled_data(source, cache, None, settings.seed, settings.split_rule)
    say_groups(data)
    if not len(data.test):
        raise UserError(
            f"{settings.source} has no labelled images to test on.",
            "label the images of its test split, or put all labelled images into class folders.",
        )
    name, _ = choose_encoder(settings.encoder, size, len(data.pool), device)
    label_samples = {
        budget: [
            sample_labels(source, data.known, parse_labels(budget), settings.seed + i)
            for i in range(settings.draws)
        ]
        for budget in settings.labels
    }
    for budget in settings.labels:
        if parse_labels(budget).at_random:
            say_classes_without_label(source, label_samples[budget])
    labelled = np.unique(np.concatenate([s for samples in label_samples.values() for s in samples]))
    bounded_data = replace(data, pool=bounded(data.pool, labelled, "for the classifiers"))
    return Images(len(data.pool), bounded_data, label_samples, size, device, precision), name


CellPlan = list[tuple[str, int, np.ndarray]]
"""For each cell the budget, the number of the label sample, and its labelled images."""


class Cells:
    """Accuracies by encoder, budget and label sample, kept in a JSON file and never measured twice.

    check: called before each cell is measured; an exception that it raises ends the measurements. tell:
    called with each new cell instead of writing the file.
    """

    def __init__(
        self,
        path: Path,
        check: Callable[[], None] = lambda: None,
        tell: Callable[[str, Any], None] | None = None,
    ) -> None:
        self.path, self.check, self._tell = path, check, tell
        self.done: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def has(self, name: str, plan: CellPlan) -> bool:
        return all(f"{name}/{budget}/{number}" in self.done for budget, number, _ in plan)

    def fill(
        self,
        name: str,
        plan: CellPlan,
        measure: Callable[[int, np.ndarray], dict[str, Any]],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Measures the cells that are missing and writes each to the file at once.

        measure: called with the number of the label sample and its labelled images.
        """
        for done, (budget, number, sample) in enumerate(plan):
            key = f"{name}/{budget}/{number}"
            if key not in self.done:
                self.check()
                self.keep(key, measure(number, sample))
            progress(done + 1, len(plan))

    def keep(self, key: str, result: dict[str, Any]) -> None:
        """Keeps what was measured."""
        self.done[key] = result
        if self._tell is None:
            write_json(self.path, self.done)
        else:
            self._tell(key, result)

    def measured(self, name: str, budget: str, draws: int, seeds: int) -> list[dict[str, Any]]:
        keys = [f"{name}/{s}/{budget}/{d}" for s in range(seeds) for d in range(draws)]
        return [self.done[key] for key in keys if key in self.done]


class _Stages(nn.Module):
    """Computes the mean of each stage's feature maps, then the encoder's output, side by side."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.widths = encoder, [0]

    def forward(self, images: Tensor) -> Tensor:
        maps = self.encoder.maps(self.encoder.prepare(images))
        parts = [m.mean((2, 3)) for m in maps[:-1]] + [self.encoder(images)]
        self.widths = [part.shape[1] for part in parts]
        return torch.cat(parts, dim=1)


def features_by_stage(encoder: Encoder, images: Images) -> list[np.ndarray]:
    """Returns the features of pool and test, in this order, at each stage; the last are the output."""
    network = _Stages(encoder)
    rows = np.concatenate([images.pool, images.test])
    arrays = (images.cache.pixels, images.cache.aspects, rows)
    features = apply_to_cache(network, encoder.size, *arrays, images.device, images.precision)
    return np.split(features, np.cumsum(network.widths)[:-1], axis=1)


def pixels_of(images: Images) -> np.ndarray:
    """Returns the pixels of pool and test as features, at a side of at most 32 px."""
    rows = np.concatenate([images.pool, images.test])
    arrays = (images.cache.pixels, images.cache.aspects, rows)
    return apply_to_cache(
        nn.Flatten(), min(PIXELS_SIDE, images.cache.side), *arrays, torch.device("cpu")
    )


def accuracy_of(
    stages: list[np.ndarray],
    images: Images,
    labelled: np.ndarray,
    mode: str,
    seed: int,
    start: Start | None = None,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Returns the test accuracy of a classifier and the stage whose features it uses, counted from 1.

    labelled: indices of the images whose labels the classifier is trained on. stages: features of pool
    and test at each stage. The last one is used, unless another one is clearly better in
    cross-validation on the labels. mode: "full" trains the network of `start`.
    """
    labels = images.source.labels
    stage = 0 if mode == "full" else _best_stage(stages, images, labelled, seed)
    features = None if mode == "full" else stages[stage][: len(images.pool)]
    task = Task(
        images.cache.pixels,
        images.cache.aspects,
        images.pool,
        labels,
        len(images.source.classes),
        features,
        images.device,
        images.precision,
        stop=stop,
        groups=images.data.groups,
    )
    if mode == "full":
        assert start is not None
        classifier, _ = fit(start, task, labelled, mode, seed)
        correct = predict_cached(classifier, task, images.test).argmax(1) == labels[images.test]
        return {"accuracy": float(correct.mean()), "correct": packed(correct)}
    head, _ = fit_probe(mode, task, labelled, seed)
    with torch.no_grad():
        logits = head(torch.from_numpy(stages[stage][len(images.pool) :]))
    correct = logits.argmax(1).numpy() == labels[images.test]
    tested = {"accuracy": float(correct.mean()), "correct": packed(correct)}
    return tested | ({"stage": stage + 1} if len(stages) > 1 else {})


def _best_stage(stages: list[np.ndarray], images: Images, labelled: np.ndarray, seed: int) -> int:
    labels, rows = images.source.labels[labelled], np.searchsorted(images.pool, labelled)
    groups = images.data.groups
    splits = folds(labels, seed, groups_L=None if groups is None else groups[labelled])
    if not splits or len(stages) == 1:
        return len(stages) - 1
    correct = [few_label_correct(f[: len(images.pool)], rows, labels, splits) for f in stages]
    last = len(stages) - 1
    better = [s for s in range(last) if is_clearly_better(correct[s], correct[last])]
    return max([*better, last], key=lambda s: correct[s].sum())


def rows_of(
    cells: Cells,
    names: list[str],
    label_samples: dict[str, list[np.ndarray]],
    settings: ComparisonPlan,
    tested: int,
    labelled: int,
    groups: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Returns a row for each encoder and budget. tested, labelled: the number of test images, and of
    images that label samples are drawn from. groups: of the test images.

    It has the mean, the standard deviation over label samples and seeds, and the 95 % interval over
    label samples, seeds and test images (see `metrics.accuracy_interval`).
    """
    rows = []
    for name in names:
        for budget, samples in label_samples.items():
            seeds = 1 if name == "raw-pixels" else settings.seeds
            results = cells.measured(name, budget, settings.draws, seeds)
            accuracies = [cell["accuracy"] for cell in results]
            # Every seed has the same label samples.
            correct = [unpacked(cell.get("correct"), cell["accuracy"], tested) for cell in results]
            by_seed = np.reshape(correct, (seeds, -1, tested))
            stages = Counter(cell["stage"] for cell in results if "stage" in cell)
            rows.append(
                {
                    "method": name,
                    "budget": budget,
                    "labels": len(samples[0]),
                    "mean": float(np.mean(accuracies)),
                    "std": deviation(np.reshape(accuracies, (seeds, -1))),
                    "ci95": list(accuracy_interval(by_seed, len(samples[0]) / labelled, groups)),
                    "stage": stages.most_common(1)[0][0] if stages else None,
                    "draws": accuracies,
                }
            )
    return rows


def objective_of(method: str, encoder: str, images: Images) -> Method:
    """Returns what a method trains.

    Raises UserError if the method cannot train the encoder, or if the encoder has no feature maps.
    """
    kind = METHODS[method]
    network = Encoder(kind.encoder_name(encoder), images.size, [0.5] * 3, [0.25] * 3, input=kind.input)
    network.map_shapes()
    return kind(network, Recipe())


def seconds_of(method: str, encoder: str, images: Images, epochs: float) -> float:
    """Returns how many seconds a pretraining run will take, by a trial of a few steps."""
    objective = objective_of(method, encoder, images)
    data = TrainingData(images.cache.pixels, images.cache.aspects, images.pool)
    some = images.pool[:200]
    objective.look_at(
        torch.from_numpy(images.cache.pixels[some]), torch.from_numpy(images.cache.aspects[some])
    )
    plan = Plan(
        100, choose_batch(None, len(data), images.device)[0], "adamw", 1e-3, 0, 1, 0, images.precision
    )
    step = seconds_per_step(objective, data, plan, images.device, budget=20)
    return epochs * plan.steps_per_epoch(images.count) * step
