"""Finds convolutions that crash in their backward pass. Each runs in a separate process.

    python examples/benchmarks/convolution_crashes.py [--layers 800]

oneDNN, which computes PyTorch's convolutions on a CPU, writes outside its memory in the gradients of
some strided 1×1 convolutions. Whether that ends the process depends on what is stored there. So this
script has the C library check its memory, if it can (glibc's libc_malloc_debug). Layers are random and
of two kinds: "pointwise" (1×1 with a stride, 1 to 32 channels) and "any" (kernels, strides, padding,
groups and transposed convolutions). They have both precisions, batches of 1 to 256, sides of 4 to 56
pixels and 1 to 16 threads. Each runs once as PyTorch computes it and once inside `TrainingConvolutions`,
as in clfew's training.

Writes results/convolution_crashes-PROCESSOR.json after every 50 layers, with the signals that ended the
two processes of each layer (0 for none). When it is started again, it continues from that file.
"""

import argparse
import json
import os
import random
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from common import environment
from torch import nn

from clfew.training.convolution import TrainingConvolutions

RESULTS = Path(__file__).with_name("results")
CHECKER = "libc_malloc_debug.so.0"


def random_layer(number: int) -> dict[str, Any]:
    """Returns layer `number` of the list of random layers, which is the same on every machine."""
    draw = random.Random(number)
    layer: dict[str, Any] = {
        "kind": draw.choice(["pointwise", "any"]),
        "batch": draw.choice([1, 2, 3, 7, 16, 33, 64, 128, 256]),
        "side": draw.choice([4, 7, 8, 14, 15, 16, 24, 32, 56]),
        "threads": draw.randint(1, 16),
        "precision": draw.choice(["fp32", "bf16"]),
        "bias": draw.random() < 0.3,
    }
    if layer["kind"] == "pointwise":
        return layer | {
            "inputs": draw.randint(1, 32),
            "outputs": draw.choice([1, 3, 8, 16, 17, 32, 64]),
            "kernel": 1,
            "stride": draw.choice([2, 2, 2, 3, 4]),
            "padding": 0,
            "groups": 1,
            "transposed": False,
        }
    inputs, kernel = draw.randint(1, 64), draw.choice([1, 2, 3, 4, 5, 7])
    groups = draw.choice([1, 1, 1, 2, inputs])
    inputs += inputs % groups
    return layer | {
        "inputs": inputs,
        "outputs": groups * draw.choice([1, 2, 8, 16]),
        "kernel": kernel,
        "stride": draw.randint(1, 4),
        "padding": draw.randint(0, kernel // 2),
        "groups": groups,
        "transposed": draw.random() < 0.15,
    }


def run(layer: dict[str, Any], guarded: bool) -> None:
    """Runs two steps forward and backward. guarded: inside `TrainingConvolutions`."""
    torch.set_num_threads(layer["threads"])
    build = nn.ConvTranspose2d if layer["transposed"] else nn.Conv2d
    module = build(
        layer["inputs"],
        layer["outputs"],
        layer["kernel"],
        layer["stride"],
        layer["padding"],
        groups=layer["groups"],
        bias=layer["bias"],
    ).to(memory_format=torch.channels_last)
    images = torch.randn(layer["batch"], layer["inputs"], layer["side"], layer["side"])
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    for _ in range(2):
        bf16 = torch.autocast("cpu", torch.bfloat16, enabled=layer["precision"] == "bf16")
        with bf16, TrainingConvolutions() if guarded else nullcontext():
            output = module(images)
        output.backward(torch.ones_like(output))
        module.zero_grad()
        images.grad = None


def signal_of(layer: dict[str, Any], guarded: bool) -> int:
    """Runs the layer in a child process and returns the signal that ended it, 0 for none."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            run(layer, guarded)
        except RuntimeError:  # The kernel is larger than the images.
            os._exit(0)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def summary(signals: list[list[int]]) -> dict[str, Any]:
    """Counts the layers that crashed, by kind, precision and number of input channels."""
    tried: Counter[str] = Counter()
    crashed: Counter[str] = Counter()
    for number, (plain, _) in enumerate(signals):
        row = random_layer(number)
        inputs = row["inputs"] // row["groups"]
        few = "1-7" if inputs < 8 else "8-15" if inputs < 16 else "16 or more"
        strided_1x1 = row["kernel"] == 1 and row["stride"] > 1 and row["groups"] == 1
        strided_1x1 &= row["padding"] == 0 and not row["transposed"]
        key = f"{'strided 1x1' if strided_1x1 else 'other'}, {row['precision']}, {few} inputs"
        tried[key] += 1
        crashed[key] += bool(plain)
    return {
        "layers": len(signals),
        "crashed": sum(bool(plain) for plain, _ in signals),
        "crashed_guarded": sum(bool(guarded) for _, guarded in signals),
        "by_kind": {key: f"{crashed[key]} of {tried[key]}" for key in sorted(tried)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=800)
    layers = parser.parse_args().layers
    if sys.platform == "linux" and CHECKER not in os.environ.get("LD_PRELOAD", ""):
        checked = os.environ | {"LD_PRELOAD": CHECKER, "MALLOC_CHECK_": "3"}
        os.execve(sys.executable, [sys.executable, *sys.argv], checked)
    machine = environment()
    kind = "avx512" if "avx512f" in machine["processor"] else "avx2"
    path = RESULTS / f"convolution_crashes-{kind}.json"
    signals = json.loads(path.read_text())["signals"] if path.exists() else []
    for number in range(len(signals), layers):
        layer = random_layer(number)
        signals.append([signal_of(layer, False), signal_of(layer, True)])
        if len(signals) % 50 == 0 or len(signals) == layers:
            figures = summary(signals)
            path.write_text(json.dumps(machine | figures | {"signals": signals}) + "\n")
            print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
