"""What may be asked for: pictures once, groups in turn; and the random sample."""

import numpy as np
from scipy import stats

from clfew.selection.pool import Pool, Turns, pool_of, random_sample, taken_in_order, to_cover

NONE = np.array([], np.int64)


def names(count):
    return [f"{i:05d}.jpg" for i in range(count)]


def test_a_picture_is_there_once_and_the_order_depends_on_names_alone():
    pictures = np.array([0, 1, 1, 3, 1, 5])
    pool = pool_of(np.arange(6), pictures, pictures, names(6))
    assert sorted(pictures[pool.images]) == [0, 1, 3, 5]
    fewer = pool_of(np.array([5, 3, 0]), pictures, pictures, names(6))
    assert fewer.images.tolist() == [i for i in pool.images if i in (0, 3, 5)]


def test_the_sample_is_random_over_groups():
    """Each group is as likely as any other, however many images it has."""
    groups = np.repeat(np.arange(20), [1, 30] * 10)
    first = np.array([np.flatnonzero(groups == g)[0] for g in groups])
    pool = pool_of(np.arange(len(groups)), np.arange(len(groups)), first, names(len(groups)))
    free, counts = np.ones(len(pool), bool), np.zeros(20)
    for seed in range(400):
        rows = random_sample(pool, free, 5, seed)
        drawn = groups[pool.images[rows]]
        assert len(set(drawn)) == 5
        counts[drawn] += 1
    # Each is drawn by a quarter of the samples: the variance is that of drawing without replacement.
    score = ((counts - 100) ** 2).sum() / (400 * 0.25 * 0.75)
    assert stats.chi2.sf(score * 19 / 20, 19) > 0.001


def test_a_larger_sample_holds_the_smaller_one():
    pool = pool_of(np.arange(100), np.arange(100), np.arange(100), names(100))
    free = np.ones(100, bool)
    assert random_sample(pool, free, 50, 3)[:20].tolist() == random_sample(pool, free, 20, 3).tolist()
    assert random_sample(pool, free, 20, 4).tolist() != random_sample(pool, free, 20, 3).tolist()
    free[:90] = False
    assert len(random_sample(pool, free, 50, 3)) == 10


def test_the_random_choice_and_the_test_sample_are_independent():
    """Under one seed, the two orders must not begin with the same images."""
    pool = pool_of(np.arange(2000), np.arange(2000), np.arange(2000), names(2000))
    sample = random_sample(pool, np.ones(2000, bool), 400, 0)
    assert 40 < len(np.intersect1d(sample, pool.order(0)[:400])) < 120


def test_to_cover_takes_of_each_group_alike():
    groups = np.array([7, 7, 7, 7, 1, 1, 2])
    assert sorted(groups[to_cover(groups, 3)]) == [1, 2, 7]
    assert sorted(groups[to_cover(groups, 5)]) == [1, 1, 2, 7, 7]
    assert sorted(to_cover(groups, 99)) == list(range(7))


def test_turns():
    turns = Turns(np.array([0, 0, 1, 1, 2]), np.array([2]))
    assert turns.open.tolist() == [True, True, True, True, False]
    turns.take(1)
    assert turns.open.tolist() == [False, False, True, True, False]
    turns.take(2)  # All groups have had their turn.
    assert turns.open.tolist() == [True, False, False, True, True]


def test_taken_in_order():
    groups = np.array([0, 0, 0, 1, 2])
    assert taken_in_order(np.arange(5), 4, Turns(groups, NONE)) == [0, 3, 4, 1]
    assert taken_in_order(np.arange(5), 9, Turns(groups, NONE)) == [0, 3, 4, 1, 2]
    assert taken_in_order(np.arange(0), 9, Turns(groups[:0], NONE)) == []
    assert isinstance(pool_of(NONE, NONE, NONE, []), Pool)
