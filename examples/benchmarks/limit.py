"""Compares the speed of the training loop to its limit: the encoder's forward and backward pass alone.

    python examples/benchmarks/limit.py [--seconds 20] [--repeats 3] [--device auto] [--out FILE]

For each network and size, it measures two things in turn, several times. One is the encoder alone:
forward and backward on two views of a batch in memory, in the same precision and with the same
gradients. The other is clfew's whole loop over an image cache: reading images, computing both views,
encoder, projector, loss, optimizer. It prints the fraction of the loop's time that the encoder alone
takes, the fraction spent waiting for data, and the fraction spent on views. For comparison, "at peak" is
the number of images a second if all of the encoder's multiplications ran at the speed of one large
matrix product and nothing else took any time: no tool that trains this network is faster.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import environment
from torch.utils.flop_counter import FlopCounterMode

from clfew.data.augment import Recipe, random_views
from clfew.data.cache_arrays import create_arrays, map_arrays
from clfew.methods.simclr import SimCLR
from clfew.models.encoder import Encoder
from clfew.training.batch import Batches, TrainingData
from clfew.training.convolution import TrainingConvolutions
from clfew.training.device import choose_device, choose_precision
from clfew.training.loop import train
from clfew.training.optim import choose_pretraining
from clfew.training.plan import Plan

CPU_CASES = [
    ("resnet8-w32", 32, 128),
    ("resnet18", 32, 128),
    ("resnet8-w32", 96, 128),
    ("resnet18", 96, 64),
    ("resnet8-w32", 224, 64),
    ("resnet18", 224, 16),
]
GPU_CASES = [("resnet18", 32, 1024), ("resnet18", 96, 512), ("resnet50", 224, 256)]


def synthetic_cache(folder, count, side):
    """Writes smooth random images to the file of an image cache and maps it into memory."""
    path = Path(folder) / "pixels.safetensors"
    pixels, aspects, _ = create_arrays(path, count, side)
    random = np.random.default_rng(0)
    for start in range(0, count, 256):
        coarse = torch.from_numpy(random.random((min(256, count - start), 3, 6, 6), dtype=np.float32))
        fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
        pixels[start : start + 256] = (fine * 255).permute(0, 2, 3, 1).to(torch.uint8).numpy()
    aspects[:] = 1
    return map_arrays(path, count, side, "r")[:2]


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def encoder_alone(objective, size, batch, device, precision, seconds):
    """Returns the seconds of a forward and backward pass of the encoder over 2·batch views."""
    encoder = objective.encoder.train()
    views = torch.rand(2 * batch, 3, size, size, device=device)
    views = views.contiguous(memory_format=torch.channels_last)
    times = []
    until = time.perf_counter() + seconds
    while len(times) < 4 or time.perf_counter() < until:
        started = time.perf_counter()
        bf16 = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        with bf16, TrainingConvolutions():
            features = encoder(views)
        features.backward(torch.ones_like(features))
        encoder.zero_grad(set_to_none=True)
        synchronise(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


def peak(device, precision, seconds):
    """Returns the floating-point operations a second of a large matrix product."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side = 8192 if device.type == "cuda" else 2048
    a, b = (torch.rand(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    until = time.perf_counter() + seconds
    while len(times) < 4 or time.perf_counter() < until:
        started = time.perf_counter()
        a @ b
        synchronise(device)
        times.append(time.perf_counter() - started)
    return 2 * side**3 / statistics.median(times[1:])


def operations(objective, size, device):
    """Counts the floating-point operations of the encoder's forward and backward pass for two views."""
    with FlopCounterMode(display=False) as counter:
        features = objective.encoder.train()(torch.rand(2, 3, size, size, device=device))
        features.backward(torch.ones_like(features))
    objective.encoder.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def whole_loop(objective, data, plan, device):
    """Returns the seconds of a step of the whole loop, and the fraction of it spent waiting for data."""
    rows = []
    train(objective, data, plan, device, rows.append)
    first, last = rows[0], rows[-1]
    per_step = (last["seconds"] - first["seconds"]) / (last["step"] - first["step"])
    return per_step, statistics.mean(row["data_wait"] for row in rows[1:])


def parts(objective, data, plan, device, seconds):
    """Returns the seconds a step of computing the views, and of reading the images."""
    recipe, size = objective.recipe, objective.encoder.size
    views, reading = [], []
    until = time.perf_counter() + seconds
    with Batches(data, plan, device, 0) as batches, torch.no_grad():
        while len(views) < 4 or time.perf_counter() < until:
            batch = next(batches)
            synchronise(device)
            started = time.perf_counter()
            random_views(batch.images, batch.aspects, size, recipe, batch.random)
            synchronise(device)
            views.append(time.perf_counter() - started)
    with contextlib.closing(Batches(data, plan, device, 0)) as batches:
        for step in range(8):
            started = time.perf_counter()
            batches.gather(step)
            synchronise(device)
            reading.append(time.perf_counter() - started)
    return statistics.median(views[1:]), statistics.median(reading[1:])


def measure(name, size, batch, device, precision, seconds, repeats):
    recipe = Recipe(0.3, jitter=1.0 if size >= 64 else 0.5, blur=0.5 if size >= 64 else 0.0)
    torch.manual_seed(0)
    objective = SimCLR(Encoder(name, size, [0.5] * 3, [0.25] * 3), recipe)
    objective.to(device, memory_format=torch.channels_last)
    parameters = sum(parameter.numel() for parameter in objective.parameters())
    optimizer, rate, decay, _ = choose_pretraining(batch, 1000, parameters)
    alone, loop, waits, peaks = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        pixels, aspects = synthetic_cache(folder, max(2048, 4 * batch), size)
        data = TrainingData(pixels, aspects, np.arange(len(pixels)))
        for _ in range(repeats):
            alone.append(encoder_alone(objective, size, batch, device, precision, seconds / 2))
            steps = max(4, round(seconds / alone[-1]))
            plan = Plan(steps, batch, optimizer, rate, decay, 1, 0, precision)
            per_step, wait = whole_loop(objective, data, plan, device)
            loop.append(per_step)
            peaks.append(peak(device, precision, seconds / 6))
            waits.append(wait)
        views, reading = parts(objective, data, plan, device, 2)
    fractions = [a / b for a, b in zip(alone, loop, strict=True)]
    return {
        "encoder": name,
        "size": size,
        "batch": batch,
        "precision": precision,
        "optimizer": optimizer,
        "encoder_alone_s": alone,
        "loop_s": loop,
        "share": statistics.median(fractions),
        "share_min": min(fractions),
        "share_max": max(fractions),
        "waiting": max(waits),
        "images_per_second": batch / statistics.median(loop),
        "views_s": views,
        "reading_s": reading,
        "peak_gflops": statistics.median(peaks) / 1e9,
        "images_per_second_at_peak": statistics.median(peaks) / operations(objective, size, device),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", help="one network")
    parser.add_argument("--out", type=Path, help="where the results go as JSON")
    options = parser.parse_args()
    device, _ = choose_device(options.device)
    precision, _ = choose_precision(device)
    results = []
    print(
        f"{'network':<12} {'px':>4} {'batch':>5} {'images/s':>9} {'at peak':>8} {'encoder alone':>20} "
        f"{'views':>6} wait"
    )
    for name, size, batch in GPU_CASES if device.type == "cuda" else CPU_CASES:
        if options.only not in (None, name):
            continue
        row = measure(name, size, batch, device, precision, options.seconds, options.repeats)
        results.append(row)
        loop = statistics.median(row["loop_s"])
        fraction = f"{row['share']:.1%} ({row['share_min']:.0%} to {row['share_max']:.0%})"
        print(
            f"{name:<12} {size:>4} {batch:>5} {row['images_per_second']:>9.1f} "
            f"{row['images_per_second_at_peak']:>8.1f} {fraction:>20} "
            f"{row['views_s'] / loop:>6.1%} {row['waiting']:.2%}"
        )
        sys.stdout.flush()
        if options.out:
            options.out.write_text(json.dumps(environment() | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
