"""Prepares a distillation, trains the student and compares it with its teacher, for `clfew distill`."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from clfew import console
from clfew.data.augment import Recipe
from clfew.data.source import Source
from clfew.distillation.loss import Distillation
from clfew.distillation.student import (
    DistillationSetup,
    Verdict,
    build_student,
    cross_fit,
    soft_targets,
    student_data,
    train_student,
)
from clfew.distillation.teacher import Images, Teacher
from clfew.finetuning.asked import ACCURACY
from clfew.finetuning.calibration import fit_temperature, prior_of
from clfew.finetuning.expected_shares import shares_from
from clfew.finetuning.fit import Task, predict_cached
from clfew.finetuning.label_propagation import MAX_IMAGES
from clfew.finetuning.labelled_data import LabelledData, bounded
from clfew.finetuning.metric import metric_of
from clfew.finetuning.start import Start
from clfew.finetuning.tested import report_of_test
from clfew.group.command import say_remainder
from clfew.methods.adapter import LAYER, views_to_teach_with
from clfew.models.classifier import Classifier
from clfew.models.defaults import choose_batch, choose_recipe
from clfew.models.features import features_of
from clfew.models.metadata import DISTILLED, ArtifactMetadata
from clfew.runs.folders import Run
from clfew.settings import DistillSettings
from clfew.training.batch import TrainingData
from clfew.training.budget import Budget, PlanOptions, budget_of, plan_within
from clfew.training.plan import Plan
from clfew.training.saving import Trainings

DEFAULT_EPOCHS, DEFAULT_MINUTES = 20.0, 10.0
RATE, DECAY = 1e-3, 1e-4

TAUGHT_BY_LAYER = 8_000
"""The most images whose views' features are computed to train an adapter layer."""


@dataclass(frozen=True)
class Student:
    """What a student will be: its start, the metadata of its classifier, the `init` that finds the same
    start again, and the learning rate of its encoder, as a fraction of that of its head."""

    start: Start
    metadata: ArtifactMetadata
    init: str
    rate: float


def build_setup(
    settings: DistillSettings,
    teacher: Teacher,
    images: Images,
    base: Start,
    student: Student,
    learned: LabelledData,
    device: torch.device,
    precision: str,
) -> DistillationSetup:
    """Prepares what students are trained with. base: what the teacher was fitted from."""
    start, metadata, cache = student.start, student.metadata, learned.cache
    by_layer = start.is_published and settings.adapt == LAYER
    most = TAUGHT_BY_LAYER if by_layer else MAX_IMAGES
    pool = bounded(learned.pool, images.labelled, "to teach the student with", most)
    features = None
    if teacher.metadata.mode != "full":
        arrays = (cache.pixels, cache.aspects, pool)
        features = features_of(base.encoder, *arrays, device, precision)
    finetuning = metadata.training.get("finetune", {})
    task = Task(
        cache.pixels,
        cache.aspects,
        pool,
        images.labels,
        len(metadata.classes),
        features,
        device,
        precision,
        is_scaled=bool(base.metadata.parts),
        groups=learned.groups,
        shares=shares_from(finetuning.get("shares")),
        metric=metric_of(finetuning.get("metric", ACCURACY), metadata.classes, False)[0],
    )
    strong, _ = choose_recipe(min(metadata.size, cache.side), cache, pool, metadata.flip)
    views = None
    if by_layer:
        views = views_to_teach_with(start.encoder, cache, pool, strong, settings.seed, device, precision)
    return DistillationSetup(
        base,
        teacher.metadata.mode,
        teacher.metadata.temperature,
        start,
        task,
        _prior(images, metadata),
        Recipe(crop_area=0.5, flip=metadata.flip, jitter=0, grey=0, blur=0),
        strong,
        settings.temperature,
        settings.use_labels,
        views,
        teacher.settings,
        student.rate,
    )


def fewest_labels(images: Images) -> int:
    """Returns the number of labels of the class that has the fewest."""
    return int(np.unique(images.labels[images.labelled], return_counts=True)[1].min())


def _prior(images: Images, metadata: ArtifactMetadata) -> np.ndarray:
    """Returns the class frequencies among the labels, each class counted once more than it occurs."""
    counts = np.bincount(images.labels[images.labelled], minlength=len(metadata.classes)) + 1.0
    return counts / counts.sum()


