"""Training speed of each pretraining method in images a second, beside SimCLR on the same encoder.

    python examples/benchmarks/methods.py [--size 64] [--encoder resnet8-w32] [--batch 128] [--repeats 5]

The images are noise, because the time of a step does not depend on what they show. SimCLR and each other
method run a few steps in turn, in one process. Prints the medians of the repeats, and their ratio.
Results go to results/methods.json; what the file contains is not measured again.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from common import Results

from clfew.data.augment import Recipe
from clfew.methods.base import METHODS
from clfew.models.encoder import Encoder
from clfew.training.batch import Batches, TrainingData
from clfew.training.guard import Guard
from clfew.training.loop import Course, _prepare, _step
from clfew.training.optim import build_optimizer, parameter_groups
from clfew.training.plan import Plan
from clfew.training.schedule import Schedule

HERE = Path(__file__).parent / "results"
STEPS = 6


class Side:
    """A method with its optimizer and its data."""

    def __init__(self, name, data, arguments, device):
        torch.manual_seed(0)
        kind = METHODS[name]
        encoder = Encoder(
            kind.encoder_name(arguments.encoder), arguments.size, [0.5] * 3, [0.25] * 3, input=kind.input
        )
        self.method = kind(encoder, Recipe(crop_area=0.3, jitter=0.5, blur=0.5))
        self.method.look_at(torch.from_numpy(data.pixels[:500]), torch.ones(500))
        self.plan = Plan(1000, arguments.batch, "adamw", 1e-3, 1e-4, 10, 0, "fp32")
        _prepare(self.method, device)
        groups = parameter_groups(self.method, 1e-4)
        self.optimizer = build_optimizer("adamw", groups, 1e-3)
        guard = Guard(self.method, self.optimizer, device)
        self.course = Course(Schedule(self.plan, len(data)), guard)
        self.data, self.device = data, device

    def images_per_second(self, steps=STEPS):
        with Batches(self.data, self.plan, self.device, 0) as batches:
            _step(self.method, self.optimizer, next(batches), self.course, 0)[0].item()
            started = time.perf_counter()
            for step in range(1, steps + 1):
                loss, _ = _step(self.method, self.optimizer, next(batches), self.course, step)
            loss.item()  # Waits until the device has finished.
            return steps * self.plan.batch / (time.perf_counter() - started)


def measure(name, data, arguments, device):
    ours, simclr = (Side(n, data, arguments, device) for n in (name, "simclr"))
    speeds = {name: [], "simclr": []}
    for repeat in range(arguments.repeats):
        pairs = [(name, ours), ("simclr", simclr)]
        for key, side in pairs[:: 1 if repeat % 2 else -1]:
            speeds[key].append(side.images_per_second())
    ratios = [a / b for a, b in zip(speeds[name], speeds["simclr"], strict=True)]
    return {
        "images_per_second": float(np.median(speeds[name])),
        "ratio": float(np.median(ratios)),
        "ratios": ratios,
        "simclr": float(np.median(speeds["simclr"])),
        "parameters": sum(p.numel() for p in ours.method.parameters() if p.requires_grad),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--encoder", default="resnet8-w32")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    side = round(1.25 * arguments.size)
    pixels = np.random.default_rng(0).integers(0, 256, (2000, side, side, 3), dtype=np.uint8)
    data = TrainingData(pixels, np.ones(2000, np.float32), np.arange(2000))
    results = Results(HERE / "methods.json")
    print("| method | images/s | beside SimCLR | learned weights |\n|---|---|---|---|")
    for name in METHODS:
        key = f"{arguments.encoder} {arguments.size} px, batch {arguments.batch}: {name}"
        row = results.get(key, lambda name=name: measure(name, data, arguments, device))
        shown = f"{row['images_per_second']:.0f} | {row['ratio']:.2f}× | {row['parameters']:,}"
        print(f"| {name} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
