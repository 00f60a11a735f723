"""TypiClust against a slow transcription, and its k-means."""

import numpy as np
import pytest
import torch

from clfew.selection import clusters
from clfew.selection.clusters import MOST_CLUSTERS, NEIGHBOURS, SMALLEST, typical
from clfew.selection.codes import SCALE
from clfew.selection.pool import Turns


def made(sizes, dim=24, seed=0, width=0.3):
    chance = np.random.default_rng(seed)
    centres = chance.normal(size=(len(sizes), dim))
    parts = [c + width * chance.normal(size=(n, dim)) for c, n in zip(centres, sizes, strict=True)]
    vectors = np.concatenate(parts)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.round(SCALE * vectors).astype(np.int16)


def alone(codes):
    return Turns(np.arange(len(codes)), np.array([], np.int64))


def choose(codes, labelled, budget, seed=0, turns=None):
    sample = np.arange(len(codes))
    return typical(codes, sample, labelled, budget, seed, turns or alone(codes))


def slow(codes, labelled, budget, seed):
    """Algorithm 1 of the paper with the same clusters."""
    both = np.concatenate([codes, labelled])
    count = min(len(labelled) + budget, MOST_CLUSTERS)
    centres = clusters._centres(both, count, np.random.default_rng(seed))
    product = both.astype(np.int64) @ centres.T
    of = product[: len(codes)].argmax(1)
    labels = np.bincount(product[len(codes) :].argmax(1), minlength=count)
    sizes, chosen = np.bincount(of, minlength=count), []
    for _ in range(budget):
        left = [
            k for k in range(count) if any(of[i] == k and i not in chosen for i in range(len(codes)))
        ]
        k = min(left, key=lambda k: (sizes[k] <= SMALLEST, labels[k], -sizes[k], k))
        members = np.flatnonzero(of == k)
        apart = np.zeros((len(members), len(members)))
        for a, i in enumerate(members):
            for b, j in enumerate(members):
                dot = float(codes[i].astype(np.int64) @ codes[j].astype(np.int64)) / SCALE**2
                apart[a, b] = np.round(1024 * np.sqrt(max(0.0, 2 - 2 * dot))) if a != b else np.inf
        near = min(NEIGHBOURS, len(members) // 2)
        mean = np.sort(apart, 1)[:, :near].sum(1)
        best = next(members[a] for a in np.argsort(mean, kind="stable") if members[a] not in chosen)
        chosen.append(int(best))
        labels[k] += 1
    return chosen


@pytest.mark.parametrize("has_labels", [False, True])
def test_it_chooses_what_the_paper_chooses(has_labels):
    codes = made([50, 40, 30, 20, 7])
    labelled = codes[[2, 60]] if has_labels else codes[:0]
    assert choose(codes, labelled, 12) == slow(codes, labelled, 12, 0)


def test_it_takes_one_of_each_cluster_the_largest_first():
    sizes = [90, 60, 40, 20]
    codes, cluster = made(sizes), np.repeat(np.arange(4), sizes)
    assert cluster[choose(codes, codes[:0], 4)].tolist() == [0, 1, 2, 3]
    # Clusters that have a label come last.
    assert cluster[choose(codes, codes[[0, 95]], 2)].tolist() == [2, 3]


def test_copies_make_no_empty_cluster_and_no_division_by_zero():
    codes = np.repeat(made([2], width=1.0), 30, axis=0)
    found = choose(codes, codes[:0], 10)
    assert len(set(found)) == 10
    assert len(set(choose(codes, codes[:0], 60))) == 60


def test_small_pools():
    codes = made([3])
    assert sorted(choose(codes, codes[:0], 3)) == [0, 1, 2]
    assert choose(codes[:1], codes[:0], 1) == [0]
    assert sorted(choose(codes, codes[:0], 99)) == [0, 1, 2]


def test_threads_and_parts_do_not_matter(monkeypatch):
    codes, before = made([200, 100, 50]), torch.get_num_threads()
    expected = choose(codes, codes[:3], 20)
    monkeypatch.setattr(clusters, "_CHUNK", 17)
    torch.set_num_threads(1 if before > 1 else 2)
    assert choose(codes, codes[:3], 20) == expected
    torch.set_num_threads(before)


def test_a_group_is_asked_once():
    codes, groups = made([60, 60]), np.arange(120) // 10
    found = choose(codes, codes[:0], 12, turns=Turns(groups, np.array([], np.int64)))
    assert sorted(groups[found]) == list(range(12))
