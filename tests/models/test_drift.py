import numpy as np
import pytest

from clfew.models.drift import alarm, drift, effective_rank, neighbours_kept


def features(count=200, dims=20, seed=0):
    return np.random.default_rng(seed).normal(size=(count, dims))


def test_turning_scaling_and_moving_features_changes_no_neighbour():
    before = features()
    turn, _ = np.linalg.qr(features(20, 20, 1))
    assert neighbours_kept(before, 3 * before @ turn + 7) == 1.0
    assert alarm(drift(before, 3 * before @ turn + 7)) == ""


def test_neighbours_kept_agrees_with_two_loops():
    before, after = features(30, 4), features(30, 4) + 0.5 * features(30, 4, 2)
    kept = []
    for i in range(30):
        near = []
        for f in (before, after):
            f = f - f.mean(0)
            cosine = [f[i] @ f[j] / np.linalg.norm(f[i]) / np.linalg.norm(f[j]) for j in range(30)]
            cosine[i] = -2
            near.append(set(np.argsort(cosine)[-10:]))
        kept.append(len(near[0] & near[1]) / 10)
    assert neighbours_kept(before, after) == pytest.approx(np.mean(kept))


def test_effective_rank_is_the_number_of_independent_features():
    assert effective_rank(features(5000, 8)) == pytest.approx(8, rel=0.02)
    one = np.outer(np.arange(100.0), np.ones(8))
    assert effective_rank(one) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("images", [16, 40, 60, 100, 500])
def test_features_that_have_nothing_in_common_raise_the_alarm(images):
    """Among few images, many neighbours are the same by chance."""
    before, other = features(images), features(images, seed=1)
    found = drift(before, other)
    assert found["kept_by_chance"] == pytest.approx(found["neighbours_kept"], abs=0.08)
    assert "neighbours" in alarm(found)
    assert alarm(drift(before, before + 0.1 * other)) == ""


def test_collapse_raises_the_alarm():
    before = features(500, 200)
    direction = np.arange(500.0)[:, None] @ np.ones((1, 200))
    found = drift(before, direction + 1e-3 * before)
    assert found["rank_ratio"] < 0.05 and alarm(found)
    assert "effective rank" in alarm({"neighbours_kept": 0.9, "rank_ratio": 0.01})


def test_two_images_are_compared_too():
    assert neighbours_kept(features(2), features(2)) == 1.0
