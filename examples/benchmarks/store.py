"""The image cache: how fast it is built and found again, and what a million images cost.

    python examples/benchmarks/store.py DATA [--images 1000000] [--out FILE]

DATA holds `photos` (512×384 JPEG) and `cifar10`. Prints
1. images per second of building an image cache of `photos` (copied to four thousand) and of `cifar10`,
   beside Pillow's plain decoding (open, convert to RGB, resize), on one thread and on a thread a core;
2. the time from a source's name to the first batch, for cifar10's 60,000 images: once when the cache has
   to be built, and once when it exists;
3. resident memory and the time of a training step at 96 px with caches of 10,000 to a million images.
   The synthetic cache is a sparse file: zeros that take no disk space, but 28 GB of addresses.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np


def copied(photos, folder, copies):
    for copy in range(copies):
        for file in photos.rglob("*.jp*g"):
            to = folder / file.parent.name / f"{file.stem}-{copy}{file.suffix}"
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, to)
    return folder


def plain(files, side, threads):
    """Returns the images per second of decoding with Pillow alone."""
    from PIL import Image

    def one(file):
        return np.asarray(Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BICUBIC))

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(one, files):
            pass
    return len(files) / (time.perf_counter() - started)


def building(source_folder, side, repeats):
    from clfew.data.image_cache import open_image_cache
    from clfew.data.sources import open_source
    from clfew.data.workers import decoders

    source = open_source(str(source_folder))
    files = [source_folder / name for name in source.identities]
    rows = {"clfew": [], "plain, 1 thread": [], f"plain, {decoders()} threads": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            os.environ["CLFEW_CACHE"] = cache
            started = time.perf_counter()
            open_image_cache(source, side)
            rows["clfew"].append(len(source) / (time.perf_counter() - started))
        rows["plain, 1 thread"].append(plain(files, side, 1))
        rows[f"plain, {decoders()} threads"].append(plain(files, side, decoders()))
    return {name: statistics.median(values) for name, values in rows.items()}


def first_batch(folder, side):
    """Returns the seconds from a source's name to its first batch, without imports, and its images."""
    import torch

    from clfew.data.image_cache import open_image_cache, typical_side
    from clfew.data.sources import open_source
    from clfew.data.splits import test_indices
    from clfew.models.defaults import normalisation
    from clfew.training.batch import Batches, TrainingData
    from clfew.training.plan import Plan

    started = time.perf_counter()
    source = open_source(str(folder))
    typical_side(source)
    cache = open_image_cache(source, side)
    indices = np.setdiff1d(cache.good, test_indices(source, 0), assume_unique=True)
    normalisation(cache, indices)
    plan = Plan(10, 128, "sgd", 0.1, 0.0, 1, 0, "fp32")
    data = TrainingData(cache.pixels, cache.aspects, indices)
    with Batches(data, plan, torch.device("cpu"), 0) as batches:
        next(batches)
    return time.perf_counter() - started, len(source)


def training_step(count):
    """Prints the seconds of a step and the peak of resident memory. Runs in a separate process."""
    import torch

    from clfew.data.augment import Recipe
    from clfew.data.cache_arrays import create_arrays, map_arrays
    from clfew.methods.simclr import SimCLR
    from clfew.models.encoder import Encoder
    from clfew.training.batch import TrainingData
    from clfew.training.loop import train
    from clfew.training.plan import Plan

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pixels.safetensors"
        create_arrays(path, count, 96)
        pixels = map_arrays(path, count, 96, "r")[0]
        data = TrainingData(pixels, np.ones(count, np.float32), np.arange(count))
        objective = SimCLR(Encoder("resnet8-w32", 96, [0.5] * 3, [0.25] * 3), Recipe(0.3, blur=0.5))
        rows = []
        plan = Plan(40, 128, "muon", 0.01, 0.0, 1, 0, "fp32")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        train(objective, data, plan, torch.device("cpu"), rows.append)
        step = (rows[-1]["seconds"] - rows[0]["seconds"]) / (rows[-1]["step"] - rows[0]["step"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    waiting = statistics.mean(row["data_wait"] for row in rows[1:])
    print(
        json.dumps(
            {
                "images": count,
                "step_s": step,
                "waiting": waiting,
                "before_mb": before >> 10,
                "peak_mb": peak >> 10,
            }
        )
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--step", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        training_step(options.step)
        return
    from common import environment

    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        photos = copied(options.data / "photos", Path(scratch) / "photos", 40)
        for name, folder, side in (
            ("photos at 80 px", photos, 80),
            ("photos at 280 px", photos, 280),
            ("cifar10 test at 32 px", options.data / "cifar10" / "test", 32),
        ):
            results[name] = building(folder, side, options.repeats)
            line = ", ".join(f"{side} {rate:.0f}" for side, rate in results[name].items())
            print(f"{name}, images/s: {line}", flush=True)
        os.environ["CLFEW_CACHE"] = str(Path(scratch) / "cache")
        first, count = first_batch(options.data / "cifar10", 32)
        again, _ = first_batch(options.data / "cifar10", 32)
        results["first batch"] = {"images": count, "built": first, "found": again}
        print(
            f"{count} images: first batch after {first:.1f} s, the second time {again:.2f} s", flush=True
        )
    results["steps"] = []
    for count in (10_000, 100_000, options.images):
        done = subprocess.run(
            [sys.executable, __file__, str(options.data), "--step", str(count)],
            capture_output=True,
            text=True,
            check=True,
        )
        row = json.loads(done.stdout.splitlines()[-1])
        results["steps"].append(row)
        print(
            f"{count:>9,} images of 96 px: {row['step_s']:.3f} s a step, {row['waiting']:.2%} waiting, "
            f"{row['peak_mb']} MB at most ({row['before_mb']} MB before training)",
            flush=True,
        )
    if options.out:
        options.out.write_text(json.dumps(environment() | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
