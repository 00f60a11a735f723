"""Students: how one is taught, and whether it is better than its teacher.

Shape suffixes: M images of the pool, L labelled images, C classes, D features.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import softmax
from torch import nn

from clfew.data.augment import Recipe
from clfew.data.splits import evenly_spaced
from clfew.distillation.loss import Distillation
from clfew.finetuning.fit import Log, Start, Task, fit, predict_cached
from clfew.finetuning.model_selection import CLEAR
from clfew.finetuning.probes import folds, standardised_logistic
from clfew.models.classifier import Classifier, build_neck
from clfew.models.encoder import freeze_first
from clfew.models.features import apply_to_cache
from clfew.training.batch import TrainingData
from clfew.training.loop import train
from clfew.training.optim import ENCODER_RATE, KEPT_FRACTION
from clfew.training.plan import Plan

LABELLED_FRACTION = 0.1
"""Of what a student sees in an epoch, when it is shown labels: few images would else hardly occur."""

_HEAD_STRENGTH = 0.03
_COMPARED = 2000
"""So many images of the pool say how far two models agree."""


@dataclass(frozen=True)
class DistillationSetup:
    """What students are taught with.

    teacher: what the teacher was fitted from, in `mode`, with its `temperature`. student: what students
    start from. task: the images; its features are of the teacher's encoder. prior_C: expected shares of
    the classes. weak, strong: the two views. softness: SimCLRv2's temperature. shows_labels: labelled
    images are shown with their labels, besides what the teacher says of all. views: float16 (M, 1 + V,
    D), of each image of the pool what the student's backbone says of its evaluation view and of V random
    ones: then the backbone stays as it is. None: the whole network learns.
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


@dataclass(frozen=True)
class Verdict:
    """What held-out labels and pool images say of students beside their teachers.

    held_out: labels that neither a teacher nor its student had seen, 0 where there were none to hold
    out. teacher_hits, student_hits: how many of these each got right. teacher_agreement,
    student_agreement: the share of pool images on which two teachers, and two students, of different
    labels say the same; two models that both are right agree, and models that err at random do not
    (Jiang et al., Assessing Generalization of SGD via Disagreement, ICLR 2022). compared: how many
    images these shares are of.
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
        """Held-out labels show it clearly, by CLEAR standard errors as for other choices, or do not deny
        it where the students clearly agree more than the teachers."""
        if not self.held_out:
            return False
        gain = self.student_hits - self.teacher_hits
        noise = self.differing**0.5  # The standard error of the difference of paired hits.
        shares = (self.teacher_agreement, self.student_agreement)
        error = (sum(p * (1 - p) for p in shares) / max(1, self.compared)) ** 0.5
        agree_more = shares[1] - shares[0] > CLEAR * error
        return gain > CLEAR * noise or (gain >= 0 and agree_more)


def soft_targets(setup: DistillationSetup, teacher: Classifier, labelled_L: np.ndarray) -> np.ndarray:
    """What a student is to learn of each image of the pool: the teacher's probabilities, scaled so that
    the classes have the shares expected of them, and the labels where these are shown. (M, C)"""
    task = setup.task
    probabilities = softmax(teacher_logits(setup, teacher, task.pool), axis=1)
    targets = to_prior(probabilities, setup.prior_C)
    if setup.shows_labels:
        rows = np.searchsorted(task.pool, labelled_L)
        targets[rows] = np.eye(task.classes)[task.labels[labelled_L]]
    return targets


def to_prior(probabilities_MxC: np.ndarray, prior_C: np.ndarray, rounds: int = 10) -> np.ndarray:
    """Probabilities scaled in turns so that rows sum to 1 and the classes have the shares of
    `prior_C`.
    """
    shares = probabilities_MxC + 1e-9
    for _ in range(rounds):
        shares = shares * (prior_C / shares.mean(0))
        shares = shares / shares.sum(1, keepdims=True)
    return shares


def build_student(setup: DistillationSetup, targets_MxC: np.ndarray, seed: int) -> Distillation:
    """A student before its first step, with a head that already says what its features allow of the
    targets, and what trains it."""
    torch.manual_seed(seed)
    start, task = setup.student, setup.task
    encoder = copy.deepcopy(start.encoder)
    head: nn.Module = nn.Linear(encoder.dim, task.classes)
    if start.is_pretrained:
        features = _student_features(setup)
        mean, std = features.mean(0), features.std(0) + 1e-6
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
        freeze_first(encoder, KEPT_FRACTION)
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
    """The pool's images, each with its row in the targets; labelled ones as often as it takes."""
    task = setup.task
    rows = np.arange(len(task.pool))
    if setup.shows_labels:
        known = np.searchsorted(task.pool, labelled_L)
        times = max(1, round(LABELLED_FRACTION * len(rows) / len(known)))
        rows = np.concatenate([rows, np.tile(known, times - 1)])
    if setup.views is not None:
        return TrainingData(setup.views, np.ones(len(setup.views), np.float32), rows, rows)
    return TrainingData(task.pixels, task.aspects, task.pool[rows], rows)


