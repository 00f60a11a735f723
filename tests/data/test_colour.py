import pytest
import torch

from clfew.data.colour import AB_REACH, lab_to_rgb, rgb_to_lab


def pixel(r, g, b):
    return torch.tensor([r, g, b], dtype=torch.float32).view(1, 3, 1, 1)


# The sRGB primaries and others in CIE Lab under D65, as colour calculators compute them.
@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((0, 0, 0), (0, 0, 0)), ((1, 1, 1), (100, 0, 0)), ((1, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 1, 0), (87.73, -86.18, 83.18)), ((0, 0, 1), (32.30, 79.19, -107.86)),
        ((0.5, 0.5, 0.5), (53.39, 0, 0)), ((1, 1, 0), (97.14, -21.55, 94.48)),
    ],
)  # fmt: skip
def test_known_colours(rgb, lab):
    found = rgb_to_lab(pixel(*rgb)).flatten()
    torch.testing.assert_close(found, torch.tensor(lab, dtype=torch.float32), rtol=0, atol=0.05)


def test_there_and_back():
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    lab = rgb_to_lab(images)
    torch.testing.assert_close(lab_to_rgb(lab), images, rtol=0, atol=2e-3)
    assert lab[:, 1:].abs().max() < AB_REACH


def test_every_srgb_colour_is_within_reach():
    steps = torch.linspace(0, 1, 18)
    cube = torch.cartesian_prod(steps, steps, steps).T.reshape(1, 3, -1, 1)
    assert rgb_to_lab(cube)[:, 1:].abs().max() < AB_REACH


def test_colours_outside_srgb_are_clipped():
    assert lab_to_rgb(torch.tensor([50.0, 120, 120]).view(1, 3, 1, 1)).max() <= 1


def test_colours_are_exact_in_bf16_training():
    """Autocast rounds matrix products to bf16, but not those of colours."""
    images = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    exact = rgb_to_lab(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rgb_to_lab(images), exact)
        assert torch.allclose(lab_to_rgb(exact), images, atol=2e-3)
