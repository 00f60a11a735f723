"""Where a student of `clfew distill` is better than its teacher, and how fast small students are.

    python examples/benchmarks/students.py DATA [--runs FOLDER] [--minutes M] [--only NAME ...] [--table]

DATA holds cifar10/, aerial/, sign-digits/ and fashion-mnist-6k/, each with train/CLASS/ and test/CLASS/;
of cifar10/, 10,000 training images are used, 5,000 for small students. Needs clfew[lite]. The
pretraining runs are those of few_labels.py, made first where they are missing. Nothing else should run
on the machine.

Each student is trained for M minutes, by default 2, as `distill` trains the one that it keeps; the two
others, which it compares with their teachers, take as long again. First come students of the teacher's
own network, with several kinds of teachers. Then come small students of a large teacher, which is
EfficientNet-Lite0 with label propagation, and how many files a second both classify. All accuracies are
those on the test split, with one label sample. Results go to results/students.json; what it contains is
not measured again.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import Results
from few_labels import Bench

from clfew.data.augment import Recipe
from clfew.data.image_cache import open_image_cache
from clfew.data.labels import parse_labels, sample_labels
from clfew.data.sources import open_source
from clfew.data.splits import evenly_spaced
from clfew.distillation.run import plan_of_students
from clfew.distillation.student import (
    DistillationSetup,
    build_student,
    encoder_rate,
    soft_targets,
    student_data,
    train_student,
)
from clfew.finetuning.fit import FullSettings, Task, fit, predict_cached
from clfew.finetuning.labelled_data import labelled_data
from clfew.finetuning.start import Network, start_from_artifact, start_from_scratch, start_from_weights
from clfew.methods.adapter import views_to_teach_with
from clfew.models.defaults import choose_recipe
from clfew.models.features import features_of
from clfew.models.files import Applied, apply_to_paths
from clfew.models.init_weights import IMAGENET, find_init_weights
from clfew.models.pretrained import LITE0
from clfew.settings import DistillSettings
from clfew.training.device import choose_precision

HERE = Path(__file__).parent / "results"
MOST_POOL, MOST_OF_SMALL, FILES = 10_000, 5_000, 400
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A teacher and its student.

    start: the pretraining run that the teacher's encoder comes from. labels: per class. student: "same"
    for the teacher's encoder, "run" for that of the run from scratch, else a network. size: of the
    student's input, None for that of its start. adapt: see `distill --adapt`.
    """

    images: str
    start: str
    labels: int
    mode: str
    student: str = "same"
    size: int | None = None
    adapt: str = "network"

    @property
    def name(self):
        size = f" {self.size} px" if self.size else ""
        layer = ", layer" if self.adapt == "layer" else ""
        return f"{self.images} {self.start} {self.labels} {self.mode} -> {self.student}{size}{layer}"


SAME = [
    Case("sign-digits", "simclr", 5, "propagate"),
    Case("fashion-mnist-6k", "simclr", 5, "propagate"),
    Case("cifar10", "simclr", 5, "propagate"),
    Case("sign-digits", "simclr", 50, "full"),
    Case("fashion-mnist-6k", "simclr", 50, "linear"),
    Case("cifar10", "simclr", 50, "linear"),
    Case("aerial", "pretrained", 5, "propagate", adapt="layer"),
    Case("aerial", "pretrained", 5, "propagate"),
    Case("cifar10", "pretrained", 5, "propagate"),
]
SMALL = [
    Case(images, "pretrained", 10, "propagate", student, size)
    for images, students in (
        (
            "aerial",
            (
                ("resnet8-w16", 32),
                ("resnet8-w32", 64),
                ("run", None),
                ("resnet18", 64),
                (LITE0, 64),
                (LITE0, 48),
            ),
        ),
        ("cifar10", (("run", None), (LITE0, 64), (LITE0, 48))),
        ("fashion-mnist-6k", (("run", None), (LITE0, 48))),
    )
    for student, size in students
]


def student_start(case, bench, source, start):
    """Returns what the student starts from."""
    if case.student == "same":
        return start
    if case.student == "run":
        return start_from_artifact(Path(bench.pretrained("simclr")) / "encoder.safetensors", None)
    if case.student == LITE0:
        weights, _ = find_init_weights(IMAGENET, LITE0, CPU)
        return start_from_weights(source, weights, case.size, start.flip, CPU)
    network = Network(case.student, case.size, start.flip, split_seed=0)
    return start_from_scratch(source, None, network, CPU)


