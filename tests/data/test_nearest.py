import numpy as np
import pytest

from clfew.data import nearest as module
from clfew.data.nearest import nearest


def brute(points, queries):
    return np.linalg.norm(queries[:, None] - points[None], axis=2)


@pytest.mark.parametrize("same", [False, True])
def test_neighbours_are_those_of_all_distances(same):
    random = np.random.default_rng(0)
    points = random.normal(size=(70, 5)).astype(np.float32)
    queries = points if same else random.normal(size=(31, 5)).astype(np.float32)
    apart, indices = nearest(points, queries, 4, same)
    expected = brute(points, queries)
    if same:
        np.fill_diagonal(expected, np.inf)
    assert np.array_equal(indices, np.argsort(expected, axis=1)[:, :4])
    assert np.allclose(apart, np.sort(expected, axis=1)[:, :4], atol=1e-3)


@pytest.mark.parametrize("same", [False, True])
def test_in_cells_what_is_nearly_the_same_is_found(monkeypatch, same):
    monkeypatch.setattr(module, "EXACT", 100)
    random = np.random.default_rng(0)
    originals = random.normal(size=(2000, 16)).astype(np.float32)
    copies = originals + random.normal(0, 0.05, originals.shape).astype(np.float32)
    if same:
        apart, indices = nearest(
            np.concatenate([originals, copies]), np.concatenate([originals, copies]), 3, same
        )
        expected = np.concatenate([np.arange(2000) + 2000, np.arange(2000)])
    else:
        apart, indices = nearest(originals, copies, 3, same)
        expected = np.arange(2000)
    assert (indices[:, 0] == expected).mean() > 0.995
    assert (np.diff(apart, axis=1) >= 0).all()
    if same:
        assert (indices != np.arange(4000)[:, None]).all()


def test_there_may_be_fewer_neighbours_than_asked_for():
    points = np.eye(3, dtype=np.float32)
    assert nearest(points, points, 10, True)[1].shape == (3, 2)
    assert nearest(points, points, 10, False)[1].shape == (3, 3)
    assert nearest(points[:1], points[:1], 10, True)[1].shape == (1, 0)
