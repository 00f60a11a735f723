"""What a student is asked to learn, the teaching, and what came of it: the middle of `clfew distill`."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from clfew import console
from clfew.data.augment import Recipe
from clfew.data.image_cache import Store
from clfew.data.source import Source
from clfew.distillation.student import (
    Lesson,
    Verdict,
    build_student,
    cross_fit,
    lesson_data,
    soft_targets,
    train_student,
)
from clfew.distillation.teacher import Images, Teacher
from clfew.finetuning.calibration import believable, fit_temperature
from clfew.finetuning.fit import Start, Task, pool_logits, predict_store
from clfew.finetuning.label_propagation import MAX_IMAGES
from clfew.finetuning.labelled_data import bounded
from clfew.methods.adapter import LAYER, views_to_teach_with
from clfew.models.classifier import Classifier
from clfew.models.defaults import choose_batch, choose_recipe
from clfew.models.features import features_of
from clfew.models.metadata import About
from clfew.runs.folders import Run
from clfew.training.budget import Budget, plan_within
from clfew.training.plan import Plan
from clfew.training.saving import Trainings

DEFAULT_EPOCHS, DEFAULT_MINUTES = 20.0, 10.0
RATE, DECAY = 1e-3, 1e-4

TAUGHT_BY_LAYER = 8_000
"""Images whose views' features are computed before a layer learns from them."""


@dataclass(frozen=True)
class Asked:
    """What a run was asked for; kept in its config.json, so that it can be gone on with."""

    source: str | None
    origin: str
    student: str
    init: str
    size: int | None
    epochs: float | None
    minutes: float | None
    batch: int | None
    lr: float | None
    temperature: float
    use_labels: bool
    keep: bool
    adapt: str
    seed: int
    precision: str


def lesson_of(
    asked: Asked, teacher: Teacher, images: Images, base: Start, begin: Start, about: About,
    store: Store, pool: np.ndarray, device: torch.device, precision: str,
) -> Lesson:  # fmt: skip
    by_layer = begin.is_published and asked.adapt == LAYER
    pool = bounded(pool, images.labelled, TAUGHT_BY_LAYER if by_layer else MAX_IMAGES)
    features = None
    if teacher.about.mode != "full":
        arrays = (store.pixels, store.aspects, pool)
        features = features_of(base.encoder, *arrays, device, precision)
    task = Task(
        store.pixels, store.aspects, pool, images.labels, len(about.classes), features, device, precision
    )
    strong, _ = choose_recipe(min(about.size, store.side), store, pool, about.flip)
    views = None
    if by_layer:
        views = views_to_teach_with(begin.encoder, store, pool, strong, asked.seed, device, precision)
    return Lesson(
        base, teacher.about.mode, teacher.about.temperature, begin, task, _prior(images, about),
        Recipe(crop_area=0.5, flip=about.flip, jitter=0, grey=0, blur=0), strong, asked.temperature,
        asked.use_labels, views,
    )  # fmt: skip


def fewest_labels(images: Images) -> int:
    """Labels of the class that has the fewest."""
    return int(np.unique(images.labels[images.labelled], return_counts=True)[1].min())


def _prior(images: Images, about: About) -> np.ndarray:
    """The shares of the classes among the labels, each counted once more than it occurs."""
    counts = np.bincount(images.labels[images.labelled], minlength=len(about.classes)) + 1.0
    return counts / counts.sum()


def teach(
    asked: Asked, lesson: Lesson, teacher: Teacher, images: Images, can_compare: bool, run: Run,
    trainings: Trainings,
) -> tuple[Classifier, Verdict, Plan]:  # fmt: skip
    """The student of all labels, and what two of half of them say. The budget is for all three."""
    seed = asked.seed
    task, labelled = lesson.task, images.labelled
    students = 3 if can_compare else 1
    objective = build_student(lesson, soft_targets(lesson, teacher.classifier, labelled), seed)
    data = lesson_data(lesson, labelled)
    resolved_batch, _ = choose_batch(asked.batch, len(data), task.device, lesson.views is not None)
    budget = Budget(
        asked.epochs, None if asked.minutes is None else asked.minutes / students, DEFAULT_EPOCHS,
        DEFAULT_MINUTES / students,
    )  # fmt: skip

    def decide() -> dict[str, Any]:
        return asdict(plan_within(
            budget, objective, data, task.device, batch=resolved_batch,
            choose_optimizer=lambda _: ("adamw", RATE, DECAY, "for a network that starts near its goal"),
            lr=asked.lr, seed=seed, precision=task.precision, compilation="off",
        ))  # fmt: skip

    plan = Plan(**trainings.remember("plan", decide))
    with console.progress_bar("distill") as update:

        def log(row: dict[str, float]) -> None:
            run.log(row)
            update(row["step"], plan.steps, f"loss {row['loss']:.3f}  {row['confident']:.0%} confident")

        student = train_student(lesson, objective, data, plan, log)
    if students == 1:
        return student, Verdict(0, 0, 0, 0, 0.0, 0.0, 0), plan
    with console.progress_bar("compare") as update:
        verdict = cross_fit(lesson, labelled, plan, seed, update)
    student.temperature = fit_temperature(
        pool_logits(student, task, False), believable(verdict.student_hits, verdict.held_out)
    )
    return student, verdict, plan


def result_of(
    lesson: Lesson, teacher: Teacher, student: Classifier, verdict: Verdict, source: Source,
    test: np.ndarray, keep: bool,
) -> dict[str, Any]:  # fmt: skip
    """The verdict in words and numbers; the test accuracies stand beside it and decide nothing."""
    accuracies: dict[str, float | None] = {"teacher": None, "student": None}
    if len(test):
        for name, model in (("teacher", teacher.classifier), ("student", student)):
            hits = predict_store(model, lesson.task, test).argmax(1) == source.labels[test]
            accuracies[name] = float(hits.mean())
    if not verdict.held_out:
        reason = "no label could be held out to say whether the student is better"
    else:
        reason = (
            f"of {verdict.held_out} held-out labels the students got {verdict.student_hits} right, "
            f"their teachers {verdict.teacher_hits}; on other images two students agree in "
            f"{verdict.student_agreement:.0%}, two teachers in {verdict.teacher_agreement:.0%}"
        )
    if keep and not verdict.is_better:
        reason += "; --keep was given"
    return {
        "kept": keep or verdict.is_better, "reason": reason, "verdict": asdict(verdict), **accuracies,
        "test_images": len(test),
    }  # fmt: skip
