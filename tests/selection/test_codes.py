"""Codes: products that are the same however they are summed, and near to the features' cosines."""

import numpy as np
import pytest
import torch

from clfew.selection.codes import AXES, SCALE, STEPS, as_numbers, codes_of, kernel, projection_of


def features(count=300, dim=400, seed=0):
    """Features that vary along few axes most, as those of networks do."""
    chance = np.random.default_rng(seed)
    scales = 1 / np.arange(1, dim + 1)
    turn = np.linalg.qr(chance.normal(size=(dim, dim)))[0]
    return ((chance.normal(size=(count, dim)) * scales) @ turn + 3).astype(np.float32)


def cosines(inputs):
    unit = inputs / np.linalg.norm(inputs, axis=1, keepdims=True)
    return unit @ unit.T


@pytest.mark.parametrize("dim", [1, 5, 400])
def test_products_of_codes_are_the_cosines_of_standardised_features(dim):
    inputs = features(dim=dim)
    standardised = (inputs - inputs.mean(0)) / (inputs.std(0) + 1e-6)
    codes = codes_of(inputs, projection_of(inputs, False))
    assert codes.dtype == np.int16 and codes.shape == (300, min(dim, AXES))
    found = codes.astype(np.float64) @ codes.T.astype(np.float64) / SCALE**2
    apart = np.abs(found - cosines(standardised))
    # The axes that are left out are those along which the images vary least.
    assert np.median(apart) < (0.05 if dim > AXES else 1e-3)


def test_products_are_exact_in_any_order():
    codes = codes_of(features(), projection_of(features(), False))
    exact = codes.astype(np.int64) @ codes.astype(np.int64).T
    order = np.random.default_rng(0).permutation(codes.shape[1])
    numbers = as_numbers(codes)
    assert ((numbers @ numbers.T).numpy() == exact).all()
    assert ((numbers[:, order] @ numbers[:, order].T).numpy() == exact).all()
    assert np.abs(exact).max() < 2**23


def test_a_feature_that_never_varies_and_an_image_of_zeros_do_no_harm():
    inputs = features(50, 8)
    inputs[:, 3], inputs[7] = 1.0, inputs.mean(0)
    codes = codes_of(inputs, projection_of(inputs, False))
    assert np.isfinite(codes.astype(float)).all()
    near = kernel(as_numbers(codes), as_numbers(codes), 4)
    assert float(near.min()) >= 0 and float(near.max()) <= STEPS


@pytest.mark.parametrize("power", [1, 2, 4, 16, 64])
def test_the_kernel_is_near_to_a_gaussian_of_the_distance(power):
    codes = codes_of(features(), projection_of(features(), False))
    near = kernel(as_numbers(codes), as_numbers(codes), power).numpy()
    cosine = (codes.astype(np.float64) @ codes.T.astype(np.float64) / SCALE**2).clip(-1, 1)
    assert np.abs(near - STEPS * ((1 + cosine) / 2) ** power).max() <= 0.5 + 1e-3 * STEPS * power / 4
    assert (near == np.round(near)).all() and (near.diagonal() >= STEPS - 4 * power).all()
    close = cosine > 0.7
    gaussian = np.exp(-(2 - 2 * cosine) * power / 4)
    assert np.abs(near / STEPS - gaussian)[close].max() < 0.12


def test_rounding_of_features_is_hidden():
    """Features differ by rounding between processors: the codes hardly do."""
    inputs = features()
    projection = projection_of(inputs, False)
    noise = 1 + 1e-6 * np.random.default_rng(1).normal(size=inputs.shape)
    other, codes = (
        codes_of((inputs * noise).astype(np.float32), projection),
        codes_of(inputs, projection),
    )
    assert (other != codes).mean() < 0.02 and np.abs(other - codes).max() <= 1


def test_threads_do_not_matter():
    numbers = as_numbers(codes_of(features(), projection_of(features(), False)))
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(kernel(numbers, numbers, 8))
    torch.set_num_threads(before)
    assert torch.equal(*found)
