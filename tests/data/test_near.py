import io

import numpy as np
import pytest
from PIL import Image

from clfew.data import near
from clfew.data.decode import load_square

SIDE = 48


def picture(seed, size=160):
    """A picture of soft shapes, unlike those of other seeds."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def cached(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return load_square(buffer.getvalue(), SIDE)[0]


def grouped(images, names=None, rule=near.RELATED_RULE):
    pixels = np.stack(images)
    names = names or [f"{i}.jpg" for i in range(len(images))]
    found = near.near_pairs(pixels, np.arange(len(pixels)), names, rule)
    return near.near_groups(found, len(pixels)).tolist()


OTHERS = [cached(picture(seed)) for seed in range(40)]


def as_it_is(image):
    return cached(image)


def brighter(image):
    return cached(Image.fromarray((np.asarray(image) * 0.8 + 30).astype(np.uint8)))


COPIES = {
    "itself": as_it_is,
    "JPEG": lambda image: cached(image, "JPEG", quality=60),
    "smaller": lambda image: cached(image.resize((57, 57))),
    "smaller JPEG": lambda image: cached(image.resize((80, 80)), "JPEG", quality=60),
    "larger": lambda image: cached(image.resize((400, 400))),
    "another shape": lambda image: cached(image.resize((200, 100))),
    "brighter": brighter,
}


@pytest.mark.parametrize("copy", COPIES)
def test_copies_are_a_group_wherever_they_lie(copy):
    """And nothing else is: the other pictures are alone."""
    images = [*OTHERS, COPIES[copy](picture(7))]
    expected = [*range(40), 7]
    assert grouped(images) == grouped(images, rule=5) == expected


def mirrored(image):
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def test_mirror_images_are_a_group_from_rule_6_on():
    images = [
        *OTHERS,
        *(cached(mirrored(picture(7)).resize((80, 80)), "JPEG", quality=q) for q in (60, 90)),
    ]
    assert grouped(images) == [*range(40), 7, 7]
    assert grouped(images, rule=5) == [*range(40), 40, 40]
    found = near.near_pairs(np.stack(images), np.arange(42), [str(i) for i in range(42)])
    kinds = dict(zip(map(tuple, found.pairs.tolist()), found.kinds.tolist(), strict=True))
    assert kinds == {(7, 40): 1, (7, 41): 1, (40, 41): 0}


def test_a_copy_that_lost_much_is_known_by_being_alone():
    """It is farther from its original than COPY, but much nearer than anything else."""
    noise = np.random.default_rng(0).normal(0, 12, (8, 8, 3)).repeat(6, 0).repeat(6, 1)
    poor = (OTHERS[7] + noise).clip(0, 255).astype(np.uint8)
    small, _ = near.signatures(np.stack([OTHERS[7], poor]), np.arange(2))
    assert near.COPY < near.distances(small, np.array([[0, 1]]))[0] < 0.3
    images = [*OTHERS, poor]
    assert grouped(images)[40] == 7 and grouped(images, rule=5)[40] == 40
    # A series of as similar things: none is nearer to one than to the others.
    random = np.random.default_rng(1)
    noises = random.normal(0, 12, (20, 8, 8, 3)).repeat(6, 1).repeat(6, 2)
    series = [(OTHERS[7] + noise).clip(0, 255).astype(np.uint8) for noise in noises]
    assert grouped(
        [*OTHERS, *series], [f"{chr(97 + i * 7 % 26)}{chr(97 + i // 3)}.jpg" for i in range(60)]
    )[40:] == list(range(40, 60))


def test_unreadable_and_flat_images_are_alone():
    flat = [np.full((SIDE, SIDE, 3), value, np.uint8) for value in (0, 0, 128, 129)]
    images = [*OTHERS, *flat, OTHERS[3]]
    pixels = np.stack(images)
    good = np.arange(len(images) - 1)  # The last one, a copy, cannot be read.
    found = near.near_pairs(pixels, good, [str(i) for i in range(len(images))])
    assert near.near_groups(found, len(images)).tolist() == list(range(len(images)))
    assert found.flat.tolist() == [40, 41, 42, 43]


def burst(seed, frames=12):
    """Frames that move by a pixel of 160 at a time."""
    large = picture(seed, 220)
    return [cached(large.crop((i, i, i + 160, i + 160))) for i in range(frames)]


def test_frames_of_a_burst_are_a_group():
    images = [frame for seed in range(10) for frame in burst(seed)]
    names = [f"IMG_{i}.JPG" for i in range(len(images))]
    found = np.array(grouped(images, names))
    assert np.array_equal(found, np.repeat(np.arange(0, 120, 12), 12))


def test_numbers_in_names_are_in_their_order():
    images = [frame for seed in range(10) for frame in burst(seed)]
    order = np.random.default_rng(0).permutation(len(images))
    found = np.array(grouped([images[i] for i in order], [f"IMG_{i}.JPG" for i in order]))
    scenes = order // 12
    assert all(len(set(scenes[found == group])) == 1 for group in set(found.tolist()))
    assert len(set(found.tolist())) == 10


def test_chains_are_cut(monkeypatch):
    """A film of slow changes would be one group, and nothing could be held out."""
    film = burst(0, 60)
    images, names = [*film, *OTHERS], [f"{i:03}.jpg" for i in range(100)]
    found = np.array(grouped(images, names))
    sizes = np.bincount(found)
    assert sizes.max() <= 10 and (found[60:] == np.arange(60, 100)).all()


@pytest.mark.parametrize("side", [8, 16, 28, 33, 100])
def test_signatures_are_means_of_areas(side):
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3)).astype(np.uint8)
    found, varied = near.signatures(pixels, np.arange(3))
    assert found.shape == (3, 771) and varied.all()
    small = found[:, :768].reshape(3, 3, 256)
    assert np.allclose(small.mean(2), 0, atol=1e-5) and np.allclose(small.std((1, 2)), 1, atol=1e-4)
    if side % 16 == 0:
        means = pixels.reshape(3, 16, side // 16, 16, side // 16, 3).mean((2, 4))
        expected = means.transpose(0, 3, 1, 2).reshape(3, 3, 256)
        expected = expected - expected.mean(2, keepdims=True)
        assert np.allclose(small, expected / expected.std((1, 2), keepdims=True), atol=1e-3)


def test_pictures_of_one_hue_are_not_alike():
    random = np.random.default_rng(0)
    hues = np.array([[200, 40, 40], [30, 160, 60]])
    images = [(hues[i % 2] + random.normal(0, 12, (SIDE, SIDE, 1)).repeat(3, 2)) for i in range(60)]
    # Large enough spots to be seen in a signature.
    images = [
        image[::4, ::4].repeat(4, 0).repeat(4, 1).clip(0, 255).astype(np.uint8) for image in images
    ]
    assert grouped(images) == list(range(60))


def test_one_shape_in_other_colours_is_no_copy():
    shape = np.asarray(Image.fromarray(OTHERS[0]).convert("L")).astype(float)[..., None] / 255
    colours = np.array([[1, 0.1, 0.1], [0.1, 1, 0.1], [0.1, 0.1, 1]])
    images = [(30 + 225 * shape * colour).clip(0, 255).astype(np.uint8) for colour in colours]
    assert grouped([*OTHERS, *images])[40:] == [40, 41, 42]


def test_few_images_have_groups_too():
    assert grouped([OTHERS[0]]) == [0]
    assert grouped([OTHERS[0], OTHERS[0]]) == [0, 0]
    assert grouped([OTHERS[0], OTHERS[1], OTHERS[0]]) == [0, 1, 0]
