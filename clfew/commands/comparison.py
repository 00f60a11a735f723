"""What a comparison measures: classifiers of the same labels on the features of different encoders.

Shape suffixes: N images of pool and test, D features.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clfew.data.augment import Recipe
from clfew.data.image_cache import ImageCache, cached_images, typical_side
from clfew.data.labels import parse_labels, sample_labels
from clfew.data.source import Source
from clfew.data.sources import open_source
from clfew.data.splits import require_testable, test_indices
from clfew.finetuning.fit import Start, Task, fit, fit_probe, predict_cached
from clfew.finetuning.labelled_data import bounded
from clfew.finetuning.metrics import mean_interval
from clfew.finetuning.probes import few_label_correct, folds
from clfew.methods.base import METHODS, Method
from clfew.models.defaults import cached_side, choose_batch, choose_encoder, choose_size
from clfew.models.encoder import Encoder
from clfew.models.features import apply_to_cache
from clfew.runs.files import write_json
from clfew.training.batch import TrainingData
from clfew.training.device import choose_device, choose_precision
from clfew.training.loop import seconds_per_step
from clfew.training.plan import Plan

PIXELS_SIDE = 32


@dataclass(frozen=True)
class Settings:
    """What a comparison is asked for; kept in its config.json, so that it can be gone on with."""

    source: str
    methods: list[str]
    labels: list[str]
    draws: int
    seeds: int
    minutes: float | None
    epochs: float | None
    encoder: str
    size: int | None
    mode: str
    flip: bool
    seed: int
    device: str
    precision: str
    threads: int | None


@dataclass(frozen=True)
class Images:
    """pool: indices of images outside the test split, of which there are `count`; of very many a part.
    test: of those to test on. drawn: for each budget, the labelled images of each draw. size: side in
    pixels that encoders see."""

    source: Source
    cache: ImageCache
    count: int
    pool: np.ndarray
    test: np.ndarray
    drawn: dict[str, list[np.ndarray]]
    size: int
    device: torch.device
    precision: str


def open_images(settings: Settings) -> tuple[Images, str]:
    """The images, the draws of their labels, and the encoder that all methods train."""
    device, _ = choose_device(settings.device)
    precision, _ = choose_precision(device, settings.precision)
    source = open_source(settings.source)
    require_testable(source)
    native = typical_side(source)
    size, _ = choose_size(settings.size, native, device, many=True)
    cache = cached_images(source, cached_side(size, native))
    test = np.intersect1d(test_indices(source, settings.seed), cache.good)
    pool = np.setdiff1d(cache.good, test)
    name, _ = choose_encoder(settings.encoder, size, len(pool), device)
    known = pool[source.labels[pool] >= 0]
    drawn = {
        budget: [
            sample_labels(source, known, parse_labels(budget), settings.seed + i)
            for i in range(settings.draws)
        ]
        for budget in settings.labels
    }
    every = np.unique(np.concatenate([d for draws in drawn.values() for d in draws]))
    images = Images(
        source,
        cache,
        len(pool),
        bounded(pool, every),
        test[source.labels[test] >= 0],
        drawn,
        size,
        device,
        precision,
    )
    return images, name


CellPlan = list[tuple[str, int, np.ndarray]]
"""Budget, number of the draw, and its labelled images."""


class Cells:
    """Accuracies by encoder, budget and draw in a JSON file: what is there is not measured again.

    check: called before each is measured; what it raises stops the rest.
    """

    def __init__(self, path: Path, check: Callable[[], None] = lambda: None) -> None:
        self.path, self.check = path, check
        self.done: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}

    def has(self, name: str, plan: CellPlan) -> bool:
        return all(f"{name}/{budget}/{draw}" in self.done for budget, draw, _ in plan)

    def fill(
        self,
        name: str,
        plan: CellPlan,
        measure: Callable[[int, np.ndarray], dict[str, Any]],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Measures, by draw and labelled images, what is not there; each is kept at once."""
        for done, (budget, draw, drawn) in enumerate(plan):
            key = f"{name}/{budget}/{draw}"
            if key not in self.done:
                self.check()
                self.done[key] = measure(draw, drawn)
                write_json(self.path, self.done)
            progress(done + 1, len(plan))

    def of(self, name: str, budget: str, draws: int, seeds: int) -> list[dict[str, Any]]:
        keys = [f"{name}/{s}/{budget}/{d}" for s in range(seeds) for d in range(draws)]
        return [self.done[key] for key in keys if key in self.done]


