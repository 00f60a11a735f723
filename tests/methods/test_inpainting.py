import math

import numpy as np
import pytest
import torch
from torch import nn

from clfew.data.randomness import ImageRandom
from clfew.errors import UsageError
from clfew.methods.inpainting import (
    ADVERSARIAL,
    CELLS,
    LEAST,
    MOST,
    OVERLAP_WEIGHT,
    RECONSTRUCTION,
    TRIES,
    Inpainting,
    centre_mask,
    judge_loss,
    random_mask,
    reconstruction_loss,
)


def test_the_centre_square_has_half_the_side_and_a_heavy_border_that_is_not_hidden():
    hidden, weight = centre_mask(128)
    square = torch.zeros(128, 128)
    square[32:96, 32:96] = 1
    assert torch.equal((weight > 0).float(), square)
    border = (weight == OVERLAP_WEIGHT).float()
    assert torch.equal(border + (weight == 1).float(), square) and not (border * hidden).any()
    assert torch.equal(hidden, (weight == 1).float())
    assert hidden.sum() == 56**2  # Four pixels on each side (pathak22/context-encoder).


def test_random_regions_cover_a_fifth_to_three_tenths_and_are_blobs():
    fractions, edges = [], []
    for epoch in range(40):
        uniform = ImageRandom(0, epoch, np.array([3])).uniform(100, TRIES * CELLS**2)[0]
        mask = random_mask(64, uniform)
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        fractions.append(mask.mean().item())
        edges.append((mask.diff(dim=0).abs().sum() / mask.sum()).item())
    assert min(fractions) >= LEAST and max(fractions) <= MOST
    assert len({round(f, 4) for f in fractions}) > 20  # Masks differ from step to step.
    assert np.mean(edges) < 0.3  # Noise pixel by pixel would have 1.5 edges for each pixel.


def slow_loss(painted, image, weight):
    total, count = 0.0, 0.0
    for b, c, y, x in np.ndindex(*image.shape):
        total += weight[y, x] * (float(painted[b, c, y, x]) - float(image[b, c, y, x])) ** 2
        count += weight[y, x]
    return total / count


@pytest.mark.parametrize("mask", ["random", "centre"])
def test_the_loss_is_the_weighted_squared_error_of_what_was_hidden(
    mask, make_method, make_batch, make_images
):
    objective: Inpainting = make_method("inpainting", mask=mask).eval()
    batch = make_batch(make_images(2)[0])
    view, hidden, weight = objective.view(batch)
    with torch.no_grad():
        loss, _ = objective.loss(batch)
        painted = objective.painted(view, hidden)
    expected = slow_loss(painted.numpy(), view.numpy(), weight.double().numpy())
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_hidden_pixels_do_not_change_the_painting(make_method, make_batch, make_images):
    objective: Inpainting = make_method("inpainting").eval()
    view, hidden, _ = objective.view(make_batch(make_images(3)[0]))
    changed = view + 5 * torch.randn_like(view) * hidden
    torch.testing.assert_close(objective.painted(changed, hidden), objective.painted(view, hidden))


@torch.no_grad()
def test_places_are_connected_channel_by_channel(make_method, monkeypatch):
    objective: Inpainting = make_method("inpainting").eval()
    side = round(objective.places.shape[1] ** 0.5)
    maps = torch.randn(2, len(objective.places), side, side)
    monkeypatch.setattr(objective.encoder, "maps", lambda inputs: [maps])
    objective.decoder = nn.Identity()
    size = objective.encoder.size
    joined = objective.painted(torch.zeros(2, 3, size, size), torch.zeros(size, size)).flatten(2)
    for b, c in np.ndindex(2, maps.shape[1]):
        torch.testing.assert_close(joined[b, c], maps[b, c].flatten() @ objective.places[c])


def test_each_adversarial_loss_trains_only_the_painter_or_only_the_discriminator(
    make_method, make_batch, make_images
):
    objective: Inpainting = make_method("inpainting", adversarial=True).train()
    view, hidden, _ = objective.view(make_batch(make_images(8)[0]))
    painted = objective.painted(view, hidden)
    painter, *logits = objective.judgement(view, painted)
    judge = judge_loss(*logits)
    painter.backward(retain_graph=True)
    assert all(p.grad is None for p in objective.discriminator.parameters())
    assert next(objective.encoder.parameters()).grad is not None
    objective.zero_grad(set_to_none=True)
    judge.backward()
    assert next(objective.encoder.parameters()).grad is None
    assert next(objective.discriminator.parameters()).grad is not None
    objective.eval()
    with torch.no_grad():
        real, fake = objective.discriminator(view), objective.discriminator(painted)
        painter, *logits = objective.judgement(view, painted)
        judge = judge_loss(*logits)
    right, wrong = (1 / (1 + np.exp(-x.double().numpy().ravel())) for x in (real, fake))
    # Equation 2, image by image: log D(x) + log(1 - D(F(x))); the painter's loss in its usual form.
    expected = -sum(math.log(p) + math.log(1 - q) for p, q in zip(right, wrong, strict=True))
    assert judge.item() == pytest.approx(expected / (2 * len(right)), rel=1e-5)
    assert painter.item() == pytest.approx(-sum(map(math.log, wrong)) / len(wrong), rel=1e-5)


def test_the_painter_is_judged_as_the_discriminator_is_trained(make_method):
    """Each in a batch of its own kind: real images do not change what is said of painted ones."""
    objective: Inpainting = make_method("inpainting", adversarial=True).train()
    random = torch.Generator().manual_seed(0)
    real, painted = (torch.randn(8, 3, 24, 24, generator=random) * scale for scale in (3.0, 0.5))
    painter, _, painted_logits = objective.judgement(real, painted)
    ones = torch.ones_like(painted_logits)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(painted_logits, ones)
    assert painter.item() == pytest.approx(expected.item(), rel=1e-5)
    _, _, beside_others = objective.judgement(7 * real, painted)
    torch.testing.assert_close(beside_others, painted_logits)


def test_how_often_the_discriminator_is_right_is_a_fraction(make_method, make_batch, make_images):
    objective: Inpainting = make_method("inpainting", adversarial=True).train()
    _, extras = objective.loss(make_batch(make_images(8)[0]))
    assert extras["judged_right"].item() * 16 == pytest.approx(round(extras["judged_right"].item() * 16))
    assert 0 <= extras["judged_right"] <= 1 and extras["judge_loss"] > 0


@pytest.mark.parametrize("mask", ["centre", "random"])
def test_reconstruction_and_the_adversarial_term_have_the_papers_weights(
    make_method, make_batch, make_images, mask
):
    batch = make_batch(make_images(6)[0])
    objective: Inpainting = make_method("inpainting", mask=mask, adversarial=True).eval()
    with torch.no_grad():
        loss, _ = objective.loss(batch)
        view, hidden, weight = objective.view(batch)
        assert mask == "centre" or (weight == 1).all()  # All that is judged is to be like the image.
        painted = objective.painted(view, hidden)
        # The discriminator gets all that was painted, and nothing else.
        inside = slice(6, 18) if mask == "centre" else slice(None)
        painter, *logits = objective.judgement(view[..., inside, inside], painted[..., inside, inside])
        losses = painter, judge_loss(*logits)
        expected = RECONSTRUCTION * reconstruction_loss(painted, view, weight)
        expected += ADVERSARIAL * losses[0] + losses[1]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert make_method("inpainting").discriminator is None  # Off unless asked for.


def test_an_unknown_mask_is_wrong_usage(make_method):
    with pytest.raises(UsageError, match="center is not known"):
        make_method("inpainting", mask="center")
