"""What choosing images to label is worth, beside labelling at random.

    python examples/benchmarks/selection.py DATA --work DIR [--only SET ...] [--rounds] [--held-out]
    python examples/benchmarks/selection.py DATA --work DIR --scale

DATA holds aerial/, sign-digits/, fashion-mnist-6k/ and cifar10/ with {train,test}/CLASS/. Needs
clfew[lite]. Of CIFAR-10, 1,000 training and 200 test images of each class are copied to DIR. There
`clfew pretrain --init both` then learns from each set for M minutes (3 by default), from ImageNet
weights and from scratch. Features are computed once.

For each of five seeds a random 80 % of the training split, at most 4,000 images, is the pool, as it is,
or with a tail: its classes, in a random order, shrink evenly to a fiftieth. Each strategy chooses 1, 2,
5 and 10 times as many images as there are classes, and their labels spread to the pool (`--mode
propagate`, on the axes that `select` looks at). The classifier is tested on the test split, or with
--held-out on the rest of the training split, by which the defaults were chosen. Balanced accuracy is the
mean over the classes, accuracy the mean weighted by their shares in the pool. "stratified" draws the
same number of each class, which nobody can who has no labels. Of classes without a label nothing can be
right.

In rounds, each of five adds 10 labels to those so far.

With --scale, choosing 100 images among 100,000 and 1,000,000 made-up features is timed, and its memory
measured, in a process of its own.

Results go to results/selection.json; what the file contains is not measured again.
"""

import argparse
import itertools
import json
import random
import shutil
import subprocess
import sys
import time
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from common import Results
from scipy import stats

from clfew.commands.pretrain import pretrain
from clfew.data.groups import groups_of, pictures_of
from clfew.data.held_out import split_source
from clfew.data.image_cache import open_image_cache
from clfew.data.sources import open_source
from clfew.finetuning.label_propagation import neighbour_graph, propagation_head
from clfew.finetuning.start import start_from_artifact
from clfew.models.features import features_of
from clfew.selection.asked import HERDING, RANDOM, TYPICLUST, UNCERTAIN
from clfew.selection.classifier import Known, fit_to_codes
from clfew.selection.codes import AXES, SCALE, codes_of, projection_of
from clfew.selection.pool import pool_of
from clfew.selection.strategies import Question, chosen

RESULTS = Path(__file__).parent / "results" / "selection.json"
SETS = ("aerial", "sign-digits", "fashion-mnist-6k", "cifar10")
KINDS, VERSIONS, SEEDS, BUDGETS = ("pretrained", "scratch"), ("as it is", "tail"), 5, (1, 2, 5, 10)
STRATIFIED, TAIL, ROUNDS, EACH, MOST = "stratified", 50, 5, 10, 4000
CPU, NOTHING = torch.device("cpu"), np.array([], np.int64)


class Images:
    """A set, its encoders and their features."""

    def __init__(self, name: str, data: Path, work: Path, minutes: float) -> None:
        self.name, self.work, self.minutes = name, work, minutes
        self.folder = data / name
        if name == "cifar10":
            self.folder = work / "data" / name
            if not self.folder.exists():
                copy_some(data / name, self.folder)

    def run_of(self, kind: str) -> Path:
        folders = {
            k: self.work / "runs" / (self.name + e) for k, e in zip(KINDS, ("", "-scratch"), strict=True)
        }
        if not all((each / "encoder.safetensors").exists() for each in folders.values()):
            for each in folders.values():
                shutil.rmtree(each, ignore_errors=True)
            pretrain(str(self.folder), init="both", minutes=self.minutes, out=folders["pretrained"])
        return folders[kind]

    def features(self, kind: str) -> dict[str, np.ndarray]:
        """Returns the features, labels, groups and pictures of the readable images, and which are in the
        test split."""
        file = self.work / f"features-{self.name}-{kind}.npz"
        if not file.exists():
            start = start_from_artifact(self.run_of(kind) / "encoder.safetensors", None)
            source = open_source(str(self.folder))
            cache = open_image_cache(source, start.metadata.side)
            split = split_source(source, cache, 0)
            rows = np.union1d(split.pool, split.test)
            groups = groups_of(source, cache)
            np.savez(
                file,
                features=features_of(start.encoder, cache.pixels, cache.aspects, rows, CPU, "fp32"),
                labels=source.labels[rows],
                groups=groups[rows],
                pictures=pictures_of(source, cache)[rows],
                test=np.isin(rows, split.test),
            )
        with np.load(file) as loaded:
            return dict(loaded)


