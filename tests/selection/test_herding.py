"""MaxHerding and UHerding against slow transcriptions of the papers."""

import numpy as np
import pytest
import torch

from clfew.selection import herding
from clfew.selection.codes import STEPS, as_numbers, kernel
from clfew.selection.herding import WEIGHTS, herded, reference_of
from clfew.selection.pool import Turns


def clusters(sizes, dim=24, seed=0, width=0.5):
    chance = np.random.default_rng(seed)
    centres = chance.normal(size=(len(sizes), dim))
    parts = [c + width * chance.normal(size=(n, dim)) for c, n in zip(centres, sizes, strict=True)]
    vectors = np.concatenate(parts)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.round(2048 * vectors).astype(np.int16)


def alone(codes):
    return Turns(np.arange(len(codes)), np.array([], np.int64))


def slow(candidates, reference, labelled, budget, power, weights=None):
    """MaxHerding, algorithm 1, and UHerding, equation 5: at each step the sums of all candidates."""
    near = kernel(as_numbers(candidates), as_numbers(reference), power).numpy().astype(np.int64)
    known = kernel(as_numbers(labelled), as_numbers(reference), power).numpy().astype(np.int64)
    weights = np.ones(len(reference), np.int64) if weights is None else weights
    chosen = []
    for _ in range(budget):
        covered = np.concatenate([known, near[chosen], np.zeros((1, len(reference)))]).max(0)
        sums = [
            -1 if i in chosen else int((weights * (np.maximum(near[i], covered) - covered)).sum())
            for i in range(len(candidates))
        ]
        chosen.append(int(np.argmax(sums)))
    return chosen


@pytest.mark.parametrize("power", [1, 4, 16])
@pytest.mark.parametrize("has_labels", [False, True])
def test_it_chooses_what_the_paper_chooses(power, has_labels):
    codes = clusters([120, 60, 20, 8, 2])
    labelled = codes[[3, 130]] if has_labels else codes[:0]
    found = herded(codes, reference_of(codes, labelled, power), 25, alone(codes))
    assert found == slow(codes, codes, labelled, 25, power)


def test_uncertainty_weighs_what_is_covered():
    codes, chance = clusters([80, 80, 40]), np.random.default_rng(0)
    uncertainty = chance.random(len(codes))
    weights = np.round(WEIGHTS * uncertainty).astype(np.int64)
    reference = reference_of(codes, codes[:2], 4, uncertainty)
    assert herded(codes, reference, 15, alone(codes)) == slow(codes, codes, codes[:2], 15, 4, weights)
    # Where nothing is uncertain but one cluster, the images come from it.
    only = np.zeros(len(codes))
    only[160:] = 1
    found = herded(codes, reference_of(codes, codes[:0], 4, only), 5, alone(codes))
    assert min(found) >= 160


def test_the_reference_may_be_a_sample():
    codes = clusters([90, 60, 30])
    sample = codes[::3]
    found = herded(codes, reference_of(sample, codes[:0], 4), 12, alone(codes))
    assert found == slow(codes, sample, codes[:0], 12, 4)


@pytest.mark.parametrize("name, value", [("_BLOCK", 13), ("_AT_ONCE", 700)])
def test_sizes_of_parts_do_not_matter(name, value, monkeypatch):
    codes = clusters([120, 60, 20])
    expected = herded(codes, reference_of(codes, codes[:1], 4), 20, alone(codes))
    monkeypatch.setattr(herding, name, value)
    assert herded(codes, reference_of(codes, codes[:1], 4), 20, alone(codes)) == expected


def test_threads_do_not_matter():
    codes, before, found = clusters([200, 100]), torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(herded(codes, reference_of(codes, codes[:0], 4), 20, alone(codes)))
    torch.set_num_threads(before)
    assert found[0] == found[1]


def test_every_cluster_is_covered_before_one_is_twice():
    codes = clusters([100, 80, 60, 40, 30], width=0.2)
    cluster = np.repeat(np.arange(5), [100, 80, 60, 40, 30])
    found = herded(codes, reference_of(codes, codes[:0], 4), 5, alone(codes))
    assert sorted(cluster[found]) == [0, 1, 2, 3, 4]


def test_copies_add_nothing_and_all_can_be_asked_for():
    codes = np.repeat(clusters([3], width=1.0), 4, axis=0)
    found = herded(codes, reference_of(codes, codes[:0], 4), 12, alone(codes))
    assert sorted(found) == list(range(12)) and len({i // 4 for i in found[:3]}) == 3
    assert herded(codes, reference_of(codes, codes[:0], 4), 99, alone(codes)) == found
    assert herded(codes[:0], reference_of(codes, codes[:0], 4), 3, alone(codes[:0])) == []


def test_a_group_is_not_asked_twice_before_all_have_had_their_turn():
    codes = clusters([40, 40, 40], width=0.2)
    groups = np.repeat(np.arange(12), 10)
    turns = Turns(groups, np.array([5]))
    found = herded(codes, reference_of(codes, codes[:0], 4), 24, turns)
    assert sorted(groups[found[:11]]) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert sorted(groups[found[11:23]]) == list(range(12))


def test_the_kernel_covers_at_most_all():
    codes = clusters([30])
    reference = reference_of(codes, codes, 4)
    assert float(reference.covered.max()) <= STEPS and float(reference.covered.min()) >= STEPS - 20
