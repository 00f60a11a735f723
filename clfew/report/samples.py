"""samples.png: pictures of what a pretraining method does with a few images."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from clfew.data.randomness import ImageRandom
from clfew.data.splits import evenly_spaced
from clfew.data.to_device import to_device
from clfew.methods.base import Method, Pictures
from clfew.report.png import png_of
from clfew.runs.files import write_bytes
from clfew.training.batch import Batch, TrainingData

IMAGES = 6


@torch.no_grad()
def samples_of(
    method: Method, data: TrainingData, seed: int, device: torch.device, images: int = IMAGES
) -> Pictures:
    """Returns the method's pictures of a few images, evenly spaced over the data."""
    rows = evenly_spaced(data.indices, images)
    batch = Batch(
        to_device(data.pixels[rows], device),
        to_device(data.aspects[rows], device),
        ImageRandom(seed, 0, rows),
        progress=1.0,
    )
    return method.to(device).eval().pictures(batch)


def draw_pictures(pictures: Pictures) -> bytes:
    """Returns a PNG with a column for each title and a row for each image."""
    rows = len(pictures[0][1])
    figure = Figure(figsize=(1.3 * len(pictures), 1.3 * rows + 0.3), dpi=160, layout="constrained")
    axes = np.atleast_2d(figure.subplots(rows, len(pictures), squeeze=False))
    for column, (title, images) in enumerate(pictures):
        axes[0, column].set_title(title, fontsize=8)
        for row, image in enumerate(images):
            shown = image.float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()
            axes[row, column].imshow(shown, interpolation="nearest")
            axes[row, column].axis("off")
    return png_of(figure)


def write_samples(
    path: Path, method: Method, data: TrainingData, seed: int, device: torch.device
) -> None:
    """Writes samples.png. Raises UserError if the file cannot be written."""
    write_bytes(path, draw_pictures(samples_of(method, data, seed, device)))
