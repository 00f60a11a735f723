"""Every operation against torchvision with the same parameters; views are in test_views.py."""

import itertools
import math

import numpy as np
import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from clfew.data.augment import (
    blur_matrix,
    brightness_map,
    colour_matrix,
    contrast_map,
    crop_boxes,
    hue_map,
    resample,
    resampling_matrix,
    saturation_map,
    solarise,
    square_boxes,
)


def smooth_images(count, side, low=0.0, high=1.0, seed=0):
    """Float images (N, 3, S, S) with values from `low` to `high`: colours that change gradually."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear", align_corners=True)
    return low + (high - low) * fine


def as_cached(images):
    """Float images (N, 3, S, S) as an image cache keeps them, and the same rounded values as floats."""
    cached = (images * 255).round().to(torch.uint8)
    return cached.permute(0, 2, 3, 1).contiguous(), cached.float() / 255


def as_images(pixels_Nx3xP, size):
    """`resample`'s pixels as (N, 3, size, size)."""
    return pixels_Nx3xP.view(-1, 3, size, size)


def apply_map(matrix_Nx3x4, images):
    return (
        torch.einsum("nij,njhw->nihw", matrix_Nx3x4[:, :, :3], images)
        + matrix_Nx3x4[:, :, 3, None, None]
    )


def noise(count, side):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("size", [8, 20, 33])
@pytest.mark.parametrize(
    "box", [(0, 0, 24, 24), (3, 5, 10, 7), (14, 0, 10, 24), (23, 23, 1, 1), (1, 2, 20, 4)]
)
def test_crop_and_resize_equal_resized_crop_for_whole_pixels(box, size):
    cached, images = as_cached(noise(2, 24))
    x, y, width, height = (torch.tensor([float(v)]).repeat(2) for v in box)
    rows, columns = resampling_matrix(y, height, 24, size), resampling_matrix(x, width, 24, size)
    result = as_images(resample(cached, rows, columns), size)
    left, top, w, h = box
    expected = tv.resized_crop(
        images, top, left, h, w, [size, size], InterpolationMode.BILINEAR, antialias=True
    )
    # Noise, where every weight shows. A shift of a hundredth of a pixel would be off by 1e-3.
    assert (result - expected).abs().max() < 2e-5


def test_a_crop_between_pixels_moves_smoothly():
    cached, _ = as_cached(noise(1, 24))
    length = torch.tensor([10.0])

    def crop(start):
        return resample(
            cached,
            resampling_matrix(torch.tensor([start]), length, 24, 10),
            resampling_matrix(torch.tensor([start]), length, 24, 10),
        )

    half = crop(3.5)
    whole = [as_images(crop(start), 10) for start in (3.0, 4.0)]
    inner = as_images(half, 10)[:, :, 1:-1, 1:-1]
    assert not torch.allclose(inner, whole[0][:, :, 1:-1, 1:-1], atol=0.05)
    assert (crop(3.001) - crop(3.0)).abs().max() < 0.01


def test_each_row_of_a_resampling_matrix_is_an_average_of_pixels_in_the_crop():
    start, length = torch.tensor([0.0, 2.3, 15.9, 31.2]), torch.tensor([32.0, 5.5, 16.1, 0.4])
    for size in (4, 32, 50):
        matrix = resampling_matrix(start, length, 32, size)
        assert matrix.shape == (4, size, 32) and (matrix >= 0).all()
        torch.testing.assert_close(matrix.sum(2), torch.ones(4, size))
        assert matrix[1, :, :2].sum() == 0 and matrix[1, :, 8:].sum() == 0


def test_resample_keeps_rows_and_columns_apart_and_repeats_the_views():
    cached, images = as_cached(noise(2, 6))
    rows = torch.eye(6).flip(0).expand(4, 6, 6).clone()
    rows[2:] = torch.eye(6)
    result = as_images(resample(cached, rows, torch.eye(6).expand(4, 6, 6), views=2), 6)
    torch.testing.assert_close(result[:2], images.flip(2))
    torch.testing.assert_close(result[2:], images)


def test_reversing_the_rows_of_the_column_matrix_is_a_horizontal_flip():
    cached, images = as_cached(noise(2, 12))
    full = resampling_matrix(torch.zeros(2), torch.full((2,), 12.0), 12, 12)
    result = as_images(resample(cached, full, full.flip(1)), 12)
    torch.testing.assert_close(result, tv.horizontal_flip(images))


@pytest.mark.parametrize("factor", [0.4, 1.0, 1.7])
def test_brightness_contrast_and_saturation_equal_torchvision_where_nothing_is_clipped(factor):
    images = smooth_images(3, 16, low=0.3, high=0.55)
    factors, means = torch.full((3,), factor), images.mean(dim=(2, 3))
    for matrix, operation in (
        (brightness_map(factors), tv.adjust_brightness),
        (contrast_map(factors, means), tv.adjust_contrast),
        (saturation_map(factors), tv.adjust_saturation),
    ):
        expected = operation(images, factor)
        assert expected.min() > 0 and expected.max() < 1
        # torchvision's luma has four digits, 0.2989 and so on.
        assert (apply_map(matrix, images) - expected).abs().max() < 5e-4, operation.__name__