def train_student(
    setup: DistillationSetup,
    objective: Distillation,
    data: TrainingData,
    plan: Plan,
    log: Log = lambda row: None,
) -> Classifier:
    """Trains a student and returns it in eval mode. Raises Stopped after a signal."""
    below_head = ENCODER_RATE if setup.student.is_pretrained else 1.0
    train(
        objective,
        data,
        plan,
        setup.task.device,
        log,
        lr_scale=lambda name: 1.0 if ".head." in name else below_head,
    )
    return objective.student.eval()


def cross_fit(
    setup: DistillationSetup,
    labelled_L: np.ndarray,
    plan: Plan,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verdict:
    """Two teachers, each of half of the labels, and a student of each, tested on the other half's
    labels.

    Where some class has one label nothing can be held out, and nothing is trained.
    """
    task = setup.task
    splits = folds(task.labels[labelled_L], seed, most=2)
    if not splits:
        return Verdict(0, 0, 0, 0, 0.0, 0.0, 0)
    compared = evenly_spaced(np.setdiff1d(task.pool, labelled_L), _COMPARED)
    correct: dict[str, list[np.ndarray]] = {"teacher": [], "student": []}
    answers: dict[str, list[np.ndarray]] = {"teacher": [], "student": []}
    for number, (fitted, held_out) in enumerate(splits):
        progress(number, len(splits))
        half, other = labelled_L[fitted], labelled_L[held_out]
        teacher, _ = fit(setup.teacher, task, half, setup.mode, seed)
        teacher.temperature = setup.temperature
        targets = soft_targets(setup, teacher, half)
        objective = build_student(setup, targets, seed)
        student = train_student(setup, objective, student_data(setup, half), replace(plan, seed=seed))
        logits = {
            "teacher": lambda rows, t=teacher: teacher_logits(setup, t, rows),
            "student": lambda rows, s=student: predict_cached(s, task, rows),
        }
        for name, answer in logits.items():
            correct[name].append(answer(other).argmax(1) == task.labels[other])
            answers[name].append(answer(compared).argmax(1))
    progress(len(splits), len(splits))
    teacher_hits, student_hits = (np.concatenate(correct[name]) for name in ("teacher", "student"))
    agreement = {name: float((a == b).mean()) for name, (a, b) in answers.items()}
    verdict = Verdict(
        len(labelled_L),
        int(teacher_hits.sum()),
        int(student_hits.sum()),
        int((teacher_hits != student_hits).sum()),
        agreement["teacher"],
        agreement["student"],
        len(compared),
    )
    return verdict


def teacher_logits(setup: DistillationSetup, teacher: Classifier, indices: np.ndarray) -> np.ndarray:
    """Logits of images of the pool; from the features at hand where the teacher is a head on them."""
    task = setup.task
    if setup.mode == "full" or task.features is None:
        return predict_cached(teacher, task, indices)
    with torch.no_grad():
        rows = np.searchsorted(task.pool, indices)
        return teacher.from_features(torch.from_numpy(task.features[rows])).numpy()


def _student_features(setup: DistillationSetup) -> np.ndarray:
    """Features of the pool's images from what the student starts from: (M, D)."""
    task = setup.task
    if setup.student.encoder is setup.teacher.encoder and task.features is not None:
        return task.features[: len(task.pool)]
    size = setup.student.encoder.size
    arrays = (task.pixels, task.aspects, task.pool)
    return apply_to_cache(setup.student.encoder, size, *arrays, task.device, task.precision)