def copy_some(source: Path, target: Path) -> None:
    for split, most in (("train", 1000), ("test", 200)):
        for folder in sorted((source / split).iterdir()):
            files = sorted(folder.iterdir())
            random.Random(0).shuffle(files)
            (target / split / folder.name).mkdir(parents=True)
            for file in files[:most]:
                shutil.copy(file, target / split / folder.name / file.name)


class Draw:
    """The pool of one seed, as it is or with a tail, and what is fitted to labels of it."""

    def __init__(self, found: dict[str, np.ndarray], version: str, seed: int, is_held_out: bool) -> None:
        self.seed, chance = seed, np.random.default_rng(seed)
        order = chance.permutation(np.flatnonzero(~found["test"]))
        rows, test = np.split(order, [round(0.8 * len(order))])
        rows = np.sort(rows[:MOST])
        # No picture on both sides.
        test = test[~np.isin(found["groups"][test], found["groups"][rows])]
        if not is_held_out:
            test = np.flatnonzero(found["test"])
        if version == "tail":
            rows = with_tail(rows, found["labels"], chance)
        self._take(found, rows, test)

    @classmethod
    def of_rows(
        cls, found: dict[str, np.ndarray], rows: np.ndarray, test: np.ndarray, seed: int
    ) -> "Draw":
        """Returns the pool that some rows are, tested on others."""
        draw = cls.__new__(cls)
        draw.seed = seed
        draw._take(found, rows, test)
        return draw

    def _take(self, found: dict[str, np.ndarray], rows: np.ndarray, test: np.ndarray) -> None:
        self.labels, self.groups = found["labels"][rows], found["groups"][rows]
        self.classes = int(found["labels"].max()) + 1
        self.shares = np.bincount(self.labels, minlength=self.classes) / len(rows)
        projection = projection_of(found["features"][rows], False)
        self.codes = codes_of(found["features"][rows], projection)
        self.tested = codes_of(found["features"][test], projection) / np.float32(SCALE)
        self.test_labels = found["labels"][test]
        names = [f"{i}" for i in rows]
        self.pool = pool_of(np.arange(len(rows)), found["pictures"][rows], self.groups, names)
        self.inputs = self.codes / np.float32(SCALE)

    @cached_property
    def graph(self):
        return neighbour_graph(self.inputs, True)

    def question(self, budget: int, labelled: np.ndarray = NOTHING) -> Question:
        order = self.pool.order(self.seed)
        free = order[~np.isin(self.pool.images[order], labelled)]
        rows = np.flatnonzero(np.isin(self.pool.images, labelled))
        codes = self.codes[self.pool.images].__getitem__
        asked = np.unique(self.pool.groups[rows])
        return Question(self.pool, free, rows, asked, budget, self.seed, codes)

    def choose(self, strategy: str, budget: int) -> np.ndarray:
        if strategy == STRATIFIED:
            chance, each = np.random.default_rng(self.seed + 100), budget // self.classes
            members = [np.flatnonzero(self.labels == c) for c in range(self.classes)]
            return np.concatenate([chance.permutation(some)[:each] for some in members])
        return self.pool.images[chosen(self.question(budget), strategy)]

    def add(self, strategy: str, labelled: np.ndarray) -> np.ndarray:
        """Returns EACH more images, with the labels so far known."""
        question = self.question(EACH, labelled)
        classes = np.unique(self.labels[labelled])
        if strategy == UNCERTAIN and len(classes) < 2:
            strategy = HERDING
        if strategy == UNCERTAIN:
            sample = np.arange(len(self.codes))
            numbers, names = np.searchsorted(classes, self.labels[labelled]), [*map(str, classes)]
            known = Known(labelled, numbers, names, ["chosen"] * len(labelled))
            probabilities, _ = fit_to_codes(
                None, Nothing(), known, sample, self.codes, self.groups, self.seed
            )
            question = Question(**{**vars(question), "probabilities": probabilities})
        return self.pool.images[chosen(question, strategy)]

    def test(self, picked: np.ndarray) -> dict[str, float]:
        labels = self.labels[picked]
        head = propagation_head(self.inputs, self.graph, picked, labels, self.classes, True)
        with torch.no_grad():
            predicted = head(torch.from_numpy(self.tested)).argmax(1).numpy()
        correct = predicted == self.test_labels
        recalls = np.array([correct[self.test_labels == c].mean() for c in range(self.classes)])
        return {
            "accuracy": float(recalls @ self.shares),
            "balanced_accuracy": float(recalls.mean()),
            "classes_found": len(np.unique(labels)) / len(np.unique(self.labels)),
        }


