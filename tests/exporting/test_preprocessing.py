"""The part of an exported file before the network: pixel for pixel what Pillow and clfew do.

Each of these was another tool's complaint: a resize without antialiasing, one of another library, one
that rounds elsewhere, sides that are fixed.
"""

import functools

import numpy as np
import pytest
import torch
from PIL import Image

from clfew.data.augment import evaluation_view
from clfew.data.decode import to_square

pytest.importorskip("onnxruntime", reason="needs the extra clfew[onnx]")

SIDE, SIZE = 40, 32
SHAPES = [
    (8, 8),
    (5000, 10),
    (10, 5000),
    (1, 1),
    (1, 300),
    (300, 1),
    (40, 40),  # Nothing to resize.
    (40, 90),
    (31, 20),
    (20, 105),  # The height shrinks and the width grows.
    (119, 120),  # The last without blocks, and the first with them.
    (239, 240),
    (242, 361),  # Blocks that are smaller at the edges.
    (1600, 1201),
    (53, 40),  # About the widest and the tallest that are not cropped.
    (54, 40),
    (40, 54),
]


@functools.cache
def session(side, size):
    import onnx.inliner
    import onnxruntime

    from clfew.exporting.preprocessing import preprocessing

    model = onnx.inliner.inline_local_functions(preprocessing(side, size))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def both(pixels_NxHxWx3, side=SIDE, size=SIZE):
    """The views of the ONNX graph and of clfew."""
    squares = [to_square(Image.fromarray(each), side) for each in pixels_NxHxWx3]
    pixels = torch.from_numpy(np.stack([pixels for pixels, _ in squares]))
    aspects = torch.tensor([aspect for _, aspect in squares], dtype=torch.float32)
    ours = evaluation_view(pixels, aspects, size).numpy()
    (found,) = session(side, size).run(None, {"images": pixels_NxHxWx3})
    return found, ours


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_what_pillow_and_the_evaluation_view_do(shape):
    random = np.random.default_rng(shape)
    width, height = shape
    # Noise, and black and white, on which rounding between rows and columns and clipping show.
    noise = random.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    noise[1] = np.where(noise[1] > 127, 255, 0)
    found, ours = both(noise)
    assert found.shape == (2, 3, SIZE, SIZE) and found.dtype == np.float32
    np.testing.assert_allclose(found, ours, rtol=0, atol=3e-5)  # A grey level is 4e-3.


@pytest.mark.parametrize("seed", range(3))
def test_images_of_any_sides_too(seed):
    random = np.random.default_rng(seed)
    for _ in range(30):
        height, width = np.exp(random.uniform(0, np.log(900), 2)).astype(int)
        noise = random.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        found, ours = both(noise)
        np.testing.assert_allclose(found, ours, rtol=0, atol=3e-5, err_msg=f"{width}×{height}")


@pytest.mark.slow
@pytest.mark.parametrize("sides", [(8, 8), (13, 13), (36, 32), (280, 224)])
def test_for_other_sizes_of_the_network_too(sides):
    random = np.random.default_rng(0)
    for width, height in [(8, 8), (5000, 10), (640, 480), (300, 431), (2000, 1500)]:
        noise = random.integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        found, ours = both(noise, *sides)
        np.testing.assert_allclose(found, ours, rtol=0, atol=3e-5, err_msg=f"{width}×{height}")


def test_a_resize_without_antialiasing_would_be_noticed():
    noise = np.random.default_rng(0).integers(0, 256, (1, 160, 160, 3), dtype=np.uint8)
    found, ours = both(noise)
    coarse = torch.nn.functional.interpolate(
        torch.from_numpy(noise).permute(0, 3, 1, 2) / 255, (SIZE, SIZE), mode="bicubic"
    ).numpy()
    assert np.abs(coarse - ours).max() > 0.3 > 1e-4 > np.abs(found - ours).max()
