import itertools
import math

import pytest
import torch
from torch import nn

from clfew.training.optim import (
    LARGE_BATCH,
    LARS,
    SHORT_RUN_STEPS,
    SMALL_NETWORK,
    Muon,
    build_optimizer,
    choose_pretraining,
    learning_rate,
    orthogonalised,
    parameter_groups,
)


def slow_lars(weight, gradients, lr, momentum=0.9, decay=0.0, eeta=0.001, adapts=True):
    """lars_optimizer.py of google-research/simclr with classic_momentum, one weight at a time."""
    velocity = torch.zeros_like(weight)
    for gradient in gradients:
        if adapts:  # Excluded names neither decay nor adapt in that file.
            gradient = gradient + decay * weight
        trust_ratio = 1.0
        if adapts:
            w_norm, g_norm = math.sqrt((weight**2).sum()), math.sqrt((gradient**2).sum())
            trust_ratio = eeta * w_norm / g_norm if w_norm > 0 and g_norm > 0 else 1.0
        velocity = momentum * velocity + lr * trust_ratio * gradient
        weight = weight - velocity
    return weight


def run_lars(weight, gradients, lr, decay, adapts=True):
    parameter = nn.Parameter(weight.clone())
    optimizer = LARS([{"params": [parameter], "weight_decay": decay, "adapts": adapts}], lr)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


def example():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, generator=generator)
    return weight, [torch.randn(4, 3, generator=generator) for _ in range(4)]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lars_takes_the_same_steps_as_simclrs_own_optimizer(decay):
    weight, gradients = example()
    expected = slow_lars(weight, gradients, 5.0, decay=decay)
    torch.testing.assert_close(run_lars(weight, gradients, 5.0, decay), expected)


def test_lars_is_plain_momentum_where_it_does_not_adapt():
    weight, gradients = example()
    expected = slow_lars(weight, gradients, 0.1, adapts=False)
    torch.testing.assert_close(run_lars(weight, gradients, 0.1, 0.0, adapts=False), expected)
    reference = nn.Parameter(weight.clone())
    sgd = torch.optim.SGD([reference], 0.1, momentum=0.9)
    for gradient in gradients:
        reference.grad = gradient.clone()
        sgd.step()
    torch.testing.assert_close(reference.detach(), expected)


@pytest.mark.parametrize("zero", ["weight", "gradient"])
def test_lars_has_a_trust_ratio_of_one_where_a_norm_is_zero(zero):
    weight, (gradient, *_) = example()
    weight = weight * (zero != "weight")
    gradient = gradient * (zero != "gradient")
    result = run_lars(weight, [gradient], 0.5, 0.0)
    torch.testing.assert_close(result, weight - 0.5 * gradient)


def test_lars_skips_parameters_without_a_gradient():
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = LARS([{"params": [used, unused]}], 1.0)
    used.grad = torch.ones(2, 2)
    optimizer.step()
    assert torch.equal(unused, torch.ones(2, 2)) and not torch.equal(used, torch.ones(2, 2))


def test_the_schedule_warms_up_linearly_and_ends_at_zero():
    rates = [learning_rate(step, 100, 10, 2.0) for step in range(101)]
    assert rates[:10] == pytest.approx([2.0 * (i + 1) / 10 for i in range(10)])
    assert rates[10] == 2.0 == max(rates)
    assert rates[55] == pytest.approx(1.0)  # Half-way along the cosine.
    assert rates[100] == pytest.approx(0.0, abs=1e-12)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    for step in (20, 77):
        assert rates[step] == pytest.approx(1 + math.cos(math.pi * (step - 10) / 90))


def test_the_schedule_without_a_warm_up_begins_at_the_peak():
    assert learning_rate(0, 10, 0, 3.0) == 3.0


def test_the_schedule_of_a_run_of_one_step_is_not_zero():
    assert learning_rate(0, 1, 1, 3.0) == 3.0


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def test_batchnorm_and_biases_neither_decay_nor_adapt():
    groups = parameter_groups(network(), 0.3)
    adapted = [p for g in groups if g["adapts"] for p in g["params"]]
    excluded = [p for g in groups if not g["adapts"] for p in g["params"]]
    assert sorted(p.ndim for p in adapted) == [2, 4]
    assert sorted(tuple(p.shape) for p in excluded) == [(2,), (4,), (4,), (4,)]
    assert all(g["weight_decay"] == (0.3 if g["adapts"] else 0.0) for g in groups)


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw", "muon"])
def test_a_step_without_gradient_shrinks_only_what_decays(name):
    module = network()
    for parameter in module.parameters():
        nn.init.constant_(parameter, 0.5)
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(name, parameter_groups(module, 0.5), 0.1).step()
    for parameter in module.parameters():
        shrunk = bool((parameter < 0.5).all())
        assert shrunk == (parameter.ndim > 1)