class Nothing:
    """Stands for an image cache whose pixels nobody looks at."""

    pixels = aspects = np.empty(0)


def with_tail(rows: np.ndarray, labels: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Returns some of the rows, such that the classes, in a random order, shrink evenly to 1 / TAIL."""
    classes, kept = chance.permutation(np.unique(labels)), []
    for place, label in enumerate(classes):
        members = chance.permutation(rows[labels[rows] == label])
        kept.append(members[: max(1, round(len(members) * TAIL ** (-place / (len(classes) - 1))))])
    return np.sort(np.concatenate(kept))


def measure(draw: Draw) -> list[dict]:
    rows = []
    for times in BUDGETS:
        for strategy in (RANDOM, STRATIFIED, HERDING, TYPICLUST):
            started = time.perf_counter()
            picked = draw.choose(strategy, times * draw.classes)
            seconds = time.perf_counter() - started
            row = {"times": times, "strategy": strategy, "seconds": seconds, **draw.test(picked)}
            rows.append(row)
    return rows


def measure_rounds(draw: Draw) -> list[dict]:
    rows = []
    first = draw.choose(HERDING, EACH)
    for strategy in (RANDOM, HERDING, TYPICLUST, UNCERTAIN):
        labelled = first if strategy in (HERDING, UNCERTAIN) else draw.choose(strategy, EACH)
        for number in range(1, ROUNDS + 1):
            rows.append({"labels": len(labelled), "strategy": strategy, **draw.test(labelled)})
            if number < ROUNDS:
                labelled = np.concatenate([labelled, draw.add(strategy, labelled)])
    return rows


SCALE_PART = """
import json, resource, sys, time
import numpy as np, torch
from clfew.data.cache_arrays import RowReader
from clfew.selection.pool import MOST_CANDIDATES, Pool, to_cover
from clfew.selection.strategies import Question, chosen
count, axes, strategy, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(2)
codes, nothing = RowReader(np.memmap(file, np.int16, "r", 0, (count, axes))), np.array([], np.int64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.perf_counter()
pool = Pool(np.arange(count), np.arange(count), [f"{i:07d}.jpg" for i in range(count)])
pool = pool.part(np.sort(to_cover(pool.groups, MOST_CANDIDATES)))
question = Question(pool, pool.order(0), nothing, nothing, 100, 0, lambda rows: codes(pool.images[rows]))
rows = chosen(question, strategy)
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "mib": peak / 1024, "more_mib": (peak - before) / 1024}))
"""


def scale(count: int, strategy: str, work: Path) -> dict[str, float]:
    """Times a choice of 100 among made-up codes: 200 clusters of unequal size."""
    file = work / f"codes-{count}-{AXES}.bin"
    if not file.exists():
        chance = np.random.default_rng(0)
        centres = chance.normal(size=(200, AXES))
        mapped = np.memmap(file, np.int16, "w+", 0, (count, AXES))
        for start in range(0, count, 10_000):
            cluster = (200 * chance.random(10_000) ** 2).astype(int)
            vectors = centres[cluster] + chance.normal(size=(10_000, AXES))
            vectors *= SCALE / np.linalg.norm(vectors, axis=1, keepdims=True)
            mapped[start : start + 10_000] = np.round(vectors)
    command = [sys.executable, "-c", SCALE_PART, str(count), str(AXES), strategy, str(file)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def paired(rows: list[dict], one: str, other: str, key: str) -> tuple[float, float, float]:
    """Returns the mean difference of two strategies over the seeds and its 95 % interval."""
    by = {name: [row[key] for row in rows if row["strategy"] == name] for name in (one, other)}
    apart = np.array(by[one]) - np.array(by[other])
    reach = stats.t.ppf(0.975, len(apart) - 1) * apart.std(ddof=1) / len(apart) ** 0.5
    return float(apart.mean()), float(apart.mean() - reach), float(apart.mean() + reach)


def show(done: dict[str, list[dict]]) -> None:
    """Prints for each set, start, version and budget the means, and herding against random."""
    for key in dict.fromkeys(key.rsplit(", seed", 1)[0] for key in done if ", seed" in key):
        rows = [row for seed in range(SEEDS) for row in done.get(f"{key}, seed {seed}", [])]
        step = "labels" if "rounds" in key else "times"
        best = UNCERTAIN if "rounds" in key else HERDING
        for budget in dict.fromkeys(row[step] for row in rows):
            some = [row for row in rows if row[step] == budget]
            words = []
            for name in dict.fromkeys(row["strategy"] for row in some):
                of = [row for row in some if row["strategy"] == name]
                accuracy, balanced, found = (
                    np.mean([row[k] for row in of])
                    for k in ("accuracy", "balanced_accuracy", "classes_found")
                )
                words.append(f"{name} {100 * accuracy:.1f}/{100 * balanced:.1f} ({100 * found:.0f})")
            for k in ("accuracy", "balanced_accuracy"):
                mean, low, high = paired(some, best, RANDOM, k)
                words.append(f"{100 * mean:+.1f} [{100 * low:.1f}, {100 * high:.1f}]")
            print(f"{key}, {budget}: " + " | ".join(words))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--only", nargs="*", default=SETS)
    parser.add_argument("--rounds", action="store_true", help="the rounds, too")
    parser.add_argument("--scale", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--held-out", action="store_true", help="test on a part of the training split")
    given = parser.parse_args()
    results = Results(given.results)
    if given.scale:
        for count, strategy in itertools.product((100_000, 1_000_000), (HERDING, TYPICLUST)):
            row = results.get(f"scale, {strategy}, {count}", partial(scale, count, strategy, given.work))
            print(f"{strategy}, {count:,} images: {row['seconds']:.1f} s, {row['mib']:.0f} MiB")
        return
    for name, kind in itertools.product(given.only, KINDS):
        found = Images(name, given.data, given.work, given.minutes).features(kind)
        for version, seed in itertools.product(VERSIONS, range(SEEDS)):
            key, draw = f"{name}, {kind}, {version}", Draw(found, version, seed, given.held_out)
            results.get(f"{key}, seed {seed}", partial(measure, draw))
            if given.rounds and kind == "pretrained":
                results.get(f"{key}, rounds, seed {seed}", partial(measure_rounds, draw))
    show(results.done)


if __name__ == "__main__":
    main()
