"""Compares accuracy with clfew's batched views to accuracy with torchvision's transforms.

    python examples/benchmarks/augmentation.py DATA [--images 5000] [--epochs 10] [--seeds 3]

DATA holds `cifar10/train`. The same network is trained from the same weights on the same images in the
same order for the same steps, once with `clfew.data.augment.random_views` and once with torchvision's
RandomResizedCrop, RandomHorizontalFlip, ColorJitter (four operations in random order, each clipped, hue
in HSV) and RandomGrayscale of the same strengths, one PIL image at a time. Both are measured by kNN
accuracy (20 neighbours) on 2,000 other training images. Also prints how much clfew's colours differ from
torchvision's on real images for the same random factors.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from common import environment
from torchvision import transforms
from torchvision.transforms.v2 import functional as tv

from clfew.data.augment import Recipe, colour_matrix
from clfew.data.image_cache import open_image_cache
from clfew.data.sources import open_source
from clfew.methods import simclr
from clfew.models.encoder import Encoder
from clfew.models.features import apply_to_cache
from clfew.training.batch import TrainingData
from clfew.training.loop import train
from clfew.training.optim import choose_pretraining
from clfew.training.plan import Plan

SIZE, BATCH = 24, 128
RECIPE = Recipe(0.3, jitter=0.5, grey=0.2, blur=0.0)


def torchvision_views(images, aspects, size, recipe, random, views=2):
    """Makes views of the same recipe with torchvision's transforms, seeded by epoch and image."""
    strength = recipe.jitter
    jitter = transforms.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength)
    view = transforms.Compose(
        [
            transforms.ToPILImage(),
            transforms.RandomResizedCrop(size, scale=(recipe.crop_area, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([jitter], p=0.8),
            transforms.RandomGrayscale(recipe.grey),
            transforms.ToTensor(),
        ]
    )
    with torch.random.fork_rng():
        torch.manual_seed(hash((random.seed, random.epoch, int(random.indices[0]))) % 2**31)
        made = [view(image.numpy()) for _ in range(views) for image in images]
    return torch.stack(made).contiguous(memory_format=torch.channels_last)


def accuracy(encoder, cache, labels, train_rows, test_rows):
    features = [
        torch.nn.functional.normalize(
            torch.from_numpy(
                apply_to_cache(encoder, SIZE, cache.pixels, cache.aspects, rows, torch.device("cpu"))
            ),
            dim=1,
        )
        for rows in (train_rows, test_rows)
    ]
    similarity, index = (features[1] @ features[0].T).topk(20, dim=1)
    votes = torch.zeros(len(test_rows), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[train_rows][index], (similarity / 0.07).exp())
    return float((votes.argmax(1) == labels[test_rows]).float().mean())


def colour_error(images, draws=20):
    """Returns the mean absolute difference between both sides' pixel values in [0, 1] on real images.

    It is measured without and with random hue, over `draws` sets of random factors. "the jitter itself"
    is how much the jitter changes the images, for scale.
    """
    generator = torch.Generator().manual_seed(0)
    errors, moved = {"without hue": [], "with hue": []}, []
    for _ in range(draws):
        u = torch.rand(len(images), 6, generator=generator)
        u[:, 4], u[:, 5] = 0.0, 1.0  # Every image is jittered, none is made grey.
        for name in errors:
            if name == "without hue":
                u = u.clone()
                hue = u[:, 3].clone()
                u[:, 3] = 0.5
            else:
                u[:, 3] = hue
            matrix = colour_matrix(u, images.mean(dim=(2, 3)), RECIPE.jitter, 0.0)
            ours = torch.einsum("nij,njhw->nihw", matrix[:, :, :3], images)
            ours = (ours + matrix[:, :, 3, None, None]).clamp(0, 1)
            low, high = 1 - 0.8 * RECIPE.jitter, 1 + 0.8 * RECIPE.jitter
            for i in range(len(images)):
                brightness, contrast, saturation = (low + (high - low) * u[i, :3]).tolist()
                angle = 0.2 * RECIPE.jitter * (2 * float(u[i, 3]) - 1)
                order = [
                    lambda x, f=brightness: tv.adjust_brightness(x, f),
                    lambda x, f=contrast: tv.adjust_contrast(x, f),
                    lambda x, f=saturation: tv.adjust_saturation(x, f),
                    lambda x, f=angle: tv.adjust_hue(x, f),
                ]
                theirs = images[i]
                for k in torch.randperm(4, generator=generator).tolist():
                    theirs = order[k](theirs)
                errors[name].append(float((ours[i] - theirs).abs().mean()))
                if name == "with hue":
                    moved.append(float((theirs - images[i]).abs().mean()))
    means = {name: statistics.mean(values) for name, values in errors.items()}
    return means | {"the jitter itself": statistics.mean(moved)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    source = open_source(str(options.data / "cifar10" / "train"))
    cache = open_image_cache(source, 32)
    labels = torch.from_numpy(source.labels)
    order = np.random.default_rng(0).permutation(cache.good)
    chosen, held = np.sort(order[: options.images]), np.sort(order[options.images :][:2000])
    real = torch.from_numpy(cache.pixels[held[:200]]).permute(0, 3, 1, 2).float() / 255
    colours = colour_error(real)
    print("mean absolute difference of colours on 200 images:", colours, flush=True)
    mean = (cache.pixels[chosen].reshape(-1, 3) / 255).mean(0).tolist()
    std = (cache.pixels[chosen].reshape(-1, 3) / 255).std(0).tolist()
    ours = simclr.random_views
    found = {"clfew": [], "torchvision": []}
    for seed in range(options.seeds):
        for side, views in (("clfew", ours), ("torchvision", torchvision_views)):
            simclr.random_views = views
            torch.manual_seed(seed)
            encoder = Encoder("resnet8-w32", SIZE, mean, std)
            objective = simclr.SimCLR(encoder, RECIPE)
            steps = options.epochs * (options.images // BATCH)
            size = sum(parameter.numel() for parameter in objective.parameters())
            name, rate, decay, _ = choose_pretraining(BATCH, steps, size)
            plan = Plan(steps, BATCH, name, rate, decay, steps // 10, seed, "fp32")
            started = time.perf_counter()
            train(
                objective, TrainingData(cache.pixels, cache.aspects, chosen), plan, torch.device("cpu")
            )
            seconds = time.perf_counter() - started
            found[side].append(accuracy(encoder, cache, labels, chosen, held))
            print(f"seed {seed} {side:<12} kNN {found[side][-1]:.4f}  {seconds:.0f} s", flush=True)
    differences = [a - b for a, b in zip(found["clfew"], found["torchvision"], strict=True)]
    gap = statistics.mean(differences)
    line = f"clfew {statistics.mean(found['clfew']):.4f}, "
    line += f"torchvision {statistics.mean(found['torchvision']):.4f}, difference {gap:+.4f}"
    if len(differences) > 1:
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        line += f" (standard error {error:.4f})"
    print(line)
    if options.out:
        results = {"knn": found, "colours": colours, "difference": gap}
        options.out.write_text(json.dumps(environment() | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