def test_groups_carry_the_scale_of_each_name_and_leave_out_frozen_parameters():
    module = network()
    module[0].weight.requires_grad = False
    groups = parameter_groups(module, 0.1, lambda name: 0.1 if name.startswith("0.") else 1.0)
    scales = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    assert id(module[0].weight) not in scales
    assert scales[id(module[0].bias)] == 0.1
    assert scales[id(module[2].weight)] == scales[id(module[1].weight)] == 1.0
    assert len(scales) == len(list(module.parameters())) - 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [("lars", LARS), ("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW), ("muon", Muon)],
)
def test_each_name_builds_its_optimizer(name, kind):
    assert type(build_optimizer(name, parameter_groups(network(), 0.1), 0.1)) is kind


def test_auto_takes_lars_for_large_batches_muon_for_small_networks_and_adamw_for_short_runs():
    large = SMALL_NETWORK + 1
    assert choose_pretraining(LARGE_BATCH, 10, 10)[0] == "lars"
    assert choose_pretraining(LARGE_BATCH - 1, 10**6, SMALL_NETWORK)[0] == "muon"
    assert choose_pretraining(LARGE_BATCH - 1, SHORT_RUN_STEPS - 1, large)[0] == "adamw"
    assert choose_pretraining(LARGE_BATCH - 1, SHORT_RUN_STEPS, large)[0] == "sgd"
    name, rate, decay, reason = choose_pretraining(4096, 10, large, "sgd")
    assert (name, rate, decay, reason) == ("sgd", pytest.approx(0.06 * 16), 5e-4, "as asked for")
    assert choose_pretraining(4096, 10, large)[1] == pytest.approx(0.075 * 64)


@pytest.mark.parametrize("shape", [(8, 8), (6, 40), (40, 6), (1, 9)])
def test_orthogonalised_is_u_times_v_of_the_singular_value_decomposition(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalised(matrix)
    turned = u.T @ result @ v.T
    on_diagonal = turned.diagonal()
    torch.testing.assert_close(turned, torch.diag(on_diagonal))
    # Singular values below a hundredth of the norm take more than five steps.
    large = values > 0.05 * matrix.norm()
    assert ((on_diagonal[large] > 0.65) & (on_diagonal[large] < 1.25)).all()
    torch.testing.assert_close(orthogonalised(matrix * 1000), result)


@pytest.mark.parametrize("shape", [(64, 64), (32, 288), (256, 256)])
@pytest.mark.parametrize("rank", [3, 32])
def test_orthogonalised_on_the_gram_matrix_equals_the_steps_on_the_matrix(shape, rank):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(side, rank, generator=generator) for side in shape)
    matrix = left @ right.T
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    torch.testing.assert_close(orthogonalised(matrix), x.float(), atol=1e-3, rtol=0)


def test_muon_moves_weights_along_orthogonalised_nesterov_momentum():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 2, 3, 3))
    optimizer = Muon([{"params": [weight], "weight_decay": 0.5}], 0.1)
    expected, momentum = weight.detach().clone(), torch.zeros(6, 18)
    for _ in range(3):
        weight.grad = torch.randn_like(weight)
        gradient = weight.grad.reshape(6, 18)
        momentum = 0.95 * momentum + 0.05 * gradient
        direction = orthogonalised(0.05 * gradient + 0.95 * momentum)
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * direction.view_as(weight)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), expected)


def test_muon_scales_tall_matrices_up():
    weight = nn.Parameter(torch.zeros(32, 2))
    weight.grad = torch.randn(32, 2, generator=torch.Generator().manual_seed(0))
    Muon([{"params": [weight]}], 0.1).step()
    direction = orthogonalised(weight.grad)
    torch.testing.assert_close(weight.detach(), -0.1 * 4 * direction)


def test_muon_takes_adams_steps_where_weights_do_not_adapt():
    torch.manual_seed(0)
    weight, reference = nn.Parameter(torch.randn(5)), nn.Parameter(torch.empty(5))
    reference.data.copy_(weight)
    muon = Muon([{"params": [weight], "adapts": False}], 0.03)
    adam = torch.optim.Adam([reference], 0.003, betas=(0.9, 0.99))
    for _ in range(4):
        weight.grad = torch.randn(5)
        reference.grad = weight.grad.clone()
        muon.step()
        adam.step()
        torch.testing.assert_close(weight, reference)
