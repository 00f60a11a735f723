"""The crops of the pretext methods: at one scale, as in the papers, beside crops of random area.

    python examples/benchmarks/crops.py DATA [--only sign-digits] [--steps 150]

DATA holds the folders sign-digits, fashion-mnist-6k and aerial. Every method trains the same network at
32 px for the same number of steps on the pool with either crops. Logistic regression on its features
(the best stage in cross-validation) is fitted to 5 labels a class from one half of the pool and scored
on the other, with the same ten label samples for both. The test splits are not used. Prints for each
method and set both accuracies, and the mean difference with its 95 % interval over label samples.
Results go to results/crops.json; what the file contains is not measured again.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from common import Results

from clfew.commands.comparison import ComparisonPlan, accuracy_of, features_by_stage, open_images
from clfew.data.held_out import SPLIT_RULE
from clfew.data.labels import parse_labels, sample_labels
from clfew.methods.base import METHODS
from clfew.methods.setup import estimate_statistics, optimizer_choice
from clfew.models.defaults import choose_batch, choose_recipe, normalisation
from clfew.models.encoder import Encoder
from clfew.training.batch import TrainingData
from clfew.training.loop import train
from clfew.training.plan import Plan, warmup_steps

HERE = Path(__file__).parent / "results"
SETS = {"sign-digits": False, "fashion-mnist-6k": True, "aerial": True}
"""Whether a mirrored image has the same class."""

SIDES = {
    "jigsaw": 255 / 256,
    "context-prediction": 1.0,
    "denoising": 1.0,
    "colorization": 176 / 256,
    "inpainting": 128 / 350,
    "split-brain": 227 / 256,
    "counting": 224 / 256,
}
"""The side of a crop as a fraction of the image's shorter side, in the papers or their authors' code."""

SAMPLES, LABELS, SIZE = 10, "5/class", 32


def halves(folder, seed=0):
    """Returns the images of a set with its pool as two halves: one to label, one to score on."""
    plan = ComparisonPlan(
        source=folder,
        methods=["simclr"],
        labels=[LABELS],
        draws=1,
        seeds=1,
        minutes=None,
        epochs=1.0,
        encoder="auto",
        size=SIZE,
        mode="linear",
        flip=True,
        seed=0,
        device="auto",
        precision="auto",
        threads=None,
        split_rule=SPLIT_RULE,
    )
    images, encoder = open_images(plan)
    order = np.random.default_rng(seed).permutation(images.data.known)
    first, second = np.sort(order[::2]), np.sort(order[1::2])
    halved = replace(images, data=replace(images.data, pool=first, test=second))
    return images, halved, encoder


def pretrained(method, side, images, encoder, flip, steps):
    """Returns an encoder that a method has trained with crops of one side, or of random area (None)."""
    torch.manual_seed(0)
    kind, cache, pool = METHODS[method], images.cache, images.pool
    mean, std = normalisation(cache, pool, kind.input)
    network = Encoder(kind.encoder_name(encoder), images.size, mean, std, input=kind.input)
    recipe, _ = choose_recipe(images.size, cache, pool, flip)
    objective = kind(network, recipe)
    objective.recipe = replace(objective.recipe, crop_side=side)
    some = pool[:: max(1, len(pool) // 2000)]
    objective.look_at(torch.from_numpy(cache.pixels[some]), torch.from_numpy(cache.aspects[some]))
    data = TrainingData(cache.pixels, cache.aspects, pool)
    batch, _ = choose_batch(None, len(data), images.device, objective.large_batches)
    name, rate, decay, _ = optimizer_choice(objective, batch, "auto")(steps)
    warmup = warmup_steps(steps, max(1, len(data) // batch))
    plan = Plan(steps, batch, name, rate, decay, warmup, 0, images.precision)
    train(objective, data, plan, images.device)
    objective.eval()
    if not objective.shows_whole_images:
        estimate_statistics(objective.encoder, data, images.device)
    return objective.encoder


def accuracies(method, side, images, halved, encoder, flip, steps):
    stages = features_by_stage(pretrained(method, side, images, encoder, flip, steps), halved)
    samples = [
        sample_labels(images.source, halved.pool, parse_labels(LABELS), number)
        for number in range(SAMPLES)
    ]
    return [accuracy_of(stages, halved, s, "linear", n)["accuracy"] for n, s in enumerate(samples)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--only")
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    results = Results(HERE / "crops.json")
    print(f"{'method':<20} {'set':<18} {'random':>7} {'paper':>7}  difference")
    for name in [arguments.only] if arguments.only else SETS:
        opened = halves(str(arguments.data / name))
        for method, side in SIDES.items():
            compare(results, name, method, side, opened, arguments.steps)


def compare(results, name, method, side, opened, steps):
    def measure(crop):
        return accuracies(method, crop, *opened, SETS[name], steps)

    random = results.get(f"{name}/{method}/random/{steps}", lambda: measure(None))
    paper = results.get(f"{name}/{method}/{side:.3f}/{steps}", lambda: measure(side))
    gain = np.subtract(paper, random)
    reach = 2.262 * gain.std(ddof=1) / np.sqrt(SAMPLES)  # Student's t, nine degrees of freedom.
    print(
        f"{method:<20} {name:<18} {np.mean(random):>7.3f} {np.mean(paper):>7.3f}  "
        f"{gain.mean():+.3f} ± {reach:.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
