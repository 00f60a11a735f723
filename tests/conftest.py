"""Fixtures of all tests: a separate cache for each test, one thread, and small deterministic images."""

import signal
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest_plugins = ["commands"]

# Tests run in parallel and beside training jobs, where more threads would only wait for each other.
torch.set_num_threads(1)

# Tests that a shell script runs in the background ignore SIGINT, and so would the tested commands.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new folder for image caches, so that no test uses another's or the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CLFEW_CACHE", str(folder))
    return folder


def draw(label: int, number: int, width: int, height: int) -> Image.Image:
    """Returns image `number` of class `label`: noise and stripes in the class's colour and direction."""
    random = np.random.default_rng([label, number])
    y, x = np.mgrid[:height, :width]
    angle = label * np.pi / 5
    stripes = np.sin(0.9 * (x * np.cos(angle) + y * np.sin(angle)) + random.uniform(0, 6))
    colour = np.random.default_rng(label).uniform(60, 200, 3)
    pixels = colour + 40 * stripes[..., None] + random.normal(0, 8, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture
def put() -> Callable[..., Path]:
    """put(path, label, width, height) writes an image and its folders; other names give other pixels."""

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
    """pixels(images, side, classes) returns the uint8 array of an image cache and the images' labels."""

    def make(images: int, side: int = 16, classes: int = 2) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(images) % classes
        return np.stack([np.asarray(draw(c, i, side, side)) for i, c in enumerate(labels)]), labels

    return make
