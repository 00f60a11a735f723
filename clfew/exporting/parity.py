"""Whether an ONNX model answers as the classifier that it was made from.

Shape suffixes: N images, H and W their sides, C classes.
"""

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from clfew.data.decode import BadImage, decode, load_square, to_square
from clfew.data.pixel_scale import PixelScale
from clfew.data.source import Source
from clfew.models.classifier import Classifier
from clfew.models.features import apply, batch_size
from clfew.models.metadata import ArtifactMetadata

IMAGES = 200
BATCHES = {3: 60, 8: 80}
"""How many images are tried at each batch size, besides all of them alone."""

MOST_DIFFERENT = 1e-3
"""The largest difference of two probabilities of the same pixels."""

MARGIN = 0.01
"""Where the two likeliest classes are farther apart than this, the same one must be first."""

MOST_FROM_FILES = 0.005
"""The fraction of files whose class may be another one, read as `predict` reads them: JPEG files may be
decoded at a smaller scale there. Of few files one may be."""

MOST_FILES = 1000
"""So many files are tried where 200 show too many of these."""

MOST_BYTES = 2**30
"""The files that are tried take no more than this."""

_SIDES = (8, 640)
"""Images of a batch must have the same sides: these are drawn between these two."""

Run = Callable[[np.ndarray], np.ndarray]
"""From uint8 images (N, H, W, 3) to probabilities (N, C)."""

File = tuple[bytes, PixelScale | None]
"""The bytes of an image file, and the scale of its pixels (see `clfew.data.decode.decode`)."""


@dataclass(frozen=True)
class Parity:
    """How an ONNX model compares with its classifier.

    images: number of images tried. of: where they come from, in words. sizes: how many different sizes.
    difference: the largest one of two probabilities of the same pixels. same_class: fraction of the
    images, among those with a margin, whose class is the same. files: number of files that are read as
    `predict` reads them, too. different_files: how many of them have another class.
    """

    images: int
    of: str
    sizes: int
    batches: tuple[int, ...]
    difference: float
    same_class: float
    files: int
    different_files: int

    @property
    def from_files(self) -> float:
        """The fraction of the files whose class is the same."""
        return 1 - self.different_files / self.files

    @property
    def problem(self) -> str:
        """What is not as promised, "" if all is."""
        if not self.difference <= MOST_DIFFERENT:  # Not a number, too.
            return f"probabilities of the same pixels differ by up to {self.difference:.2g}"
        if self.same_class < 1:
            return f"{100 * (1 - self.same_class):.1f} % of images are put in another class"
        if self.different_files > max(1, MOST_FROM_FILES * self.files):
            return (
                f"of {self.files:,} files as clfew predict reads them, which decodes large JPEG files "
                f"at a smaller scale, {self.different_files:,} are put in another class"
            )
        return ""

    def as_row(self) -> dict[str, Any]:
        return asdict(self) | {"from_files": self.from_files}


def files_of(source: Source, count: int, skip: int = 0) -> list[File]:
    """Returns at most `count` files of a source that can be read, drawn at random without the first
    `skip`, and no more than MOST_BYTES in all."""
    found: list[File] = []
    size = passed = 0
    for index in np.random.default_rng(0).permutation(len(source)).tolist():
        if len(found) == count or size > MOST_BYTES:
            break
        with contextlib.suppress(BadImage):
            content = source.content(index)
            load_square(content, 8, source.scale)
            passed += 1
            if passed > skip:
                found.append((content, source.scale))
                size += len(content)
    return found


def generated(count: int, seed: int = 0) -> list[File]:
    """Returns files of stripes and noise, in colours and grey, of sides from 8 to 1,000 pixels: every
    second one a JPEG file."""
    random = np.random.default_rng(seed)
    found: list[File] = []
    for number in range(count):
        width, height = np.exp(random.uniform(np.log(8), np.log(1000), 2)).astype(int).tolist()
        y, x = np.mgrid[:height, :width].astype(np.float32)
        waves = random.normal(0, 1 / np.array([[30.0], [8.0], [2.0]]), (3, 2))
        stripes = sum(np.sin(a * x + b * y)[..., None] * random.uniform(-60, 60, 3) for a, b in waves)
        noise = random.normal(0, random.uniform(0, 30), (height, width, 3))
        pixels = (random.uniform(60, 200, 3) + stripes + noise).clip(0, 255).astype(np.uint8)
        image, file = Image.fromarray(pixels), io.BytesIO()
        image = image.convert("L") if number % 5 == 4 else image
        image.save(file, "JPEG" if number % 2 else "PNG")
        found.append((file.getvalue(), None))
    return found


