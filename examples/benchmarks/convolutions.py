"""Speed of convolution weights' gradients: oneDNN, which PyTorch calls, and clfew's matrix product.

    python examples/benchmarks/convolutions.py [--seconds 1] [--out FILE]

For the layers of torchvision's resnet18 and of resnet8-w32 at usual sizes, on a CPU in float32. Both
run in turn, and so does the forward pass for comparison; GFLOP/s are of the median time. clfew uses its
own from `FEWEST_CHANNELS` input channels on (`clfew/training/convolution.py`).
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from common import environment

from clfew.training.convolution import FEWEST_CHANNELS, weight_gradient

# Name, images, input channels, side, output channels, stride.
LAYERS = [
    ("resnet8-w32 stage 1, 32 px", 256, 32, 16, 32, 1),
    ("resnet8-w32 stage 2, 32 px", 256, 64, 8, 64, 1),
    ("resnet8-w32 stage 3, 32 px", 256, 128, 4, 128, 1),
    ("resnet18 layer1, 32 px", 256, 64, 8, 64, 1),
    ("resnet18 layer2, 32 px", 256, 128, 4, 128, 1),
    ("resnet18 layer3 first, 32 px", 256, 128, 4, 256, 2),
    ("resnet18 layer3, 32 px", 256, 256, 2, 256, 1),
    ("resnet18 layer4 first, 32 px", 256, 256, 2, 512, 2),
    ("resnet18 layer4, 32 px", 256, 512, 1, 512, 1),
    ("resnet18 layer2, 96 px", 64, 128, 12, 128, 1),
    ("resnet18 layer3, 96 px", 64, 256, 6, 256, 1),
    ("resnet18 layer4, 96 px", 64, 512, 3, 512, 1),
    ("resnet18 layer2, 224 px", 16, 128, 28, 128, 1),
    ("resnet18 layer3, 224 px", 16, 256, 14, 256, 1),
    ("resnet18 layer4, 224 px", 16, 512, 7, 512, 1),
]


def seconds_of(functions, budget):
    """Runs the functions in turn and returns the median seconds of each."""
    times = [[] for _ in functions]
    until = time.perf_counter() + budget
    while len(times[0]) < 4 or time.perf_counter() < until:
        for function, found in zip(functions, times, strict=True):
            started = time.perf_counter()
            function()
            found.append(time.perf_counter() - started)
    return [statistics.median(found[1:]) for found in times]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = []
    print(f"{'GFLOP/s':<30} {'forward':>8} {'oneDNN':>8} {'product':>8} {'ratio':>6}")
    for name, count, inputs, side, outputs, stride in LAYERS:
        last = torch.channels_last
        images = torch.randn(count, inputs, side, side).contiguous(memory_format=last)
        weight = torch.randn(outputs, inputs, 3, 3).contiguous(memory_format=last)
        gradient = torch.randn_like(F.conv2d(images, weight, None, stride, 1))

        def forward(images=images, weight=weight, stride=stride):
            return F.conv2d(images, weight, None, stride, 1)

        def onednn(images=images, weight=weight, gradient=gradient, stride=stride):
            return torch.ops.aten.convolution_backward(
                gradient,
                images,
                weight,
                None,
                (stride, stride),
                (1, 1),
                (1, 1),
                False,
                (0, 0),
                1,
                (False, True, False),
            )

        def product(images=images, gradient=gradient, stride=stride):
            return weight_gradient(images, gradient, (3, 3), (stride, stride), (1, 1))

        operations = 2 * 9 * gradient.numel() * inputs
        rates = [operations / s / 1e9 for s in seconds_of((forward, onednn, product), options.seconds)]
        taken = "" if inputs >= FEWEST_CHANNELS else "  (not used)"
        line = f"{name:<30} " + " ".join(f"{rate:>8.0f}" for rate in rates)
        print(f"{line} {rates[2] / rates[1]:>6.2f}{taken}", flush=True)
        results.append(dict(zip(("layer", "forward", "onednn", "product"), (name, *rates), strict=True)))
    if options.out:
        options.out.write_text(json.dumps(environment() | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
