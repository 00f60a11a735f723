import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from clfew.methods import counting
from clfew.methods.collapse import collapse
from clfew.methods.counting import (
    MARGIN,
    RESAMPLERS,
    Counting,
    counting_loss,
    halved,
    lanczos_matrix,
    standardised_together,
)


def slow_loss(whole, tiles, margin):
    """Equation 4 image by image in float64; the other image is the one before, as in the batch."""
    whole, tiles, total = whole.double().numpy(), tiles.double().numpy(), 0.0
    for i in range(len(whole)):
        summed = sum(tile[i] for tile in tiles)
        same = ((whole[i] - summed) ** 2).sum()
        other = ((whole[i - 1] - summed) ** 2).sum()
        total += same + max(0.0, margin - other)
    return total / len(whole)


@pytest.mark.parametrize("size", [0.1, 1.0])  # Within the margin, and beyond.
def test_the_loss_is_that_of_the_paper(size):
    generator = torch.Generator().manual_seed(0)
    whole = torch.rand(5, 20, generator=generator) * size
    tiles = torch.rand(4, 5, 20, generator=generator) * size
    found = counting_loss(whole, tiles).item()
    assert found == pytest.approx(slow_loss(whole, tiles, MARGIN), rel=1e-5)


def test_the_margin_is_on_the_vector_not_on_each_count():
    """Counts that differ by 1 in 20 places are 20 apart: beyond the margin of 10."""
    whole = torch.zeros(2, 20)
    whole[1] = 1
    tiles = whole[None].repeat(4, 1, 1) / 4
    assert counting_loss(whole, tiles).item() == pytest.approx(0, abs=1e-6)


def test_counts_of_zero_cost_the_margin():
    assert counting_loss(torch.zeros(6, 9), torch.zeros(4, 6, 9)).item() == pytest.approx(MARGIN)


def test_the_method_compares_the_whole_with_its_four_tiles(make_method, make_batch, make_images):
    objective: Counting = make_method("counting").eval()
    batch = make_batch(make_images(5)[0])
    with torch.no_grad():
        loss, extras = objective.loss(batch)
        pieces = objective.pieces(batch)
        inputs = standardised_together(pieces)
        counts = torch.stack(
            [objective.counts(objective.encoder.backbone(p).flatten(1)) for p in inputs]
        )
    assert pieces.shape == (5, 5, 3, objective.tile, objective.tile)
    assert (counts >= 0).all()
    assert loss.item() == pytest.approx(slow_loss(counts[0], counts[1:], MARGIN), rel=1e-3)
    assert extras["alive"].item() == pytest.approx((counts[0] > 0).any(0).float().mean().item())


def test_tiles_put_together_and_halved_are_the_whole(make_method, make_batch, make_images):
    objective: Counting = make_method("counting")
    pieces = objective.pieces(make_batch(make_images(4)[0]))
    view = torch.cat(
        [torch.cat([pieces[1], pieces[2]], dim=3), torch.cat([pieces[3], pieces[4]], dim=3)], dim=2
    )
    assert (F.avg_pool2d(view, 2) - pieces[0]).abs().mean() < 0.02


def test_the_resampler_changes_from_step_to_step(make_method, make_batch, make_images, monkeypatch):
    """A single resampler would leave traces that distinguish whole views from tiles."""
    images = make_images(4)[0]
    objective: Counting = make_method("counting")
    kinds = []
    monkeypatch.setattr(counting, "halved", lambda view, kind: kinds.append(kind) or halved(view, kind))
    for epoch in range(30):
        objective.pieces(make_batch(images, epoch=epoch))
    assert len(kinds) == 30 and set(kinds) == set(RESAMPLERS)
    view = torch.rand(2, 3, 32, 32)
    results = [halved(view, kind) for kind in RESAMPLERS]
    for i in range(4):
        for j in range(i):
            assert (results[i] - results[j]).abs().mean() > 1e-3


def test_lanczos_equals_pillows():
    line = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    picture = Image.fromarray(line.astype(np.float32), mode="F").resize(
        (20, 20), Image.Resampling.LANCZOS
    )
    matrix = lanczos_matrix(40, 20).numpy()
    np.testing.assert_allclose(matrix @ line.astype(np.float32) @ matrix.T, np.array(picture), atol=0.05)


def test_colour_is_dropped_from_all_images_of_a_step_or_from_none(make_method, make_batch):
    """Otherwise colour alone would distinguish two images, and the margin would cost nothing."""
    images = np.random.default_rng(0).integers(0, 256, (8, 24, 24, 3), dtype=np.uint8)
    objective, steps = make_method("counting"), []
    for epoch in range(100):
        pieces = objective.pieces(make_batch(images, epoch=epoch))
        grey = (pieces - pieces.mean(2, keepdim=True)).abs().amax((2, 3, 4)) < 2e-3
        assert grey.all() or not grey.any()
        steps.append(bool(grey.all()))
    assert 0.52 < np.mean(steps) < 0.82


def test_counts_that_are_all_zero_raise_the_alarm():
    assert "above zero" in collapse({"alive": 0.0}) and not collapse({"alive": 0.2})
