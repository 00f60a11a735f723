"""Trains SimCLR with other tools and times their steps. Runs in a separate Python environment.

    python peers.py NAME --images FOLDER --encoder E --size S --batch B --seconds T

NAME is one of
    lightly-train   `lightly_train.pretrain(method="simclr")`, as in its documentation; lightly
    the PyTorch example at https://docs.lightly.ai/self-supervised-learning/examples/simclr.html; plain
    a DataLoader with torchvision's transforms and two workers.

Prints one line of JSON: the number of timed steps, their seconds, and images per second. The first three
steps are left out. The encoders are clfew's (its folder must be on PYTHONPATH; `clfew.models.encoder`
needs torch alone), so that all tools train the same network. "stock-resnet18" is torchvision's,
unchanged, for any image size. `throughput.py` and `time_to_quality.py` start this script.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
import torchvision
from torch import nn

WARM_UP_STEPS = 3


def build(name, size):
    """Returns the network without classifier and pooling, its pooling, and the number of features."""
    if name == "stock-resnet18":
        layers = list(torchvision.models.resnet18().children())[:-1]
        return nn.Sequential(*layers[:-1]), layers[-1], 512
    from clfew.models.encoder import Encoder

    encoder = Encoder(name, size, [0.0] * 3, [1.0] * 3)
    return encoder.backbone[:-2], encoder.backbone[-2], encoder.dim


class StepTimer:
    """Counts steps from the fourth on. When the time is over, prints the result and ends the process."""

    def __init__(self, batch, seconds):
        self.batch, self.seconds, self.steps, self.started = batch, seconds, 0, None

    def step(self):
        """Must be called at the start of every step."""
        self.steps += 1
        now = time.perf_counter()
        if self.steps == WARM_UP_STEPS + 1:
            self.started = now
        timed = self.steps - 1 - WARM_UP_STEPS
        if timed >= 2 and now - self.started >= self.seconds:
            elapsed = now - self.started
            rate = timed * self.batch / elapsed
            print("\n" + json.dumps({"steps": timed, "seconds": elapsed, "images_per_second": rate}))
            sys.stdout.flush()
            # An orderly exit would wait for the loader's workers.
            os.killpg(os.getpgrp(), signal.SIGKILL)


def lightly_train_side(options, timer):
    import lightly_train
    from lightly_train._methods.simclr.simclr import SimCLR

    if timer is not None:
        original = SimCLR.training_step_impl

        def timed(self, batch, batch_index):
            timer.step()
            return original(self, batch, batch_index)

        SimCLR.training_step_impl = timed
    transform = {"image_size": (options.size, options.size)}
    if options.size < 64:
        transform["gaussian_blur"] = None  # No tool blurs images this small in this benchmark.
    if options.encoder == "stock-resnet18":
        model = "torchvision/resnet18"
    else:
        model = _Wrapped(*build(options.encoder, options.size))
    out = Path(tempfile.mkdtemp(prefix="lightly-train-"))
    limit = {} if options.steps is None else {"trainer_args": {"max_steps": options.steps}}
    started = time.perf_counter()
    try:
        lightly_train.pretrain(
            out=out / "run",
            data=options.images,
            model=model,
            method="simclr",
            epochs=100,
            batch_size=options.batch,
            precision=options.precision,
            seed=options.seed,
            transform_args=transform,
            **limit,
        )
        if options.out:
            shutil.copy(out / "run" / "exported_models" / "exported_last.pt", options.out)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    print(json.dumps({"steps": options.steps, "seconds": time.perf_counter() - started}))


class _Wrapped(nn.Module):
    """The interface that a custom model must have according to lightly-train's documentation."""

    def __init__(self, body, pool, features):
        super().__init__()
        self.body, self.pool, self._features = body, pool, features

    def feature_dim(self):
        return self._features

    def get_model(self):
        return self.body

    def forward_features(self, x):
        return {"features": self.body(x)}

    def forward_pool(self, x):
        return {"pooled_features": self.pool(x["features"])}


def lightly_side(options, timer):
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    body, pool, features = build(options.encoder, options.size)
    model = nn.Sequential(body, pool, nn.Flatten(), SimCLRProjectionHead(features, features, 128))
    blur = 0.5 if options.size >= 64 else 0.0
    transform = SimCLRTransform(input_size=options.size, gaussian_blur=blur)
    dataset = torchvision.datasets.ImageFolder(options.images, transform)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=options.batch, shuffle=True, drop_last=True, num_workers=8
    )
    criterion = NTXentLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    while True:
        for (first, second), _ in loader:
            timer.step()
            loss = criterion(model(first), model(second))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


def plain_side(options, timer):
    from torchvision import transforms

    jitter = transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)
    steps = [
        transforms.RandomResizedCrop(options.size, scale=(0.08, 1.0)),
        transforms.RandomHorizontalFlip(),
        transforms.RandomApply([jitter], p=0.8),
        transforms.RandomGrayscale(p=0.2),
    ]
    if options.size >= 64:
        kernel = options.size // 10 // 2 * 2 + 1
        steps.append(transforms.RandomApply([transforms.GaussianBlur(kernel, (0.1, 2.0))], p=0.5))
    steps += [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.25,) * 3)]
    view = transforms.Compose(steps)
    dataset = torchvision.datasets.ImageFolder(options.images, lambda image: (view(image), view(image)))
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=options.batch,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
    )
    body, pool, features = build(options.encoder, options.size)
    head = [nn.Linear(features, features), nn.ReLU(), nn.Linear(features, 128)]
    model = nn.Sequential(body, pool, nn.Flatten(), *head)
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9, weight_decay=5e-4)
    partner = torch.arange(2 * options.batch).roll(options.batch)
    while True:
        for (first, second), _ in loader:
            timer.step()
            z = nn.functional.normalize(model(torch.cat([first, second])), dim=1)
            similarity = (z @ z.T / 0.2).fill_diagonal_(-torch.inf)
            loss = nn.functional.cross_entropy(similarity, partner)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=["lightly-train", "lightly", "plain"])
    parser.add_argument("--images", required=True)
    parser.add_argument("--encoder", default="stock-resnet18")
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", default="auto", help="of lightly-train")
    parser.add_argument("--seconds", type=float, help="time steps for so long")
    parser.add_argument("--steps", type=int, help="lightly-train: train so many steps instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="where the trained weights go")
    options = parser.parse_args()
    timer = StepTimer(options.batch, options.seconds) if options.seconds else None
    sides = {"lightly-train": lightly_train_side, "lightly": lightly_side, "plain": plain_side}
    sides[options.name](options, timer)


if __name__ == "__main__":
    main()
