"""Run by torchrun in two processes: what they compute together, and what one computes alone.

    torchrun --nproc-per-node 2 equality.py OUT [CASE...]

OUT becomes a JSON with the differences of each case: of the loss, of all that is logged, of the
gradients (relative to the largest one of each weight) and of the weights, and whether both processes
have the same weights.

In float32 rounding alone makes trainings drift apart, faster with a larger learning rate: at 1e-4,
SimCLR's losses after twenty steps differ by 5e-3 between one and two threads of one process.
"""

import contextlib
import json
import sys
from dataclasses import replace
from unittest import mock

import numpy as np
import torch

import clfew.methods  # noqa: F401
from clfew.data.augment import Recipe
from clfew.distillation.loss import Distillation
from clfew.finetuning.fit import FineTuning
from clfew.group import command as groups
from clfew.group import tensors
from clfew.group.group import Rows
from clfew.group.launch import launch
from clfew.methods import simclr
from clfew.methods.adapter import WIDTH, Adapter
from clfew.methods.base import METHODS
from clfew.models.classifier import Classifier, build_neck
from clfew.models.encoder import Encoder
from clfew.training import batch as batches_of
from clfew.training import steps as training_steps
from clfew.training.batch import Batches, TrainingData
from clfew.training.optim import build_optimizer, parameter_groups
from clfew.training.plan import Plan
from clfew.training.steps import Order, Stepper, prepare

CPU = torch.device("cpu")
SIDE, IMAGES, CLASSES, RATE = 32, 64, 4, 3e-5
DOUBLE, REMAINDER, TWENTY = "float64", "remainder", "fp32"
"""One step in float64, the same with a batch that two processes cannot halve, twenty steps in fp32."""


def images():
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    pixels = np.kron(coarse, np.ones((1, 4, 4, 1), np.uint8))
    pixels[::5] = pixels[::5].mean(3, keepdims=True)  # Some have no colour.
    return pixels, random.uniform(0.8, 1.25, IMAGES).astype(np.float32)


def encoder_of(name="resnet8-w16", **options):
    return Encoder(name, SIDE, [0.5] * 3, [0.25] * 3, **options)


def method(name, **options):
    def build():
        kind = METHODS[name]
        objective = kind(
            encoder_of(kind.encoder_name("resnet8-w16"), input=kind.input), Recipe(), **options
        )
        objective.look_at(*map(torch.from_numpy, images()))
        return objective

    return build


def dropping():
    """SimCLR whose encoder drops some of its features."""
    objective = method("simclr")()
    objective.encoder.backbone = torch.nn.Sequential(objective.encoder.backbone, torch.nn.Dropout(0.3))
    return objective


def classifier():
    encoder = encoder_of()
    return Classifier(encoder, build_neck(encoder.dim, 0), torch.nn.Linear(encoder.dim, CLASSES))


def finetuning():
    return FineTuning(classifier(), flip=True, freeze_statistics=False)


def distillation():
    targets = torch.softmax(2 * torch.randn(IMAGES, CLASSES), 1)
    weak = Recipe(crop_area=0.5, jitter=0, grey=0, blur=0)
    return Distillation(classifier(), targets, torch.full((CLASSES,), 1 / CLASSES), weak, Recipe())


def adapter():
    return Adapter(encoder_of(adapter=WIDTH), 0.2, False)


CASES = {name: method(name) for name in METHODS} | {
    "finetuning": finetuning,
    "distillation": distillation,
}
FURTHER = {
    "dcl": method("simclr", loss="dcl"),
    "dropout": dropping,
    "gaussian": method("denoising", corruption="gaussian"),
    "stacked": method("denoising", stacked=True),
    "stacked gaussian": method("denoising", stacked=True, corruption="gaussian"),
    "stacked salt-and-pepper": method("denoising", stacked=True, corruption="salt-and-pepper"),
    "adversarial": method("inpainting", adversarial=True),
    "centre": method("inpainting", mask="centre", adversarial=True),
    "adapter": adapter,
}


def data_of(case):
    rows = np.arange(IMAGES)
    if case == "adapter":
        features = np.random.default_rng(1).normal(size=(IMAGES, 4, 64)).astype(np.float16)
        return TrainingData(features, np.ones(IMAGES, np.float32), rows)
    labels = {"finetuning": rows % CLASSES, "distillation": rows}.get(case)
    return TrainingData(*images(), rows, labels)


def in_double(module):
    """Makes a module compute in float64 what it gets in float32. Colours and targets stay float32, as
    they are whatever the network computes in."""

    def cast(_, args):
        return tuple(a.double() if torch.is_tensor(a) and a.is_floating_point() else a for a in args)

    for each in module.modules():
        if not list(each.children()):
            each.register_forward_pre_hook(cast)
    module.double()
    for name in ("bins", "weights", "targets", "prior", "confidence", "shares"):
        if hasattr(module, name):
            setattr(module, name, getattr(module, name).float())
    return module


def take_steps(case, build, dtype, count, batch):
    """Returns what was logged, the gradients of the last step and the state in the end."""
    torch.manual_seed(0)
    objective = build()
    objective = in_double(objective) if dtype == torch.float64 else objective
    plan = Plan(count, batch, "sgd", RATE, 1e-4, 1, 0, "fp32")
    prepare(objective, CPU)
    stepper = Stepper(
        objective, build_optimizer("sgd", parameter_groups(objective, 1e-4), RATE), plan, CPU
    )
    logged = []
    with Batches(data_of(case), plan, CPU, 0) as batches:
        for step in range(count):
            loss, extras = stepper.take(next(batches), Order(step, RATE, 0.6, 0.61))
            logged.append({"loss": float(loss)} | {name: float(v) for name, v in extras.items()})
    gradients = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
    return logged, gradients, {n: v.double() for n, v in objective.state_dict().items()}


