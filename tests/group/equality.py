"""Run by torchrun in two processes: compares what they compute together with what one computes alone.

Writes to the file that is named a JSON with, for each case, the largest differences.
"""

import json
import sys
from dataclasses import replace

import numpy as np
import torch

from clfew.data.augment import Recipe
from clfew.finetuning.fit import FineTuning
from clfew.distillation.loss import Distillation
from clfew.group import group as groups
from clfew.group.launch import launch
from clfew.methods.adapter import WIDTH, Adapter
from clfew.methods.base import METHODS
from clfew.models.classifier import Classifier, build_neck
from clfew.models.encoder import Encoder
from clfew.training.batch import Batches, TrainingData
from clfew.training.plan import Plan
from clfew.training.steps import Order, Stepper, prepare
from clfew.training.optim import build_optimizer, parameter_groups
import clfew.methods  # noqa: F401

CPU = torch.device("cpu")
SIDE, IMAGES, RATE = 32, 80, 1e-4


def images():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    pixels = np.kron(low, np.ones((1, 4, 4, 1), np.uint8))
    pixels[::5] = pixels[::5].mean(3, keepdims=True)  # Some without colour.
    return pixels, rng.uniform(0.8, 1.25, IMAGES).astype(np.float32)


def double(module):
    """Makes a module compute in float64 what it gets in float32."""
    def cast(_, args):
        return tuple(a.double() if torch.is_tensor(a) and a.is_floating_point() else a for a in args)

    for each in module.modules():
        if not list(each.children()):
            each.register_forward_pre_hook(cast)
    module.double()
    for name in ("bins", "weights"):  # Colours are float32 whatever the network computes in.
        if hasattr(module, name):
            setattr(module, name, getattr(module, name).float())
    return module


def method(name, **options):
    def build():
        torch.manual_seed(0)
        kind = METHODS[name]
        encoder = Encoder(kind.encoder_name("resnet8-w16"), SIDE, [0.5] * 3, [0.25] * 3, input=kind.input)
        objective = kind(encoder, Recipe(), **options)
        pixels, aspects = images()
        objective.look_at(torch.from_numpy(pixels), torch.from_numpy(aspects))
        return objective

    return build


def finetuning():
    torch.manual_seed(0)
    encoder = Encoder("resnet8-w16", SIDE, [0.5] * 3, [0.25] * 3)
    return FineTuning(Classifier(encoder, build_neck(encoder.dim, 0), torch.nn.Linear(encoder.dim, 4)), True, False)


def distillation():
    torch.manual_seed(0)
    encoder = Encoder("resnet8-w16", SIDE, [0.5] * 3, [0.25] * 3)
    student = Classifier(encoder, build_neck(encoder.dim, 0), torch.nn.Linear(encoder.dim, 4))
    targets = torch.softmax(2 * torch.randn(IMAGES, 4), 1)
    weak = Recipe(crop_area=0.5, jitter=0, grey=0, blur=0)
    return Distillation(student, targets, torch.full((4,), 0.25), weak, Recipe())


def adapter():
    torch.manual_seed(0)
    encoder = Encoder("resnet8-w16", SIDE, [0.5] * 3, [0.25] * 3, WIDTH)
    return Adapter(encoder, 0.2, False)


CASES = {name: method(name) for name in METHODS} | {
    "simclr dcl": method("simclr", loss="dcl"),
    "denoising gaussian": method("denoising", corruption="gaussian"),
    "denoising stacked": method("denoising", stacked=True),
    "denoising stacked gaussian": method("denoising", stacked=True, corruption="gaussian"),
    "denoising stacked salt": method("denoising", stacked=True, corruption="salt-and-pepper"),
    "inpainting adversarial": method("inpainting", adversarial=True),
    "inpainting centre": method("inpainting", mask="centre"),
    "finetuning": finetuning,
    "distillation": distillation,
    "adapter": adapter,
}


def data_of(case):
    pixels, aspects = images()
    rows = np.arange(IMAGES)
    labels = rows % 4 if case == "finetuning" else rows if case == "distillation" else None
    if case == "adapter":
        features = np.random.default_rng(1).normal(size=(IMAGES, 4, 64)).astype(np.float16)
        return TrainingData(features, np.ones(IMAGES, np.float32), rows)
    return TrainingData(pixels, aspects, rows, labels)


def steps(case, build, dtype, count, batch, optimizer="sgd", progress=0.4):
    """Returns losses, what was logged, and the gradients or, after several steps, the weights."""
    objective = build()
    objective = double(objective) if dtype == torch.float64 else objective
    plan = Plan(count, batch, optimizer, RATE, 1e-4, 1, 0, "fp32")
    prepare(objective, CPU)
    stepper = Stepper(objective, build_optimizer(optimizer, parameter_groups(objective, 1e-4), RATE), plan, CPU)
    logged = []
    with Batches(data_of(case), plan, CPU, 0) as batches:
        for step in range(count):
            loss, extras = stepper.take(next(batches), Order(step, RATE, progress, progress + 0.01))
            logged.append({"loss": float(loss)} | {k: float(v) for k, v in extras.items()})
    gradients = {n: p.grad.clone() for n, p in objective.named_parameters() if p.grad is not None}
    return logged, gradients, {n: v.clone() for n, v in objective.state_dict().items()}


def difference(one, other):
    assert one.keys() == other.keys(), (one.keys() ^ other.keys())
    return max(
        (float((one[n].double() - other[n].double()).abs().max() / one[n].double().abs().max().clamp(min=1e-3)) if one[n].numel() else 0.0)
        for n in one
    )


def main(out, only):
    group = groups._join(launch())
    results = {}
    for case, build in CASES.items():
        if only and case not in only:
            continue
        for kind, dtype, count, batch in (
            ("float64", torch.float64, 1, 12),
            ("remainder", torch.float64, 1, 11),
            ("fp32", torch.float32, 20, 32),
        ):
            torch.manual_seed(0)
            groups._is_together = True
            logged, gradients, weights = steps(case, build, dtype, count, batch)
            groups._is_together = False
            alone = steps(case, build, dtype, count, batch)
            log = max(abs(a[k] - b[k]) / max(1.0, abs(a[k])) for a, b in zip(alone[0], logged) for k in a)
            same = group.exchange({n: v.double().sum().item() for n, v in weights.items()})
            results[f"{case}: {kind}"] = {
                "loss": max(abs(a["loss"] - b["loss"]) / max(1, abs(a["loss"])) for a, b in zip(alone[0], logged)),
                "logged": log,
                "gradients": difference(alone[1], gradients),
                "weights": difference(alone[2], weights),
                "same": all(each == same[0] for each in same),
            }
            if group.rank == 0:
                print([f"{a['loss']-b['loss']:.1e}" for a,b in zip(alone[0],logged)]);print(case, kind, results[f"{case}: {kind}"], flush=True)
    if group.rank == 0:
        with open(out, "w") as file:
            json.dump(results, file)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2:])