def measure(case, bench, minutes):
    """Fits the teacher, trains the student, and tests both."""
    start = start_from_artifact(Path(bench.pretrained(case.start)) / "encoder.safetensors", None)
    source = open_source(bench.source)
    student = student_start(case, bench, source, start)
    cache = open_image_cache(source, max(start.metadata.side, student.metadata.side))
    data = labelled_data(source, cache, None, 0)
    most = MOST_OF_SMALL if case in SMALL else MOST_POOL
    pool, test = evenly_spaced(data.pool, most), evenly_spaced(data.test, 2000)
    labelled = sample_labels(source, pool, parse_labels(f"{case.labels}/class"), 0)
    precision, _ = choose_precision(CPU, "auto")
    arrays, classes = (cache.pixels, cache.aspects), len(source.classes)
    features = features_of(start.encoder, *arrays, pool, CPU, precision)
    task = Task(*arrays, pool, source.labels, classes, features, CPU, precision)
    settings = FullSettings(epochs=20 if case.labels >= 50 else None)
    teacher, _ = fit(start, task, labelled, case.mode, 0, settings)
    flip = start.flip
    strong, _ = choose_recipe(min(student.metadata.size, cache.side), cache, pool, flip)
    weak = Recipe(crop_area=0.5, flip=flip, jitter=0, grey=0, blur=0)
    views = None
    if case.adapt == "layer":
        views = views_to_teach_with(student.encoder, cache, pool, strong, 0, CPU, precision)
    prior = np.full(classes, 1 / classes)
    setup = DistillationSetup(
        start, case.mode, teacher.temperature, student, task, prior, weak, strong, 1.0, True, views,
        settings, encoder_rate(student),
    )  # fmt: skip
    objective = build_student(setup, soft_targets(setup, teacher, labelled), 0)
    images = student_data(setup, labelled)
    options = DistillSettings(minutes=minutes)
    plan = plan_of_students(options, setup, objective, images, 1)
    taught, plan = train_student(setup, objective, images, plan)
    correct = {
        name: predict_cached(model, task, test).argmax(1) == source.labels[test]
        for name, model in (("teacher", teacher), ("student", taught))
    }
    row = {name: float(each.mean()) for name, each in correct.items()}
    row["better"] = int((correct["student"] & ~correct["teacher"]).sum())
    row["worse"] = int((correct["teacher"] & ~correct["student"]).sum())
    row["epochs"] = plan.last_step() / plan.steps_per_epoch(len(images))
    if case in SMALL:
        models = (("teacher", teacher, start), ("student", taught, student))
        row["speed"] = {n: speed(m, s, source, test, precision) for n, m, s in models}
    return row


def speed(model, start, source, test, precision):
    """Returns how many image files a second are read and classified: the best of three times."""
    rows, best = np.resize(test, FILES), 0.0
    for _ in range(3):
        started = time.perf_counter()
        size, side = start.metadata.size, start.metadata.side
        applied = Applied(model, size, side, CPU, precision, source.scale)
        for _ in apply_to_paths(applied, [str(source.path_of(int(row))) for row in rows]):
            pass
        best = max(best, FILES / (time.perf_counter() - started))
    return best


def table(results):
    print("| images | labels a class | teacher | student | teacher | student | better, worse |")
    print("|---|---|---|---|---|---|---|")
    for case in SAME:
        if row := results.done.get(case.name):
            what = "its layer" if case.adapt == "layer" else "the whole network"
            start = "pretrained" if case.start == "pretrained" else "scratch"
            print(
                f"| {case.images} | {case.labels} | {start}, `{case.mode}` | {what} | "
                f"{100 * row['teacher']:.1f} | {100 * row['student']:.1f} | "
                f"{row['better']}, {row['worse']} |"
            )
    print("\n| images | student | accuracy | less the teacher's | images/s | times the teacher's |")
    print("|---|---|---|---|---|---|")
    for case in SMALL:
        if row := results.done.get(case.name):
            speeds = row["speed"]
            name = "resnet8-w32, after SimCLR from scratch" if case.student == "run" else case.student
            size = f", {case.size} px" if case.size else ""
            print(
                f"| {case.images} | {name}{size} | {100 * row['student']:.1f} | "
                f"{100 * (row['student'] - row['teacher']):+.1f} | {speeds['student']:.0f} | "
                f"{speeds['student'] / speeds['teacher']:.1f} |"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/few_labels"))
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    results = Results(HERE / "students.json")
    for case in [*SAME, *SMALL]:
        if arguments.table or (arguments.only and case.images not in arguments.only):
            continue
        bench = Bench(case.images, arguments.data, arguments.runs, results)
        row = results.get(case.name, lambda c=case, b=bench: measure(c, b, arguments.minutes))
        print(f"{case.name}: {row['teacher']:.3f} -> {row['student']:.3f}", flush=True)
    table(results)


if __name__ == "__main__":
    main()
