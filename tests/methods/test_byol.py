import math

import numpy as np
import pytest
import torch
from torch import nn

from clfew.data.augment import Recipe
from clfew.methods.byol import BYOL, byol_loss, momentum_at
from clfew.methods.collapse import collapse, effective_rank, embedding_std, health
from clfew.training.batch import TrainingData
from clfew.training.loop import train
from clfew.training.plan import Plan


def slow_loss(predictions, targets):
    """|q̄ - z̄'|² with each vector divided by its length (equation 2), image by image in float64."""
    total = 0.0
    for q, z in zip(predictions.double().numpy(), targets.double().numpy(), strict=True):
        total += float(((q / np.sqrt((q**2).sum()) - z / np.sqrt((z**2).sum())) ** 2).sum())
    return total / len(predictions)


def test_the_loss_is_that_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    q, z = (torch.randn(6, 9, generator=generator) * 3 for _ in range(2))
    assert byol_loss(q, z).item() == pytest.approx(slow_loss(q, z), rel=1e-5)
    assert byol_loss(q, 5 * q).item() == pytest.approx(0, abs=1e-6)
    assert byol_loss(q, -q).item() == pytest.approx(4, rel=1e-6)


def test_both_directions_are_summed(make_method, make_batch, make_images):
    objective: BYOL = make_method("byol")
    batch = make_batch(make_images(8)[0])
    out = {"predicted": [], "target": []}
    objective.predictor.register_forward_hook(lambda m, a, y: out["predicted"].append(y.detach()))
    objective.target.register_forward_hook(lambda m, a, y: out["target"].append(y))
    loss, _ = objective.loss(batch)
    q, z = out["predicted"], out["target"]
    assert loss.item() == pytest.approx(slow_loss(q[0], z[1]) + slow_loss(q[1], z[0]), rel=1e-4)
    assert not z[0].requires_grad and not torch.equal(z[0], z[1])


def test_the_momentum_rises_by_a_cosine_from_its_start_to_one():
    assert momentum_at(0, 0.97) == pytest.approx(0.97) and momentum_at(1, 0.97) == pytest.approx(1)
    assert momentum_at(0.5, 0.97) == pytest.approx(0.985)
    assert momentum_at(0.25, 0.9) == pytest.approx(1 - 0.1 * (math.cos(math.pi / 4) + 1) / 2)


def test_the_target_is_a_moving_average_of_encoder_and_projector(make_method):
    objective: BYOL = make_method("byol")
    before = [p.clone() for p in objective.target.parameters()]
    with torch.no_grad():
        for p in [*objective.encoder.parameters(), *objective.projector.parameters()]:
            p.add_(1)
    objective.after_step(0.5)
    step = 1 - momentum_at(0.5)
    for old, new in zip(before, objective.target.parameters(), strict=True):
        torch.testing.assert_close(new, old + step)


def test_the_targets_batchnorm_has_statistics_of_its_own_and_gets_no_gradient(
    make_method, make_batch, make_images
):
    objective: BYOL = make_method("byol").train()
    norm = next(m for m in objective.target.modules() if isinstance(m, nn.BatchNorm2d))
    before = norm.running_mean.clone()
    loss, _ = objective.loss(make_batch(make_images(8)[0]))
    loss.backward()
    assert not torch.equal(norm.running_mean, before)
    assert all(p.grad is None for p in objective.target.parameters())
    assert all(p.grad is not None for p in objective.predictor.parameters())
    # Buffers are in the state, so a resumed run has them.
    assert any(name.startswith("target.") and "running_mean" in name for name in objective.state_dict())


def test_the_second_view_is_solarised_and_the_first_is_not(make_method, make_batch):
    objective: BYOL = make_method("byol")
    white = np.full((64, 24, 24, 3), 250, np.uint8)
    first, second = objective.views(make_batch(white))
    dark = [float((v.mean((1, 2, 3)) < 0.2).float().mean()) for v in (first, second)]
    assert dark[0] == 0 and 0.05 < dark[1] < 0.45


@pytest.mark.parametrize("blur", [0.0, 0.5])
def test_the_views_are_those_of_table_6(make_method, blur):
    objective: BYOL = make_method("byol", recipe=Recipe(jitter=1.0, blur=blur))
    for recipe in (objective.recipe, objective.second):
        # Brightness and contrast 0.4, saturation 0.2, hue 0.1.
        assert (0.8 * recipe.jitter, 0.8 * recipe.jitter * recipe.saturation) == (0.4, 0.2)
        assert 0.2 * recipe.jitter == pytest.approx(0.1) and recipe.grey == 0.2
    blurs = (objective.recipe.blur, objective.second.blur)
    assert blurs == ((1.0, 0.1) if blur else (0, 0))
    assert (objective.recipe.solarise, objective.second.solarise) == (0, 0.2)


@pytest.mark.slow
def test_a_run_raises_no_alarm_and_embeddings_in_one_direction_do(make_method, make_images):
    images, _ = make_images(64)
    objective: BYOL = make_method("byol")
    plan = Plan(60, 32, "adamw", 3e-3, 0.0, 5, 0, "fp32")
    data = TrainingData(images, np.ones(64, np.float32), np.arange(64))
    rows = []
    train(objective, data, plan, torch.device("cpu"), rows.append)
    assert not collapse(rows[-1])
    z = torch.ones(32, 16) + 1e-3 * torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    assert "collapsed" in collapse({"spread": embedding_std(z).item()})
    line = torch.linspace(-1, 1, 64)[:, None] * torch.ones(16)
    on_a_line = health(line + 1e-3 * torch.randn(64, 16, generator=torch.Generator().manual_seed(1)))
    assert on_a_line["spread"] > 0.5 and "line" in collapse({k: v.item() for k, v in on_a_line.items()})
    assert "directions" not in health(line[:31])
    everywhere = torch.randn(500, 16, generator=torch.Generator().manual_seed(0))
    assert embedding_std(everywhere).item() == pytest.approx(1, abs=0.05)


def test_the_effective_rank_is_the_participation_ratio_of_the_covariance():
    z = torch.randn(100, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 16)
    unit = (z / z.norm(dim=1, keepdim=True)).double().numpy()
    eigenvalues = np.linalg.eigvalsh(np.cov(unit.T))
    slow = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    assert effective_rank(z).item() == pytest.approx(slow, rel=1e-4)
    assert effective_rank(torch.ones(40, 16)).item() < 1
