import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clfew.data.augment import Recipe
from clfew.methods.jigsaw import PUZZLES, SHIFT, Jigsaw, permutation_set
from clfew.methods.patches import patches, standardised


def slow_permutations(tiles, count, seed=0):
    """Algorithm 1, with all distances computed anew each time."""
    left = list(itertools.permutations(range(tiles)))
    chosen = [left.pop(int(np.random.default_rng(seed).integers(len(left))))]
    while len(chosen) < count:
        means = [np.mean([sum(a != b for a, b in zip(p, c, strict=True)) for c in chosen]) for p in left]
        chosen.append(left.pop(int(np.argmax(means))))
    return np.array(chosen)


def test_permutations_are_chosen_as_in_the_papers_algorithm():
    assert permutation_set(4, 12).tolist() == slow_permutations(4, 12).tolist()


def test_a_hundred_permutations_of_nine_tiles_are_far_apart_and_the_same_every_time():
    found = permutation_set(9, 100)
    assert found.shape == (100, 9) and len(np.unique(found, axis=0)) == 100
    assert (np.sort(found, axis=1) == np.arange(9)).all()
    distances = [(a != b).sum() for a, b in itertools.combinations(found, 2)]
    assert np.mean(distances) > 7.95  # Of unrelated ones, 8.
    np.testing.assert_array_equal(found, permutation_set(9, 100))


def test_two_by_two_tiles_in_every_order_below_48_pixels(make_method):
    small, large = make_method("jigsaw", size=24), make_method("jigsaw", size=64)
    assert small.grid == 2 and sorted(map(tuple, small.orders.tolist())) == sorted(
        itertools.permutations(range(4))
    )
    assert large.grid == 3 and large.orders.shape == (100, 9)


def test_tiles_come_from_their_cells_with_room_to_move(make_method, make_batch):
    objective: Jigsaw = make_method("jigsaw", size=64)
    side = objective.grid * objective.cell
    positions = torch.arange(side * side, dtype=torch.float32).view(1, 1, side, side)
    image = positions.expand(2, 3, -1, -1)
    corners = torch.tensor([[[0, 0], [3, objective.cell + 2]], [[1, 1], [5, 4]]])
    cut = patches(image, corners, 4)
    assert cut.shape == (2, 2, 3, 4, 4)
    for n, t in itertools.product(range(2), range(2)):
        y, x = corners[n, t]
        torch.testing.assert_close(cut[n, t], image[n, :, y : y + 4, x : x + 4])
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    tiles = objective.tiles(make_batch(images))
    assert tiles.shape == (6, 9, 3, objective.tile, objective.tile)
    assert objective.cell - objective.tile >= 0.2 * objective.cell


def test_neighbouring_tiles_do_not_always_touch(make_method, make_batch):
    """An edge that continues would give the order away, so tiles move within their cells."""
    objective: Jigsaw = make_method("jigsaw", size=64)
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    images = np.broadcast_to(ramp[None, None, :, None], (16, 64, 64, 3)).copy()
    tiles = objective.tiles(make_batch(images)).mean((2, 3))  # (B, 9, columns)
    gaps = tiles[:, 1, 0] - tiles[:, 0, -1]
    step = (tiles[:, 0, -1] - tiles[:, 0, 0]).abs() / (objective.tile - 1)
    assert (gaps.abs() / step).std() > 1


def test_mean_and_standard_deviation_of_a_tile_do_not_matter():
    tiles = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.4
    changed = tiles * torch.tensor([0.5, 1.5, 2.0]).view(1, 3, 1, 1) + 0.2
    torch.testing.assert_close(standardised(tiles), standardised(changed), rtol=5e-3, atol=5e-3)
    assert standardised(tiles).mean((2, 3)).abs().max() < 1e-5
    torch.testing.assert_close(
        standardised(tiles).std((2, 3), correction=0), torch.ones(5, 3), rtol=2e-3, atol=0
    )