def parity_of(
    run: Run,
    classifier: Classifier,
    metadata: ArtifactMetadata,
    files: list[File],
    of: str,
    real: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Parity:
    """Compares an ONNX model, run by `run`, with its classifier, in single precision on the CPU.

    files: that can be read. of: where they come from, in words. real: how many of them, the first ones,
    are a user's; these alone are also read as `predict` reads them, or all where there are none.
    """
    side = metadata.side
    total = len(files) + sum(BATCHES.values())
    sizes, ours, theirs, from_files = set(), [], [], []
    for number, (content, scale) in enumerate(files):
        progress(number, total)
        image = decode(content, None, scale)
        from_files.append(load_square(content, side, scale))
        sizes.add(image.size)
        ours.append(to_square(image, side))
        theirs.append(run(np.asarray(image)[None])[0])
    same_pixels = [(_probabilities(classifier, metadata, ours), np.stack(theirs))]
    of_files = _probabilities(classifier, metadata, from_files[: real or None])
    is_other = of_files.argmax(1) != same_pixels[0][1][: len(of_files)].argmax(1)
    done = len(files)
    for batch_NxHxWx3 in _batches(files):
        progress(done, total)
        done += len(batch_NxHxWx3)
        sizes.add(batch_NxHxWx3.shape[2:0:-1])
        squares = [to_square(Image.fromarray(each), side) for each in batch_NxHxWx3]
        same_pixels.append((_probabilities(classifier, metadata, squares), run(batch_NxHxWx3)))
    progress(total, total)
    ours_NxC, theirs_NxC = (np.concatenate(each) for each in zip(*same_pixels, strict=True))
    top_Nx2 = np.sort(ours_NxC, axis=1)[:, -2:]
    is_clear = top_Nx2[:, 1] - top_Nx2[:, 0] > MARGIN
    is_same = ours_NxC.argmax(1) == theirs_NxC.argmax(1)
    return Parity(
        images=len(files),
        of=of,
        sizes=len(sizes),
        batches=(1, *BATCHES),
        difference=float(np.abs(ours_NxC - theirs_NxC).max()),
        same_class=float(is_same[is_clear].mean()) if is_clear.any() else 1.0,
        files=len(is_other),
        different_files=int(is_other.sum()),
    )


def with_more_files(
    parity: Parity, run: Run, classifier: Classifier, metadata: ArtifactMetadata, files: list[File]
) -> Parity:
    """Returns the comparison with more files of the user's, read as `predict` reads them."""
    theirs = [
        run(np.asarray(decode(content, None, scale))[None])[0].argmax() for content, scale in files
    ]
    squares = [load_square(content, metadata.side, scale) for content, scale in files]
    is_other = _probabilities(classifier, metadata, squares).argmax(1) != np.array(theirs)
    return replace(
        parity,
        files=parity.files + len(files),
        different_files=parity.different_files + int(is_other.sum()),
    )


def _batches(files: list[File]) -> Iterator[np.ndarray]:
    """Yields batches of images, uint8 (N, H, W, 3), each resized to sides of its own."""
    random, (low, high) = np.random.default_rng(0), np.log(_SIDES)
    for size, count in BATCHES.items():
        for first in range(0, count, size):
            sides = np.exp(random.uniform(low, high, 2)).astype(int).tolist()
            some = [files[number % len(files)] for number in range(first, first + size)]
            images = [decode(content, None, scale) for content, scale in some]
            yield np.stack([np.asarray(i.resize(sides, Image.Resampling.BILINEAR)) for i in images])


def _probabilities(
    classifier: Classifier, metadata: ArtifactMetadata, squares: list[tuple[np.ndarray, float]]
) -> np.ndarray:
    """Returns what clfew says of cached images: float32 (N, C)."""
    device, parts = torch.device("cpu"), []
    classifier.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    step = batch_size(metadata.size, device)
    for start in range(0, len(squares), step):
        some = squares[start : start + step]
        pixels = np.stack([pixels for pixels, _ in some])
        aspects = np.array([aspect for _, aspect in some], np.float32)
        logits = apply(classifier, metadata.size, pixels, aspects, device)
        parts.append(torch.softmax(torch.from_numpy(logits), dim=1).numpy())
    return np.concatenate(parts)