class _Stages(nn.Module):
    """The mean of each stage's maps, then the encoder's own features, side by side."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder, self.widths = encoder, [0]

    def forward(self, images: Tensor) -> Tensor:
        maps = self.encoder.maps(self.encoder.prepare(images))
        parts = [m.mean((2, 3)) for m in maps[:-1]] + [self.encoder(images)]
        self.widths = [part.shape[1] for part in parts]
        return torch.cat(parts, dim=1)


def features_by_stage(encoder: Encoder, images: Images) -> list[np.ndarray]:
    """Features of pool and test, in this order, read at each stage; the last are the encoder's own."""
    network = _Stages(encoder)
    rows = np.concatenate([images.pool, images.test])
    arrays = (images.cache.pixels, images.cache.aspects, rows)
    features = apply_to_cache(network, encoder.size, *arrays, images.device, images.precision)
    return np.split(features, np.cumsum(network.widths)[:-1], axis=1)


def pixels_of(images: Images) -> np.ndarray:
    """The pixels of pool and test at no more than 32 a side, as features."""
    rows = np.concatenate([images.pool, images.test])
    arrays = (images.cache.pixels, images.cache.aspects, rows)
    return apply_to_cache(
        nn.Flatten(), min(PIXELS_SIDE, images.cache.side), *arrays, torch.device("cpu")
    )


def accuracy_of(
    stages: list[np.ndarray],
    images: Images,
    drawn: np.ndarray,
    mode: str,
    seed: int,
    start: Start | None = None,
) -> dict[str, Any]:
    """The test accuracy of a classifier of the labels `drawn`, and the stage it reads, counted from 1.

    stages: features of pool and test at each stage; the one that is read is the best in cross-validation
    on the labels, the last where some class has one label only. mode "full" trains the network of
    `start`.
    """
    labels = images.source.labels
    stage = 0 if mode == "full" else _best_stage(stages, images, drawn, seed)
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
    )
    if mode == "full":
        assert start is not None
        classifier, _ = fit(start, task, drawn, mode, seed)
        guesses = predict_cached(classifier, task, images.test).argmax(1)
        return {"accuracy": float((guesses == labels[images.test]).mean())}
    head, _ = fit_probe(mode, task, drawn, seed)
    with torch.no_grad():
        logits = head(torch.from_numpy(stages[stage][len(images.pool) :]))
    accuracy = float((logits.argmax(1).numpy() == labels[images.test]).mean())
    return {"accuracy": accuracy} | ({"stage": stage + 1} if len(stages) > 1 else {})


def _best_stage(stages: list[np.ndarray], images: Images, drawn: np.ndarray, seed: int) -> int:
    labels, rows = images.source.labels[drawn], np.searchsorted(images.pool, drawn)
    splits = folds(labels, seed)
    if not splits or len(stages) == 1:
        return len(stages) - 1
    correct = [few_label_correct(f[: len(images.pool)], rows, labels, splits) for f in stages]
    return max(range(len(stages)), key=lambda s: (correct[s], s))


def rows_of(
    cells: Cells, names: list[str], drawn: dict[str, list[np.ndarray]], settings: Settings
) -> list[dict[str, Any]]:
    """A row for each encoder and budget: mean, spread and 95 % interval over draws and seeds."""
    rows = []
    for name in names:
        for budget, draws in drawn.items():
            seeds = 1 if name == "raw-pixels" else settings.seeds
            found = cells.of(name, budget, settings.draws, seeds)
            accuracies = [cell["accuracy"] for cell in found]
            spread = float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else 0.0
            stages = Counter(cell["stage"] for cell in found if "stage" in cell)
            rows.append(
                {
                    "method": name,
                    "budget": budget,
                    "labels": len(draws[0]),
                    "mean": float(np.mean(accuracies)),
                    "std": spread,
                    "ci95": list(mean_interval(accuracies)) if len(accuracies) > 1 else None,
                    "stage": stages.most_common(1)[0][0] if stages else None,
                    "draws": accuracies,
                }
            )
    return rows


def objective_of(method: str, encoder: str, images: Images) -> Method:
    """What a method trains. Raises UserError for an encoder that it cannot train, or that has no stages
    to read."""
    kind = METHODS[method]
    network = Encoder(kind.encoder_name(encoder), images.size, [0.5] * 3, [0.25] * 3, input=kind.input)
    network.map_shapes()
    return kind(network, Recipe())


def seconds_of(method: str, encoder: str, images: Images, epochs: float) -> float:
    """How long a pretraining run will take, by a trial of a few steps."""
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