def test_saturation_zero_is_torchvisions_greyscale():
    images = noise(2, 16)
    expected = tv.rgb_to_grayscale(images, num_output_channels=3)
    assert (apply_map(saturation_map(torch.zeros(2)), images) - expected).abs().max() < 5e-4


@pytest.mark.parametrize(("factor", "bound"), [(0.05, 0.045), (0.1, 0.08), (0.2, 0.11)])
def test_hue_in_yiq_shifts_colours_the_way_of_torchvisions_hue_in_hsv(factor, bound):
    # 0.2 is the largest hue jitter of SimCLR. Bounds on the mean absolute error of values in [0, 1],
    # over saturated colours: as large as the turn itself for small angles (HSV's hue moves luma,
    # YIQ's does not), two thirds of it for 0.2. A turn the wrong way is more than twice as far.
    images = smooth_images(16, 24)
    for sign in (1, -1):
        turned = apply_map(hue_map(torch.full((16,), sign * factor * 2 * math.pi)), images).clamp(0, 1)
        expected, opposite = tv.adjust_hue(images, sign * factor), tv.adjust_hue(images, -sign * factor)
        error = (turned - expected).abs().mean()
        assert error < bound
        assert error < 0.5 * (turned - opposite).abs().mean()
        change, their_change = (turned - images).abs().mean(), (expected - images).abs().mean()
        assert 0.8 < change / their_change < 1.4


def test_hue_keeps_luma_and_a_full_turn_is_nothing():
    images = noise(2, 8)
    luma = torch.tensor([0.299, 0.587, 0.114])
    turned = apply_map(hue_map(torch.tensor([0.7, -2.0])), images)
    torch.testing.assert_close(
        torch.einsum("c,nchw->nhw", luma, turned),
        torch.einsum("c,nchw->nhw", luma, images),
        atol=1e-5,
        rtol=0,
    )
    torch.testing.assert_close(
        apply_map(hue_map(torch.full((2,), 2 * math.pi)), images), images, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("size", [16, 32, 64])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_equals_gaussian_blur(size, sigma):
    images = noise(2, size)
    kernel = 2 * max(size // 20, 1) + 1
    matrix = blur_matrix(torch.full((2,), sigma), size)
    result = torch.einsum("nij,ncjk,nlk->ncil", matrix, images, matrix)
    expected = tv.gaussian_blur(images, [kernel, kernel], [sigma, sigma])
    assert (result - expected).abs().max() < 1e-5


def uniform_numbers(count, seed=0):
    return torch.rand(count, 6, generator=torch.Generator().manual_seed(seed))


def test_the_colour_matrix_equals_torchvisions_operations_one_after_the_other():
    strength, images = 0.25, smooth_images(60, 8, low=0.35, high=0.6)
    u = uniform_numbers(60)
    u[:, 3] = 0.5  # No shift of the hue, the one operation that differs.
    matrix = colour_matrix(u, images.mean(dim=(2, 3)), strength, grey=0.3)
    result = apply_map(matrix, images)
    operations = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, lambda x, f: x]
    jittered = grey = 0
    for i in range(60):
        expected = images[i]
        factors = (1 - 0.8 * strength + 1.6 * strength * u[i, :4]).tolist()
        if u[i, 4] < 0.8:
            jittered += 1
            for which in np.random.default_rng(i).permutation(4):
                expected = operations[which](expected, factors[which])
        if u[i, 5] < 0.3:
            grey += 1
            expected = tv.rgb_to_grayscale(expected, num_output_channels=3)
        assert expected.min() > 0 and expected.max() < 1
        assert (result[i] - expected).abs().max() < 1e-3, i
    assert 40 <= jittered <= 56 and 10 <= grey <= 26


def test_the_colour_operations_commute_so_that_their_order_does_not_matter():
    # All four keep luma or scale it with the colours; torchvision's differ by order through clipping
    # and HSV alone.
    images, factor = noise(2, 8), torch.tensor([0.6, 1.5])
    operations = [
        lambda x: apply_map(brightness_map(factor), x),
        lambda x: apply_map(contrast_map(factor, x.mean(dim=(2, 3))), x),
        lambda x: apply_map(saturation_map(factor), x),
        lambda x: apply_map(hue_map(factor), x),
    ]
    results = []
    for order in itertools.permutations(operations):
        result = images
        for operation in order:
            result = operation(result)
        results.append(result)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-5, rtol=0)


def test_hue_turns_by_at_most_a_fifth_either_way():
    u = torch.full((3, 6), 0.5)
    u[:, 3] = torch.tensor([0.0, 0.5, 1.0])
    matrix = colour_matrix(u, torch.full((3, 3), 0.5), 1.0, grey=0.0)
    expected = hue_map(2 * math.pi * torch.tensor([-0.2, 0.0, 0.2]))
    torch.testing.assert_close(matrix, expected, atol=1e-5, rtol=0)


