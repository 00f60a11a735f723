"""What every test gets: a cache of its own, one thread, and small deterministic images."""

import signal
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest_plugins = ["commands"]

# Tests run beside each other and beside training jobs: more threads would only make them wait.
torch.set_num_threads(1)

# What a script's shell runs in the background ignores it, and so would the commands that are tested.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder for pixel stores, so that no test sees another's or the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CLFEW_CACHE", str(folder))
    return folder


def draw(label: int, number: int, width: int, height: int) -> Image.Image:
    """Image `number` of class `label`: a colour and a direction of stripes of its class, and noise."""
    random = np.random.default_rng([label, number])
    y, x = np.mgrid[:height, :width]
    angle = label * np.pi / 5
    stripes = np.sin(0.9 * (x * np.cos(angle) + y * np.sin(angle)) + random.uniform(0, 6))
    colour = np.random.default_rng(label).uniform(60, 200, 3)
    pixels = colour + 40 * stripes[..., None] + random.normal(0, 8, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture
def put() -> Callable[..., Path]:
    """put(path, label, width, height) writes an image and its folders; other names, other pixels."""

    def write(path: Path, label: int = 0, width: int = 16, height: int = 16) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(label, zlib.crc32(path.name.encode()), width, height).save(path)
        return path

    return write


@pytest.fixture
def image_folder(tmp_path: Path, put: Callable[..., Path]) -> Callable[..., Path]:
    """image_folder({"cat": 6, "dog": 4}) makes a folder with a subfolder of PNG files for each class."""

    def make(counts: dict[str, int], name: str = "images", side: int = 16) -> Path:
        folder = tmp_path / name
        for label, (class_name, count) in enumerate(counts.items()):
            for number in range(count):
                put(folder / class_name / f"{number:03d}.png", label, side, side)
        return folder

    return make


@pytest.fixture
def pixels() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """pixels(images, side, classes) makes a store's uint8 array and the label of each image."""

    def make(images: int, side: int = 16, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(images) % classes
        return np.stack([np.asarray(draw(c, i, side, side)) for i, c in enumerate(labels)]), labels

    return make