def test_two_views_of_three_have_no_colour(make_method, make_batch):
    images = np.random.default_rng(0).integers(0, 256, (300, 24, 24, 3), dtype=np.uint8)
    tiles = make_method("jigsaw").tiles(make_batch(images))
    grey = (tiles - tiles.mean(2, keepdim=True)).abs().amax((1, 2, 3, 4)) < 1e-3
    assert 0.58 < grey.float().mean() < 0.74


def test_channels_move_apart_at_random_so_that_fringes_do_not_show_a_tiles_place(
    make_method, make_batch
):
    """A lens moves red and blue apart, the more the farther from the middle (chromatic aberration)."""
    objective: Jigsaw = make_method("jigsaw", size=64, recipe=Recipe(crop_area=1.0, flip=False))
    ramp = np.linspace(0, 255, 64)[None, :] + np.zeros((64, 1))
    for across, axis in ((ramp, -1), (ramp.T, -2)):
        images = np.broadcast_to(across[None, :, :, None], (300, 64, 64, 3)).astype(np.uint8)
        tiles = objective.tiles(make_batch(images))  # (B, 9, 3, S, S), channels differ in moves only.
        inner = tiles[..., 2:-2, 2:-2]
        step = inner.diff(dim=axis).mean()
        moved = ((inner[:, :, [0, 2]] - inner[:, :, 1:2]).mean((3, 4)) / step).round()
        has_moved = (moved != 0).flatten(1).any(1)
        assert 0.2 < has_moved.float().mean() < 0.5  # Of the third that has colour.
        coloured = moved[has_moved]
        reach = max(1, round(SHIFT * objective.tile))
        assert set(coloured[:, 4].flatten().tolist()) == set(range(-reach, reach + 1))
        assert (coloured[:, :, 0] != coloured[:, :, 1]).float().mean() > 0.4
        # Moves do not depend on a tile's place, except at the rim, where there is less room to move.
        assert coloured.mean((0, 2)).abs().max() < 0.35


def test_grey_tiles_keep_their_channels_together(make_method, make_batch, make_images):
    tiles = make_method("jigsaw").tiles(make_batch(make_images(100)[0]))
    apart = (tiles - tiles.mean(2, keepdim=True)).abs().amax((1, 2, 3, 4))
    assert ((apart < 1e-3) | (apart > 1e-2)).all() and 0.5 < (apart < 1e-3).float().mean() < 0.8


def test_the_loss_is_cross_entropy_over_the_orders_that_tiles_are_shown_in(
    make_method, make_batch, make_images
):
    objective: Jigsaw = make_method("jigsaw").eval()
    batch = make_batch(make_images(5)[0])
    loss, extras = objective.loss(batch)
    tiles, orders = objective.tiles(batch), objective.puzzles(batch)
    assert orders.shape == (5, PUZZLES)
    total, solved = 0.0, 0
    with torch.no_grad():
        for image, puzzles in zip(tiles, orders, strict=True):
            for puzzle in puzzles:
                shown = image[objective.orders[puzzle]]  # Place i holds tile orders[i].
                features = objective.encoder.backbone(standardised(shown)).flatten(1)
                logits = objective.of_order(objective.of_tile(features).flatten()[None])
                total += F.cross_entropy(logits.double(), puzzle[None]).item()
                solved += int(logits.argmax() == puzzle)
    assert loss.item() == pytest.approx(total / orders.numel(), rel=1e-4)
    assert extras["solved"].item() == pytest.approx(solved / orders.numel(), abs=1e-6)


def test_a_solved_puzzle_is_the_image_again(make_method, make_batch, make_images, monkeypatch):
    objective: Jigsaw = make_method("jigsaw").eval()
    batch = make_batch(make_images(4)[0])
    truth = objective.puzzles(batch)[:, 0]
    right = F.one_hot(truth, len(objective.orders)).float()
    monkeypatch.setattr(objective, "logits", lambda tiles, orders: right)
    (_, shown), (_, solved) = objective.pictures(batch)
    torch.testing.assert_close(solved, objective.arranged(objective.tiles(batch)))
    assert not torch.equal(shown, solved)