def largest(differences):
    return max(map(float, differences), default=0.0)


def compared(case, kind, build):
    """Returns the differences of a case."""
    dtype, count, batch = {
        DOUBLE: (torch.float64, 1, 12),
        REMAINDER: (torch.float64, 1, 11),
        TWENTY: (torch.float32, 20, 16),
    }[kind]
    groups._is_together = True
    logged, gradients, weights = take_steps(case, build, dtype, count, batch)
    sums = groups.current().exchange([v.sum().item() for v in weights.values()])
    groups._is_together = False
    logged_alone, gradients_alone, weights_alone = take_steps(case, build, dtype, count, batch)
    assert gradients.keys() == gradients_alone.keys()
    pairs = list(zip(logged_alone, logged, strict=True))
    return {
        "loss": largest(abs(a["loss"] - b["loss"]) / max(1, abs(a["loss"])) for a, b in pairs),
        "logged": largest(abs(a[name] - b[name]) / max(1, abs(a[name])) for a, b in pairs for name in a),
        "gradients": largest(
            (alone - gradients[n]).abs().max() / alone.abs().max().clamp(min=1e-3)
            for n, alone in gradients_alone.items()
        ),
        "weights": largest((v - weights[n]).abs().max() for n, v in weights_alone.items() if v.numel()),
        "same": all(each == sums[0] for each in sums),
    }


# Mistakes that are often made. Each is a context in which a case must differ.


def rows_before_the_gather():
    """The positives and the image itself are looked for among the process's own rows."""
    return mock.patch.object(simclr, "own_rows", lambda n: replace(groups.current().rows, start=0))


def gather_without_gradient():
    return mock.patch.object(simclr, "whole", lambda rows, views: tensors.whole(rows, views).detach())


def only_own_negatives():
    """As if nothing were gathered: each process has its own batch."""
    alone = mock.patch.object(simclr, "whole", lambda rows, views: rows)
    own = mock.patch.object(simclr, "own_rows", lambda n: Rows(0, n, n))
    return both(alone, own)


def gradient_of_the_sum():
    """The gradient is as many times too large as there are processes."""
    original = Stepper._backward

    def backward(self, loss, extras, group):
        mean, extras = original(self, loss * group.size, extras, group)
        return mean / group.size, extras

    return mock.patch.object(Stepper, "_backward", backward)


def statistics_of_each_process():
    return mock.patch.object(training_steps, "WholeBatch", lambda *args: contextlib.nullcontext())


def same_views_everywhere():
    """Random numbers depend on the place in the process's batch, not on the image."""

    class Drawn(Batches):
        def gather(self, step):
            batch = super().gather(step)
            count = len(batch.random.indices)
            return replace(batch, random=replace(batch.random, indices=np.arange(count)))

    return (
        mock.patch.dict(globals(), {"Batches": Drawn})
        if groups._is_together
        else contextlib.nullcontext()
    )


def choices_of_each_process():
    """What is drawn once a batch is drawn once in each process."""
    return mock.patch.object(batches_of, "ImageRandom", lambda s, e, i, first=None: RANDOM(s, e, i))


def unweighted_remainder():
    """Each process's mean counts as much, however many rows it has."""
    return mock.patch.object(tensors, "share_of_batch", lambda: 0.5)


@contextlib.contextmanager
def both(one, other):
    with one, other:
        yield


RANDOM = batches_of.ImageRandom
MISTAKES = {
    "rows before the gather": (rows_before_the_gather, "simclr", DOUBLE),
    "gather without gradient": (gather_without_gradient, "simclr", DOUBLE),
    "only own negatives": (only_own_negatives, "simclr", DOUBLE),
    "gradient of the sum": (gradient_of_the_sum, "byol", DOUBLE),
    "statistics of each process": (statistics_of_each_process, "byol", DOUBLE),
    "same views everywhere": (same_views_everywhere, "byol", DOUBLE),
    "choices of each process": (choices_of_each_process, "inpainting", DOUBLE),
    "unweighted remainder": (unweighted_remainder, "colorization", REMAINDER),
}


def with_mistake(mistake, case, kind):
    """Returns the differences of a case if only the processes together make a mistake."""

    def take(*args):
        with mistake() if groups._is_together else contextlib.nullcontext():
            return TAKE(*args)

    with mock.patch.dict(globals(), {"take_steps": take}):
        return compared(case, kind, CASES[case])


TAKE = take_steps


def main(out, *only):
    group = groups._join(launch())
    results = {}
    for case, build in (CASES | FURTHER).items():
        for kind in (DOUBLE, REMAINDER, TWENTY) if case in CASES else (DOUBLE, REMAINDER):
            if not only or case in only:
                results[f"{case}, {kind}"] = compared(case, kind, build)
    for name, (mistake, case, kind) in MISTAKES.items():
        if not only or name in only:
            results[name] = with_mistake(mistake, case, kind)
    if group.rank == 0:
        with open(out, "w", encoding="utf-8") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
