import math

import numpy as np
import pytest
import torch

from clfew.data.colour import lab_to_rgb, rgb_to_lab
from clfew.methods.colorization import (
    GREY_BELOW,
    NEAREST,
    SIGMA,
    TEMPERATURE,
    UNIFORM,
    Colorization,
    annealed_mean,
    colour_bins,
    colour_loss,
    rebalancing,
    soft_bins,
)


def colours(count, std=30.0, seed=0):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed)) * std


def slow_soft(colour, bins):
    """The five nearest bins by a Gaussian, scaled to sum to 1 (section 2.1)."""
    distance = np.sqrt(((bins - colour) ** 2).sum(1))
    nearest = np.argsort(distance, kind="stable")[:NEAREST]
    weight = np.exp(-(distance[nearest] ** 2) / (2 * SIGMA**2))
    probabilities = np.zeros(len(bins))
    probabilities[nearest] = weight / weight.sum()
    return probabilities


def slow_weights(bins, fractions):
    smooth = np.array(
        [
            sum(
                fraction
                * math.exp(-((bins[q] - bins[k]) ** 2).sum() / (2 * SIGMA**2))
                / sum(
                    math.exp(-((bins[m] - bins[k]) ** 2).sum() / (2 * SIGMA**2))
                    for m in range(len(bins))
                )
                for k, fraction in enumerate(fractions)
            )
            for q in range(len(bins))
        ]
    )
    weight = 1 / ((1 - UNIFORM) * smooth + UNIFORM / len(bins))
    return weight / (smooth * weight).sum()


def test_bins_are_the_cells_of_the_grid_that_hold_a_colour():
    ab = torch.tensor([[1.0, -2], [4, 4.9], [12, 0], [11, -4], [-37, 58]])
    bins, fractions = colour_bins(ab)
    found = {tuple(b): round(s, 3) for b, s in zip(bins.tolist(), fractions.tolist(), strict=True)}
    assert found == {(0.0, 0.0): 0.4, (10.0, 0.0): 0.4, (-40.0, 60.0): 0.2}


def test_a_colour_is_assigned_to_its_five_nearest_bins():
    bins, _ = colour_bins(colours(2000))
    ab = colours(50, seed=1)
    index, probabilities = soft_bins(ab, bins)
    dense = torch.zeros(50, len(bins)).scatter_(1, index, probabilities)
    expected = np.stack([slow_soft(c, bins.double().numpy()) for c in ab.double().numpy()])
    np.testing.assert_allclose(dense.numpy(), expected, atol=1e-4)


def test_rare_colours_weigh_more_and_the_mean_weight_is_one():
    bins, fractions = colour_bins(colours(3000, std=12))
    weights = rebalancing(bins, fractions)
    np.testing.assert_allclose(
        weights.numpy(), slow_weights(bins.double().numpy(), fractions.double().numpy()), rtol=1e-4
    )
    assert weights[fractions.argmax()] < 1 < weights[fractions.argmin()]


def test_the_loss_is_the_papers_weighted_cross_entropy_over_images_with_colours():
    bins, fractions = colour_bins(colours(2000))
    weights = rebalancing(bins, fractions)
    ab = colours(3 * 4, seed=2).view(3, 2, 2, 2)
    ab[1] *= GREY_BELOW / 200  # Grey: not counted.
    logits = torch.randn(3, len(bins), 2, 2, generator=torch.Generator().manual_seed(3))
    total, pixels = 0.0, 0
    for image in (0, 2):
        for y, x in np.ndindex(2, 2):
            z = slow_soft(ab[image, :, y, x].double().numpy(), bins.double().numpy())
            log_p = logits[image, :, y, x].double().log_softmax(0).numpy()
            total -= weights[int(z.argmax())].item() * (z * log_p).sum()
            pixels += 1
    loss = colour_loss(logits, ab, bins, weights)
    assert loss.item() == pytest.approx(total / pixels, rel=1e-4)


def test_a_batch_of_grey_images_has_no_loss():
    bins, fractions = colour_bins(colours(200))
    loss = colour_loss(torch.randn(2, len(bins), 2, 2), torch.zeros(2, 2, 2, 2), bins, fractions)
    assert loss.item() == 0


def test_the_annealed_mean_is_between_mode_and_mean():
    bins = torch.tensor([[0.0, 0], [100, 0]])
    probability = 0.7
    logits = torch.tensor([math.log(probability), math.log(1 - probability)]).view(1, 2, 1, 1)
    expected = 100 * (1 - probability) ** (1 / TEMPERATURE)
    expected /= probability ** (1 / TEMPERATURE) + (1 - probability) ** (1 / TEMPERATURE)
    assert annealed_mean(logits, bins)[0, 0, 0, 0].item() == pytest.approx(expected, rel=1e-4)
    assert 0 < expected < 30


def test_the_encoder_gets_no_colour(make_method):
    """Two images of the same lightness have the same features, whatever their colours; in later use
    too."""
    objective: Colorization = make_method("colorization").eval()
    lab = torch.zeros(2, 3, 24, 24)
    lab[:, 0] = torch.linspace(40, 60, 24)
    lab[1, 1:] = torch.tensor([20.0, -25.0])[:, None, None]
    images = lab_to_rgb(lab)
    assert (images[0] - images[1]).abs().max() > 0.1
    with torch.no_grad():
        first, second = objective.encoder(images)
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


def test_bins_come_from_the_images_and_are_the_same_for_a_resumed_run(make_method, make_images):
    images, _ = make_images(32)
    found = []
    for _ in range(2):
        objective: Colorization = make_method("colorization")
        objective.look_at(torch.from_numpy(images), torch.ones(32))
        found.append(objective.state_dict())
    assert len(found[0]["bins"]) > 5
    assert torch.equal(found[0]["bins"], found[1]["bins"])
    assert torch.equal(found[0]["weights"], found[1]["weights"])


def test_perfect_predictions_restore_the_images_colours(
    make_method, make_batch, make_images, monkeypatch
):
    images, _ = make_images(6, side=24)
    objective: Colorization = make_method("colorization")
    objective.look_at(torch.from_numpy(images), torch.ones(6))
    batch = make_batch(images)
    _, lab = objective.view(batch)
    index, probabilities = soft_bins(lab[:, 1:].permute(0, 2, 3, 1).reshape(-1, 2), objective.bins)
    right = torch.zeros(len(index), len(objective.bins)).scatter_(1, index, probabilities)
    right = (right + 1e-9).log().view(6, 6, 6, -1).permute(0, 3, 1, 2) * TEMPERATURE
    monkeypatch.setattr(objective, "logits", lambda view: right)
    pictures = dict(objective.pictures(batch))
    predicted, grey = (
        (rgb_to_lab(pictures[name]) - rgb_to_lab(pictures["image"]))[:, 1:].abs().mean().item()
        for name in ("colourised", "without colour")
    )
    assert predicted < 0.7 * grey  # Not 0: colours have a quarter of the resolution.