def quantiles(values):
    return np.quantile(np.asarray(values, dtype=np.float64), [0.05, 0.25, 0.5, 0.75, 0.95])


@pytest.mark.parametrize(("aspect", "smallest"), [(1.0, 0.08), (1.0, 0.5), (2.0, 0.08), (0.5, 0.2)])
def test_crops_are_distributed_as_torchvisions(aspect, smallest):
    count = 2500
    height, width = 1000, int(1000 * aspect)
    image = torch.empty(1).expand(1, height, width)
    torch.manual_seed(0)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [smallest, 1.0], [3 / 4, 4 / 3]) for _ in range(count)]
    ) / [height, width, height, width]
    u = torch.rand(20 * count, 22, generator=torch.Generator().manual_seed(1))
    x, y, w, h = crop_boxes(u, torch.full((20 * count,), aspect), smallest).numpy().T
    top, left, their_h, their_w = theirs.T
    # 2,500 crops leave the median of a uniform variable a standard error of 0.01.
    assert np.abs(quantiles(w * h) - quantiles(their_w * their_h)).max() < 0.04
    ratio, their_ratio = np.log(w / h * aspect), np.log(their_w / their_h * aspect)
    assert np.abs(quantiles(ratio) - quantiles(their_ratio)).max() < 0.04
    assert np.abs(quantiles(x) - quantiles(left)).max() < 0.04
    assert np.abs(quantiles(y) - quantiles(top)).max() < 0.04


@pytest.mark.parametrize(("aspect", "width", "height"), [(50.0, 4 / 3 / 50, 1), (0.02, 1, 0.02 * 4 / 3)])
def test_an_image_too_long_for_any_crop_gets_the_largest_centred_one(aspect, width, height):
    box = crop_boxes(torch.rand(20, 22), torch.full((20,), aspect), 0.5)
    expected = torch.tensor([(1 - width) / 2, (1 - height) / 2, width, height]).expand(20, 4)
    torch.testing.assert_close(box, expected)


@pytest.mark.parametrize(("width", "height"), [(40, 40), (60, 40), (40, 80)])
@pytest.mark.parametrize("fraction", [1.0, 0.875, 0.375])
def test_crops_of_one_scale_are_torchvisions_resize_and_random_crop(width, height, fraction):
    """Resize(size / fraction), then RandomCrop(size), on an image that is cached as a square."""
    image = noise(1, max(height, width))[..., :height, :width]
    aspect, side, size = width / height, round(40 * fraction), 20
    u = torch.rand(30, 22, generator=torch.Generator().manual_seed(3))
    x, y, w, h = square_boxes(u, torch.full((30,), aspect), fraction).T
    torch.testing.assert_close(w * width, torch.full((30,), float(side)))
    torch.testing.assert_close(h * height, torch.full((30,), float(side)))
    assert (x >= 0).all() and (y >= 0).all()
    assert (x + w <= 1 + 1e-6).all() and (y + h <= 1 + 1e-6).all()
    if fraction < 1:
        assert x.max() > 0.8 * (1 - w[0]) and x.min() < 0.2 * (1 - w[0])
    left, top = (x * width).round(), (y * height).round()
    rows = resampling_matrix(top, h * height, height, size)
    columns = resampling_matrix(left, w * width, width, size)
    theirs = [
        tv.resized_crop(image[0], int(t), int(s), side, side, [size, size], antialias=True)
        for t, s in zip(top, left, strict=True)
    ]
    ours = torch.stack([r @ image[0] @ c.T for r, c in zip(rows, columns, strict=True)])
    torch.testing.assert_close(ours, torch.stack(theirs), atol=1e-5, rtol=0)


def test_crops_lie_inside_the_image():
    u = torch.rand(5000, 22, generator=torch.Generator().manual_seed(2))
    u[:50], u[50:100] = 0.0, 1 - 2**-24
    aspects = torch.exp(torch.linspace(-3, 3, 5000))
    x, y, width, height = crop_boxes(u, aspects, 0.08).T
    assert (x >= 0).all() and (y >= 0).all() and (width > 0).all() and (height > 0).all()
    assert (x + width <= 1 + 1e-6).all() and (y + height <= 1 + 1e-6).all()


@pytest.mark.parametrize("threshold", [0.5, 0.3])
def test_solarise_equals_torchvision_for_the_chosen_images(threshold):
    images = noise(4, 9)
    images[0, 0, 0, 0] = threshold  # The threshold itself is inverted.
    chosen = torch.tensor([True, False, True, False])
    result = solarise(images.flatten(2), chosen, threshold).view_as(images)
    torch.testing.assert_close(result[chosen], tv.solarize(images[chosen], threshold))
    assert torch.equal(result[~chosen], images[~chosen])


def test_blur_does_not_change_images_that_are_not_chosen():
    matrix = blur_matrix(torch.tensor([1.5, 1.5]), 24, torch.tensor([True, False]))
    assert torch.equal(matrix[1], torch.eye(24))
    torch.testing.assert_close(matrix[:1], blur_matrix(torch.tensor([1.5]), 24))
    assert matrix[0, 5, 5] < 0.9
