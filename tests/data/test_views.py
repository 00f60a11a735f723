"""Whole views, as training and evaluation use them."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from clfew.data.augment import Recipe, evaluation_view, random_views
from clfew.data.randomness import ImageRandom

DEFAULT = Recipe()
NO_OPERATIONS = Recipe(crop_area=1.0, flip=False, jitter=0, grey=0, blur=0)


@pytest.fixture
def batch(pixels):
    images, _ = pixels(12, side=20)
    return torch.from_numpy(images), torch.linspace(0.5, 2, 12)


def views_of(batch, rows=None, recipe=DEFAULT, seed=1, epoch=2, size=16, views=2):
    images, aspects = batch
    rows = np.arange(len(images)) if rows is None else np.asarray(rows)
    random = ImageRandom(seed, epoch, rows)
    return random_views(images[rows], aspects[rows], size, recipe, random, views)


def as_float(images_NxSxSx3):
    return images_NxSxSx3.permute(0, 3, 1, 2).float() / 255


def test_views_have_the_shape_range_and_memory_format_that_training_needs(batch):
    result = views_of(batch)
    assert result.shape == (24, 3, 16, 16) and result.dtype == torch.float32
    assert result.min() >= 0 and result.max() <= 1 and result.std() > 0.05
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert views_of(batch, views=1).shape == (12, 3, 16, 16)


def test_views_are_a_function_of_seed_epoch_and_image(batch):
    result = views_of(batch)
    assert torch.equal(result, views_of(batch))
    assert not torch.allclose(result, views_of(batch, seed=2), atol=0.05)
    assert not torch.allclose(result, views_of(batch, epoch=3), atol=0.05)


def test_views_do_not_depend_on_the_order_or_the_rest_of_the_batch(batch):
    whole = views_of(batch)
    order = np.random.default_rng(0).permutation(12)
    shuffled = views_of(batch, order)
    # Matrix products of another shape may round differently.
    torch.testing.assert_close(shuffled[:12], whole[:12][order], atol=1e-5, rtol=0)
    torch.testing.assert_close(shuffled[12:], whole[12:][order], atol=1e-5, rtol=0)
    alone = views_of(batch, [7])
    torch.testing.assert_close(alone, whole[[7, 19]], atol=1e-5, rtol=0)


def test_the_two_views_of_an_image_differ(batch):
    result = views_of(batch)
    difference = (result[:12] - result[12:]).abs().mean(dim=(1, 2, 3))
    assert (difference > 0.02).all()
    # The first view is the same whether there is a second or not.
    torch.testing.assert_close(views_of(batch, views=1), result[:12], atol=1e-5, rtol=0)


def test_a_recipe_without_operations_does_not_change_a_square_image(batch):
    images, _ = batch
    result = views_of((images, torch.ones(12)), recipe=NO_OPERATIONS, size=20, views=1)
    # A whole area with a ratio that is not 1 does not fit: the whole image is the fallback.
    torch.testing.assert_close(result, as_float(images), atol=1e-5, rtol=0)


def test_flipping_mirrors_about_half_of_the_views(batch):
    images = batch[0][:1].repeat(200, 1, 1, 1)
    flipped = Recipe(crop_area=1.0, flip=True, jitter=0, grey=0, blur=0)
    result = views_of((images, torch.ones(200)), recipe=flipped, size=20, views=1)
    straight = as_float(images[:1])
    is_straight = (result - straight).abs().amax(dim=(1, 2, 3)) < 1e-4
    is_mirrored = (result - straight.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert (is_straight | is_mirrored).all()
    assert 70 < is_mirrored.sum() < 130


def test_blur_grey_and_jitter_change_views_as_their_names_say(batch):
    square = (batch[0], torch.ones(12))
    plain = views_of(square, recipe=NO_OPERATIONS, views=1)

    def roughness(images):
        return (images[..., 1:] - images[..., :-1]).abs().mean()

    blurred = views_of(square, recipe=Recipe(1.0, False, 0, 0, blur=1.0), views=1)
    assert roughness(blurred) < 0.9 * roughness(plain)
    grey = views_of(square, recipe=Recipe(1.0, False, 0, grey=1.0, blur=0), views=1)
    torch.testing.assert_close(grey, grey[:, :1].expand_as(grey), atol=1e-5, rtol=0)
    expected = tv.rgb_to_grayscale(plain)
    torch.testing.assert_close(grey[:, :1], expected, atol=5e-4, rtol=0)
    jittered = views_of(square, recipe=Recipe(1.0, False, 1.0, 0, 0), views=1)
    changed = (jittered - plain).abs().mean(dim=(1, 2, 3)) > 0.01
    assert 6 <= changed.sum() <= 12


def test_smaller_crops_come_with_a_smaller_crop_area(batch):
    # The value of each pixel is its column, so a crop's range of values is its width.
    ramp = torch.arange(20, dtype=torch.uint8).mul(12)[None, None, :, None].expand(100, 20, 20, 3)
    square = (ramp.contiguous(), torch.ones(100))
    recipe = {"flip": False, "jitter": 0, "grey": 0, "blur": 0}
    ranges = [
        np.ptp(views_of(square, recipe=Recipe(crop_area=area, **recipe), views=1).numpy(), axis=3).mean()
        for area in (0.08, 0.6)
    ]
    assert ranges[0] < 0.85 * ranges[1]


def test_the_evaluation_view_of_a_square_image_of_the_same_size_is_the_image(batch):
    images, _ = batch
    result = evaluation_view(images, torch.ones(12), 20)
    torch.testing.assert_close(result, as_float(images), atol=1e-6, rtol=0)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_the_evaluation_view_of_a_photo_is_all_of_it(batch):
    images, _ = batch
    for aspect in (3 / 4, 4 / 3):
        result = evaluation_view(images, torch.full((12,), aspect), 16)
        expected = tv.resize(as_float(images), [16, 16], InterpolationMode.BILINEAR, antialias=True)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("aspect", "box"), [(2.0, (0, 4, 24, 16)), (0.5, (4, 0, 16, 24))])
def test_the_evaluation_view_of_a_long_image_is_its_middle(pixels, aspect, box):
    images = torch.from_numpy(pixels(4, side=24)[0])
    result = evaluation_view(images, torch.full((4,), aspect), 16)
    # Two thirds of the longer side make 4:3 of 2:1.
    top, left, height, width = box
    expected = tv.resized_crop(
        as_float(images), top, left, height, width, [16, 16], InterpolationMode.BILINEAR, antialias=True
    )
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("aspect", [1 / 5000, 1 / 40, 1 / 16, 16.0, 40.0, 5000.0])
def test_views_of_strips_are_finite(pixels, aspect):
    images = torch.from_numpy(pixels(200, side=10)[0])
    aspects = torch.full((200,), aspect)
    assert views_of((images, aspects), size=8).isfinite().all()
    assert evaluation_view(images, aspects, 8).isfinite().all()
