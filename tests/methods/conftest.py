import io
import zipfile
from importlib import resources

import numpy as np
import pytest
import torch
from PIL import Image

from clfew.data.augment import Recipe
from clfew.data.randomness import ImageRandom
from clfew.methods.base import METHODS
from clfew.models.encoder import Encoder
from clfew.training.batch import Batch


def textured(count, side=24, classes=4, seed=0):
    """Returns coloured stripes of four directions at random phases, on a shaded ground: uint8 images and
    their classes. Classes differ in both texture and colour, as in photographs."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    y, x = np.mgrid[:side, :side] / side
    angle = labels * np.pi / classes + random.normal(0, 0.12, count)
    phase, pitch = random.uniform(0, 6.28, count), random.uniform(9, 14, count)
    wave = np.sin(
        pitch[:, None, None] * 2 * (x * np.cos(angle)[:, None, None] + y * np.sin(angle)[:, None, None])
        + phase[:, None, None]
    )
    ground = random.uniform(0.3, 0.7, (count, 1, 1, 3)) + 0.2 * (x * y)[None, :, :, None]
    tint = np.array([[0.4, 0.1, 0.1], [0.1, 0.35, 0.1], [0.1, 0.1, 0.4], [0.3, 0.3, 0.05]])[labels]
    images = (
        ground
        + wave[..., None] * tint[:, None, None, :]
        + random.normal(0, 0.04, (count, side, side, 3))
    )
    return (images.clip(0, 1) * 255).astype(np.uint8), labels


def tinted_clothes(each):
    """Returns `each` of the demo's images of every class, in colours that depend on place and brightness
    but not on the class: uint8 (N, 28, 28, 3), and the classes."""
    with (
        resources.files("clfew.commands.demo_data").joinpath("fashion-mnist-6k.zip").open("rb") as packed
    ):
        archive = zipfile.ZipFile(packed)
        names = sorted(n for n in archive.namelist() if n.startswith("train/") and n.endswith(".png"))
        classes = sorted({n.split("/")[1] for n in names})
        chosen = [
            (n, c)
            for c, k in enumerate(classes)
            for n in [n for n in names if n.split("/")[1] == k][:each]
        ]
        pictures = [Image.open(io.BytesIO(archive.read(n))).convert("L") for n, _ in chosen]
    light, labels = np.stack(pictures).astype(np.float32) / 255, np.array([c for _, c in chosen])
    order = np.random.default_rng(0).permutation(len(light))
    light, labels = light[order], labels[order]
    down = np.linspace(0, 1, 28)[None, :, None]
    colours = [
        light * 0.9 + 0.05,
        light * (1 - 0.5 * down) + 0.02,
        0.6 * light * down + 0.3 * (1 - light),
    ]
    return (np.stack(colours, axis=3).clip(0, 1) * 255).astype(np.uint8), labels


def method_of(name, size=24, encoder="resnet8-w16", recipe=None, **options):
    torch.manual_seed(0)
    kind = METHODS[name]
    network = Encoder(kind.encoder_name(encoder), size, [0.5] * 3, [0.25] * 3, input=kind.input)
    return kind(network, recipe or Recipe(crop_area=0.4, jitter=0.3, blur=0), **options)


def batch_of(images, seed=9, epoch=0, progress=0.0):
    rows = np.arange(len(images))
    random = ImageRandom(seed, epoch, rows)
    return Batch(torch.from_numpy(images), torch.ones(len(images)), random, progress=progress)


@pytest.fixture
def make_method():
    return method_of


@pytest.fixture
def make_batch():
    return batch_of


@pytest.fixture
def clothes():
    return tinted_clothes(60)


@pytest.fixture
def make_images():
    return textured