def teach(
    settings: DistillSettings,
    setup: DistillationSetup,
    teacher: Teacher,
    images: Images,
    can_compare: bool,
    run: Run,
    trainings: Trainings,
) -> tuple[Classifier, Verdict, list[Plan], np.ndarray | None]:
    """Trains the student with all labels and, if `can_compare` is set, two more with half of the labels
    each, for the comparison with their teachers.

    The budget is for all three students. Returns the student of all labels, the verdict of the
    comparison, the plan that was carried out in each training, and the calibrated probabilities (L, C)
    of the labels by students that were not shown them, None without a comparison.
    """
    setup = replace(setup, task=replace(setup.task, trainings=trainings))
    task, labelled, seed = setup.task, images.labelled, settings.seed
    objective = build_student(setup, soft_targets(setup, teacher.classifier, labelled), seed)
    data = student_data(setup, labelled)
    students = 3 if can_compare else 1

    def decide() -> dict[str, Any]:
        return asdict(plan_of_students(settings, setup, objective, data, students))

    plan = Plan(**trainings.remember("plan", decide))
    # Empty, or what the trainings of another run record.
    again = trainings.remember("replanned", partial(_replanned, settings, students))
    # Of its share of the minutes, the first training has what the trial has left.
    share = 60 * (settings.minutes or DEFAULT_MINUTES) / students
    others = replace(plan, seconds=share if plan.seconds else None)
    plans = [plan] + [others] * (students - 1)
    if again:
        plans = [replace(plan, replanned=each) for each in again]
    with console.progress_bar("distill") as update:

        def log(row: dict[str, float]) -> None:
            run.log(row)
            planned = row.get("steps", plans[0].last_step())
            update(row["step"], planned, f"loss {row['loss']:.3f}  {row['confident']:.0%} confident")

        student, carried_out = train_student(setup, objective, data, plans[0], log)
    if students == 1:
        return student, Verdict(0, 0, 0, 0, 0.0, 0.0, 0), [carried_out], None
    with console.progress_bar("compare") as update:
        verdict, logits, of_halves = cross_fit(setup, labelled, plans[1:], seed, update)
    prior = prior_of(DISTILLED, fewest_labels(images))
    weights = task.weights_of(labelled)
    student.temperature = fit_temperature(logits, task.labels[labelled], prior, 1 / 2, weights)
    return student, verdict, [carried_out, *of_halves], softmax(logits / student.temperature, axis=1)


def _replanned(settings: DistillSettings, students: int) -> list[list[list[float]]]:
    """Returns what the run named by `--epochs` records of its trainings, [] if it is a number."""
    again = budget_of_students(settings).repeated
    return [] if again is None else [again.of_training(number) for number in range(students)]


def budget_of_students(settings: DistillSettings, students: int = 1) -> Budget:
    """Returns the budget of each of the students. Raises UserError if it cannot be one."""
    minutes = None if settings.minutes is None else settings.minutes / students
    return budget_of(settings.epochs, minutes, DEFAULT_EPOCHS, DEFAULT_MINUTES / students, "distill")


def plan_of_students(
    settings: DistillSettings,
    setup: DistillationSetup,
    objective: Distillation,
    data: TrainingData,
    students: int,
) -> Plan:
    """Returns the plan of one of the trainings, which share the budget."""
    task = setup.task
    batch, _ = choose_batch(settings.batch, len(task.pool), task.device, setup.views is not None)
    say_remainder(batch)
    reason = "for a student that starts close to its teacher"
    options = PlanOptions(
        batch,
        lambda _: ("adamw", RATE, DECAY, reason),
        settings.lr,
        settings.seed,
        task.precision,
        "off",
    )
    budget = budget_of_students(settings, students)
    return plan_within(budget, objective, data, task.device, options)


def result_of(
    setup: DistillationSetup,
    teacher: Teacher,
    student_logits: np.ndarray | None,
    verdict: Verdict,
    source: Source,
    test: np.ndarray,
    keep: bool,
) -> dict[str, Any]:
    """Returns the verdict in words and numbers, and the test accuracies, which do not influence it.
    student_logits: of the test images (T, C), None where there are none."""
    accuracies: dict[str, float | None] = {"teacher": None, "student": None}
    tested: dict[str, Any] = {}
    if student_logits is not None:
        labels = source.labels[test]
        teacher_logits = predict_cached(teacher.classifier, setup.task, test)
        for name, logits in (("teacher", teacher_logits), ("student", student_logits)):
            accuracies[name] = float((logits.argmax(1) == labels).mean())
        groups = None if setup.task.groups is None else setup.task.groups[test]
        tested["test_report"] = report_of_test(student_logits, labels, source.classes, groups)
    if not verdict.held_out:
        reason = "no label could be held out to compare the student with its teacher"
    else:
        reason = (
            f"of {verdict.held_out} held-out labels the students predicted {verdict.student_hits} "
            f"correctly, their teachers {verdict.teacher_hits}; two students agree on "
            f"{verdict.student_agreement:.0%} of other images, two teachers on "
            f"{verdict.teacher_agreement:.0%}"
        )
    if keep and not verdict.is_better:
        reason += "; --keep was given"
    return {
        "kept": keep or verdict.is_better,
        "reason": reason,
        "verdict": asdict(verdict),
        **accuracies,
        **tested,
        "test_images": len(test),
        "read_as": source.summary(),
    }
