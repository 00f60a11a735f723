import math

import numpy as np
import pytest
import torch

from clfew.errors import UsageError
from clfew.methods.denoising import CORRUPTIONS, EMPHASIS, Denoising, corrupted, emphasised, stage_at


def uniform(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_masking_sets_a_fraction_of_the_pixels_to_zero_in_all_channels():
    clean = uniform(20, 3, 16, 16) * 0.5 + 0.4
    damaged, where = corrupted(clean, uniform(20, 2, 16, 16, seed=1), "masking", 0.25)
    hit = where.expand_as(clean) == 1
    assert (damaged[hit] == 0).all() and torch.equal(damaged[~hit], clean[~hit])
    assert 0.22 < where.mean() < 0.28


def test_salt_and_pepper_are_the_ends_of_the_range():
    clean = uniform(20, 3, 16, 16) * 0.5 + 0.25
    damaged, where = corrupted(clean, uniform(20, 2, 16, 16, seed=1), "salt-and-pepper", 0.3)
    hit = where.expand_as(clean) == 1
    assert set(damaged[hit].unique().tolist()) == {0.0, 1.0} and torch.equal(damaged[~hit], clean[~hit])
    assert 0.4 < damaged[hit].mean() < 0.6


def test_gaussian_noise_has_the_given_standard_deviation():
    clean = torch.full((40, 1, 32, 32), 0.5)
    damaged, where = corrupted(clean, uniform(40, 2, 32, 32), "gaussian", 0.3)
    noise = damaged - clean
    assert noise.std().item() == pytest.approx(0.3, rel=0.02) and abs(noise.mean().item()) < 0.01
    kurtosis = (noise / noise.std()).pow(4).mean().item()
    assert kurtosis == pytest.approx(3, abs=0.15) and (where == 1).all()


def slow_loss(logits, clean, where):
    """Cross-entropy of each value (section 2.2), emphasised (section 3.4), value by value in float64."""
    total, values = 0.0, 0
    for b, c, y, x in np.ndindex(*clean.shape):
        p, t = 1 / (1 + math.exp(-float(logits[b, c, y, x]))), float(clean[b, c, y, x])
        weight = EMPHASIS[0] if where[b, 0, y, x] else EMPHASIS[1]
        total -= weight * (t * math.log(p) + (1 - t) * math.log(1 - p))
        values += 1
    return total / values


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_the_loss_is_emphasised_cross_entropy_with_the_clean_image(
    corruption, make_method, make_batch, make_images
):
    objective: Denoising = make_method("denoising", corruption=corruption).eval()
    batch = make_batch(make_images(2)[0])
    clean = objective.one_view(batch)
    damaged, where = objective.damage(clean, batch)
    with torch.no_grad():
        loss, _ = objective.loss(batch)
        expected = slow_loss(objective.restored(damaged).numpy(), clean.numpy(), where.numpy())
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_emphasis_is_on_what_was_damaged():
    error, where = torch.ones(1, 2, 2, 2), torch.tensor([[[[1.0, 0], [0, 0]]]])
    assert emphasised(error, where).item() == pytest.approx((EMPHASIS[0] + 3 * EMPHASIS[1]) / 4)


def test_stages_get_the_same_sum_of_learning_rates():
    steps = np.arange(3000) / 3000
    rate = 0.5 * (1 + np.cos(np.pi * steps))
    stage = np.array([stage_at(p, 3) for p in steps])
    assert (np.diff(stage) >= 0).all()
    sums = [rate[stage == s].sum() for s in range(3)]
    np.testing.assert_allclose(sums, sums[0], rtol=0.01)
    assert stage_at(1.0, 3) == 2


def test_stacked_stages_learn_one_after_the_other(make_method, make_batch, make_images):
    """Training a later stage does not change the stages before it."""
    objective: Denoising = make_method("denoising", stacked=True).train()
    images = make_images(8)[0]
    names = objective.encoder.stage_names()
    moved = []
    for progress in (0.0, 0.3, 0.95):
        objective.zero_grad(set_to_none=True)
        loss, _ = objective.loss(make_batch(images, progress=progress))
        loss.backward()
        with_gradient = {
            name.split(".")[1] for name, p in objective.encoder.named_parameters() if p.grad is not None
        }
        moved.append(with_gradient)
    assert moved[0] and moved[1] and moved[2]
    assert not (moved[0] & moved[1]) and not (moved[1] & moved[2]) and len(names) == 3


def test_a_later_stages_loss_is_the_squared_error_of_the_maps_below(
    make_method, make_batch, make_images
):
    objective: Denoising = make_method("denoising", stacked=True).eval()
    batch = make_batch(make_images(4)[0], progress=0.99)
    with torch.no_grad():
        loss, _ = objective.loss(batch)
        clean = objective.encoder.maps(objective.encoder.prepare(objective.one_view(batch)))[1]
        damaged, where = objective.damage(clean, batch)
        rest = objective.encoder.backbone
        index = int(objective.encoder.stage_names()[1])
        above = damaged
        for module in list(rest)[index + 1 : int(objective.encoder.stage_names()[2]) + 1]:
            above = module(above)
        restored = objective.decoders[2](above)
    total, values = 0.0, clean.double().numpy()  # Element by element, then over the maps' variance.
    for b, c, y, x in np.ndindex(*values.shape):
        weight = EMPHASIS[0] if where[b, 0, y, x] else EMPHASIS[1]
        total += weight * (float(restored[b, c, y, x]) - values[b, c, y, x]) ** 2
    expected = total / values.size / values.var(ddof=1)
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("scale", [0.01, 1.0, 12.0])
@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_maps_are_damaged_in_their_own_units(corruption, scale, make_method, make_batch, make_images):
    """Zeros, ones and noise of .3 hardly damage maps that reach 12, and drown those that reach .1."""
    objective: Denoising = make_method("denoising", corruption=corruption, stacked=True)
    clean = torch.relu(torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0)))
    clean = clean * torch.tensor([0.5, 1.0, 2.0, 4.0]).view(4, 1, 1)
    batch = make_batch(make_images(8)[0])
    plain, where = objective.damage_maps(clean, batch)
    damaged, same = objective.damage_maps(scale * clean, batch)
    torch.testing.assert_close(damaged, scale * plain)
    assert torch.equal(where, same)
    hit = where.expand_as(clean) == 1
    if corruption == "masking":
        assert (plain[hit] == 0).all()
    elif corruption == "salt-and-pepper":
        for channel, values in enumerate(clean.transpose(0, 1)):
            ends = plain[:, channel][hit[:, channel]].unique()
            torch.testing.assert_close(ends, torch.stack([values.min(), values.max()]))
    else:
        noise = (plain - clean).std((0, 2, 3))
        torch.testing.assert_close(noise, clean.std((0, 2, 3)), rtol=0.15, atol=0)
    torch.testing.assert_close(plain[~hit], clean[~hit], rtol=1e-5, atol=1e-6)


def test_an_unknown_corruption_is_wrong_usage(make_method):
    with pytest.raises(UsageError, match="gauss is not known"):
        make_method("denoising", corruption="gauss")
