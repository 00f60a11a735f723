"""Trains students, and tests whether they are better than their teachers.

Shape suffixes: M images of the pool, L labelled images, C classes, D features.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy.special import softmax
from torch import nn

from clfew.data.augment import Recipe
from clfew.data.splits import evenly_spaced
from clfew.distillation.loss import Distillation
from clfew.finetuning.fit import FullSettings, Log, Task, fit, predict_cached
from clfew.finetuning.model_selection import CLEAR, win_by_chance
from clfew.finetuning.probes import folds, mean_and_std, standardised_logistic
from clfew.finetuning.start import Start
from clfew.models.classifier import Classifier, build_neck
from clfew.models.encoder import freeze_first
from clfew.models.features import apply_to_cache
from clfew.models.side_by_side import SideBySide
from clfew.training.batch import TrainingData
from clfew.training.loop import train
from clfew.training.optim import ENCODER_RATE, KEPT_FRACTION
from clfew.training.plan import Plan

LABELLED_FRACTION = 0.1
"""The fraction of labelled images in an epoch, if a student is shown labels: a few labelled images would
otherwise hardly occur."""

_HEAD_STRENGTH = 0.03
_COMPARED = 2000
"""The most images of the pool on which the agreement of two models is measured."""


@dataclass(frozen=True)
class DistillationSetup:
    """What students are trained with.

    teacher: what the teacher was fitted from. mode: how it was fitted. temperature: of its logits.
    student: what students start from. task: the images; its features are those of the teacher's encoder.
    prior_C: the expected class probabilities. weak, strong: how the two views are made. softness:
    SimCLRv2's temperature. shows_labels: whether the targets of labelled images are their labels rather
    than the teacher's probabilities. views: float16 (M, 1 + V, D), the backbone's features of the
    evaluation view and of V random views of each image of the pool; then the backbone is not trained.
    None where the whole network is trained. settings: with which the teacher was fitted, in mode "full".
    rate: the encoder's learning rate, as a fraction of that of the head.
    """

    teacher: Start
    mode: str
    temperature: float
    student: Start
    task: Task
    prior_C: np.ndarray
    weak: Recipe
    strong: Recipe
    softness: float
    shows_labels: bool
    views: np.ndarray | None = None
    settings: FullSettings = field(default_factory=FullSettings)
    rate: float = 1.0


@dataclass(frozen=True)
class Verdict:
    """The comparison of students with their teachers, on held-out labels and on images of the pool.

    held_out: the number of labels that neither a teacher nor its student was shown, 0 where none could
    be held out. teacher_hits, student_hits: how many of these the teachers and the students predicted
    correctly. differing: on how many only one of the two was correct. teacher_agreement,
    student_agreement: the fraction of pool images on which two teachers, or two students, that were
    fitted to different labels predict the same class. Two models that are both correct agree, and models
    that err at random do not (Jiang et al., Assessing Generalization of SGD via Disagreement, ICLR
    2022). It decides nothing: two pairs are no sample. compared: the number of images on which it was
    measured.
    """

    held_out: int
    teacher_hits: int
    student_hits: int
    differing: int
    teacher_agreement: float
    student_agreement: float
    compared: int

    @property
    def is_better(self) -> bool:
        """Whether the students predict clearly more of the held-out labels correctly than their
        teachers, as in `model_selection`."""
        gain = self.student_hits - self.teacher_hits
        wins = (self.differing + gain) // 2
        return win_by_chance(wins, self.differing - wins) < CLEAR


def soft_targets(setup: DistillationSetup, teacher: Classifier, labelled_L: np.ndarray) -> np.ndarray:
    """Returns the targets that a student is trained on, (M, C).

    They are the teacher's probabilities for each image of the pool, scaled so that their mean is the
    prior, and the labels of labelled images if these are shown.
    """
    task = setup.task
    probabilities = softmax(teacher_logits(setup, teacher, task.pool), axis=1)
    targets = to_prior(probabilities, setup.prior_C)
    if setup.shows_labels:
        rows = np.searchsorted(task.pool, labelled_L)
        targets[rows] = np.eye(task.classes)[task.labels[labelled_L]]
    return targets


def to_prior(probabilities_MxC: np.ndarray, prior_C: np.ndarray, rounds: int = 10) -> np.ndarray:
    """Scales columns and rows of probabilities in turn, so that rows sum to 1 and their mean is about
    `prior_C`."""
    scaled_MxC = probabilities_MxC + 1e-9
    for _ in range(rounds):
        scaled_MxC = scaled_MxC * (prior_C / scaled_MxC.mean(0))
        scaled_MxC = scaled_MxC / scaled_MxC.sum(1, keepdims=True)
    return scaled_MxC


def build_student(setup: DistillationSetup, targets_MxC: np.ndarray, seed: int) -> Distillation:
    """Builds an untrained student and the objective that trains it.

    If the student is pretrained, its head is first fitted to the targets on its features.
    """
    torch.manual_seed(seed)
    start, task = setup.student, setup.task
    encoder = copy.deepcopy(start.encoder)
    head: nn.Module = nn.Linear(encoder.dim, task.classes)
    if start.is_pretrained:
        features = _student_features(setup)
        mean, std = mean_and_std(features, bool(start.metadata.parts))
        head = standardised_logistic(
            (features - mean) / std,
            targets_MxC.argmax(1),
            _HEAD_STRENGTH,
            task.classes,
            mean,
            std,
            weights_N=targets_MxC.max(1),
        )
    if setup.views is not None:
        encoder.backbone.requires_grad_(False)
    elif start.is_published:
        for each in encoder.encoders if isinstance(encoder, SideBySide) else [encoder]:
            freeze_first(each, KEPT_FRACTION)
    student = Classifier(encoder, build_neck(encoder.dim, 0), head)
    return Distillation(
        student,
        torch.from_numpy(targets_MxC).float(),
        torch.from_numpy(setup.prior_C).float(),
        setup.weak,
        setup.strong,
        setup.softness,
        start.is_published,
    )


def student_data(setup: DistillationSetup, labelled_L: np.ndarray) -> TrainingData:
    """Returns the images of the pool, each with its row in the targets. If labels are shown, labelled
    images are repeated until they make up about LABELLED_FRACTION."""
    task = setup.task
    rows = np.arange(len(task.pool))
    if setup.shows_labels:
        known = np.searchsorted(task.pool, labelled_L)
        times = max(1, round(LABELLED_FRACTION * len(rows) / len(known)))
        rows = np.concatenate([rows, np.tile(known, times - 1)])
    if setup.views is not None:
        return TrainingData(setup.views, np.ones(len(setup.views), np.float32), rows, rows)
    return TrainingData(task.pixels, task.aspects, task.pool[rows], rows)


def encoder_rate(start: Start, is_old: bool = False) -> float:
    """Returns the learning rate of a student's encoder, as a fraction of that of its head. is_old: of a
    run that does not record it.

    A network that was trained on these images only has no more to lose than a new one: with the small
    rate its student was 1.5 points worse (hand signs, held-out part of the training split).
    """
    is_gentle = start.is_pretrained if is_old else start.is_published
    return ENCODER_RATE if is_gentle else 1.0


def train_student(
    setup: DistillationSetup,
    objective: Distillation,
    data: TrainingData,
    plan: Plan,
    log: Log = lambda row: None,
) -> tuple[Classifier, Plan]:
    """Trains a student; returns it in eval mode, and the plan that was carried out. Raises Stopped after
    a signal."""
    carried_out = train(
        objective,
        data,
        plan,
        setup.task.device,
        log,
        setup.task.next_saving(),
        lambda name: 1.0 if name.startswith("student.head.") else setup.rate,
    )
    return objective.student.eval(), carried_out


def cross_fit(
    setup: DistillationSetup,
    labelled_L: np.ndarray,
    plans: list[Plan],
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Verdict, np.ndarray, list[Plan]]:
    """Fits two teachers to half of the labels each, trains a student of each by one of the two plans,
    and tests both on the other half. Returns the verdict; the students' logits of the labelled images,
    (L, C), each from the student that was not shown its label; and the plans that were carried out.

    Where some class has one label, none can be held out: then nothing is trained and all fields of the
    verdict are 0.
    """
    task = setup.task
    splits = folds(task.labels[labelled_L], seed, 2, task.groups_of(labelled_L))
    if not splits:
        return Verdict(0, 0, 0, 0, 0.0, 0.0, 0), np.empty((0, task.classes)), []
    student_logits = np.zeros((len(labelled_L), task.classes))
    compared = evenly_spaced(np.setdiff1d(task.pool, labelled_L), _COMPARED)
    correct: dict[str, list[np.ndarray]] = {"teacher": [], "student": []}
    predictions: dict[str, list[np.ndarray]] = {"teacher": [], "student": []}
    carried_out: list[Plan] = []
    for number, (fitted, held_out) in enumerate(splits):
        progress(number, len(splits))
        half, other = labelled_L[fitted], labelled_L[held_out]
        teacher, _ = fit(setup.teacher, task, half, setup.mode, seed, setup.settings, judged=labelled_L)
        teacher.temperature = setup.temperature
        targets = soft_targets(setup, teacher, half)
        objective = build_student(setup, targets, seed)
        plan = replace(plans[number], seed=seed)
        student, plan = train_student(setup, objective, student_data(setup, half), plan)
        carried_out.append(plan)
        logits_of = {
            "teacher": lambda rows, t=teacher: teacher_logits(setup, t, rows),
            "student": lambda rows, s=student: predict_cached(s, task, rows),
        }
        student_logits[held_out] = logits_of["student"](other)
        for name, logits in logits_of.items():
            correct[name].append(logits(other).argmax(1) == task.labels[other])
            predictions[name].append(logits(compared).argmax(1))
    progress(len(splits), len(splits))
    teacher_correct, student_correct = (np.concatenate(correct[name]) for name in ("teacher", "student"))
    agree = {name: a == b for name, (a, b) in predictions.items()}
    verdict = Verdict(
        len(labelled_L),
        int(teacher_correct.sum()),
        int(student_correct.sum()),
        int((teacher_correct != student_correct).sum()),
        float(agree["teacher"].mean()),
        float(agree["student"].mean()),
        len(compared),
    )
    return verdict, student_logits, carried_out


def teacher_logits(setup: DistillationSetup, teacher: Classifier, indices: np.ndarray) -> np.ndarray:
    """Returns the teacher's logits for images of the pool. A teacher that is a head on frozen features
    takes the features of the task."""
    task = setup.task
    if setup.mode == "full" or task.features is None:
        return predict_cached(teacher, task, indices)
    with torch.no_grad():
        rows = np.searchsorted(task.pool, indices)
        return teacher.from_features(torch.from_numpy(task.features[rows])).numpy()


def _student_features(setup: DistillationSetup) -> np.ndarray:
    """Returns the features of the pool's images from the student's start: (M, D)."""
    task = setup.task
    if setup.student.encoder is setup.teacher.encoder and task.features is not None:
        return task.features[: len(task.pool)]
    size = setup.student.encoder.size
    arrays = (task.pixels, task.aspects, task.pool)
    return apply_to_cache(setup.student.encoder, size, *arrays, task.device, task.precision)
