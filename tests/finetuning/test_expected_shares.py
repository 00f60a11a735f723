"""The expected class shares: what is asked for, what labels show, and what a classifier says."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from marks import rest_is_slow
from torch import nn

from clfew.errors import UserError
from clfew.finetuning import fit
from clfew.finetuning.asked import parse_shares, share_of_each
from clfew.finetuning.estimated_shares import (
    estimated_shares,
    posterior_of_shares,
    rule_out_equal,
    shares_that_explain,
)
from clfew.finetuning.expected_shares import (
    ExpectedShares,
    contradict_equal,
    given_shares,
    shares_from,
    shares_of_each_class,
    shares_of_labels,
)
from clfew.finetuning.find_shares import NOTHING, with_shares
from clfew.finetuning.fit import Task
from clfew.finetuning.label_propagation import balance, neighbour_graph, propagation_head
from clfew.finetuning.model_selection import best_of

CLASSES = ["a=b", "rest", "target"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("auto", "auto"),
        (" equal ", "equal"),
        ("labels", "labels"),
        ("rest=95,target=5", {"rest": 0.95, "target": 0.05}),
        ("rest = 95 %, target = 5%", {"rest": 0.95, "target": 0.05}),
        ("rest=0.95,target=.05", {"rest": 0.95, "target": 0.05}),
        ("target=0.5%", {"target": 0.005}),
        ("a=b=20,rest=80", {"a=b": 0.2, "rest": 0.8}),
    ],
)
def test_what_is_asked_for(text, wanted):
    found = parse_shares(text)
    assert found == (wanted if isinstance(wanted, str) else pytest.approx(wanted))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be understood"),
        ("eqal", "cannot be understood"),
        ("rest=95,target", "names no class for the share 'target'"),
        ("=5", "names no class"),
        ("rest=95,rest=5", "twice"),
        ("rest=100,target=0", "no number above 0"),
        ("rest=-1,target=101", "no number above 0"),
        ("rest=nan,target=5", "no number above 0"),
        ("rest=inf,target=5", "no number above 0"),
        ("nowhere.csv", "There is no file nowhere.csv"),
    ],
)
def test_a_mistake_is_named(text, words):
    with pytest.raises(UserError, match=words) as raised:
        parse_shares(text)
    assert "rest=95,target=5" in raised.value.hint


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("class,share\nrest,95\ntarget,5\n", {"rest": 0.95, "target": 0.05}),
        ("share;class\n0.9;rest\n0.1;target\n\n;\n", {"rest": 0.9, "target": 0.1}),
        (
            '\ufeffclass,share,images\n"red, or not",40,8\n\'=other,60,12\n',
            {"red, or not": 0.4, "=other": 0.6},
        ),
        ("class,share\n", "has no rows"),
        ("name,share\nrest,5\n", "no columns class and share"),
        ("class,share\nrest\n", "no number above 0"),
        ("class,share\n,5\n", "names no class"),
    ],
)
def test_a_list_of_shares(tmp_path: Path, content, wanted):
    file = tmp_path / "shares.csv"
    file.write_text(content, encoding="utf-8")
    if isinstance(wanted, dict):
        assert parse_shares(str(file)) == pytest.approx(wanted)
        return
    with pytest.raises(UserError, match=wanted):
        parse_shares(str(file))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"a=b": 0.2, "rest": 0.7, "target": 0.1}, [0.2, 0.7, 0.1]),
        ({"target": 0.1}, [0.45, 0.45, 0.1]),
        ({"a=b": 0.332, "rest": 0.332, "target": 0.332}, [1 / 3] * 3),
        ({"a=b": 0.333, "rest": 0.337, "target": 0.337}, [0.3307, 0.33466, 0.33466]),
    ],
)
def test_the_share_of_each_class(given, wanted):
    found = share_of_each(given, CLASSES)
    assert found == pytest.approx(wanted, abs=1e-4) and sum(found) == pytest.approx(1)


@pytest.mark.parametrize(
    ("given", "words", "hint"),
    [
        ({"targt": 0.05}, "names the class 'targt', which there is not", "did you mean target"),
        ({"x": 0.05}, "names the class 'x'", "the classes are a=b, rest, target"),
        ({"rest": 0.95, "target": 0.5}, "add up to 145 per cent", "add up to 100"),
        ({"rest": 0.95, "target": 0.05}, "which leaves nothing for 1 more", "leave out"),
        ({"a=b": 0.1, "rest": 0.1, "target": 0.1}, "add up to 30 per cent", "add up to 100"),
    ],
)
def test_shares_of_other_classes_are_refused(given, words, hint):
    with pytest.raises(UserError, match=words) as raised:
        share_of_each(given, CLASSES)
    assert hint in raised.value.hint


@pytest.mark.parametrize("truth", [[0.95, 0.05], [0.5, 0.5], [0.7, 0.2, 0.07, 0.03]])
@pytest.mark.parametrize("labels", rest_is_slow([40, 100, 300], 2))
def test_intervals_from_random_labels_cover(truth, labels):
    chance, truth = np.random.default_rng(0), np.array(truth)
    covered, ratios = [], []
    for _ in range(1000):
        found = shares_of_labels(chance.multinomial(labels, truth), "")
        covered.append((found.low <= truth) & (truth <= found.high))
        ratios.append(np.exp(np.abs(np.log(found.share / truth))))
        assert found.share.sum() == pytest.approx(1)
    # For each class: .95 less what a thousand repetitions leave to chance.
    assert np.mean(covered, axis=0).min() > 0.935
    if labels >= 100:
        assert np.median(ratios, axis=0).max() < 1.6


def test_all_labels_leave_nothing_open():
    found = shares_of_labels(np.array([900, 100]), "", 1000)
    assert found.share.tolist() == found.low.tolist() == found.high.tolist() == [0.9, 0.1]


def test_labels_that_are_a_share_of_each_class_allow_the_truth():
    chance = np.random.default_rng(0)
    for _ in range(500):
        sizes = chance.integers(1, 2000, chance.integers(2, 8))
        fraction = chance.uniform(0.005, 0.5)
        counts = np.maximum(1, np.round(fraction * sizes)).astype(int)
        found, truth = shares_of_each_class(counts, ""), sizes / sizes.sum()
        # Python rounds halves to even, so that the end of an interval may be reached.
        assert (found.low <= truth + 1e-9).all() and (truth <= found.high + 1e-9).all()
        assert (found.low <= found.share).all() and (found.share <= found.high).all()


def test_equal_shares_are_seldom_contradicted_where_they_hold():
    chance = np.random.default_rng(0)
    for classes, labels in ((2, 40), (10, 40), (21, 60), (10, 200)):
        counts = chance.multinomial(labels, np.full(classes, 1 / classes), 2000)
        assert np.mean([contradict_equal(each) for each in counts]) < 0.02
    assert contradict_equal(np.array([38, 2])) and not contradict_equal(np.array([5, 0]))


def test_balance_moves_totals_into_the_intervals():
    mass = np.random.default_rng(0).random((500, 3)) ** 3
    mass[7] = 0
    for share, slack in (([0.7, 0.25, 0.05], 0.0), ([0.7, 0.25, 0.05], 0.3), ([0.4, 0.3, 0.3], 0.05)):
        each = np.array(share)
        shares = ExpectedShares(each, each * (1 - slack), each * (1 + slack), "", True)
        found = balance(mass, shares)
        totals = found.sum(0) / 499
        assert (totals >= shares.low - 2e-3).all() and (totals <= shares.high + 2e-3).all()
        assert not found[7].any() and np.allclose(np.delete(found, 7, 0).sum(1), 1)


def test_balance_leaves_totals_within_the_intervals_alone():
    mass = np.random.default_rng(0).random((500, 2))
    wide = ExpectedShares(np.array([0.5, 0.5]), np.zeros(2), np.ones(2), "", True)
    assert np.allclose(balance(mass, wide), mass / mass.sum(1, keepdims=True))


def blobs(sizes, spread=0.8, seed=0):
    """Features in clusters, float32 (N, 8), and the cluster of each."""
    chance = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    centres = 1.5 * chance.normal(size=(len(sizes), 8))
    return (centres[labels] + spread * chance.normal(size=(len(labels), 8))).astype(np.float32), labels


def task_of(features, labels, shares=None):
    pool = np.arange(len(features))
    none = np.zeros(0)
    cpu = torch.device("cpu")
    return Task(none, none, pool, labels, labels.max() + 1, features, cpu, "fp32", shares=shares)


def drawn_per_class(labels, each, seed):
    chance = np.random.default_rng(seed)
    return np.sort(
        np.concatenate(
            [chance.permutation(np.flatnonzero(labels == c))[:each] for c in range(labels.max() + 1)]
        )
    )


@pytest.mark.parametrize("sizes", [(950, 50), (800, 100, 100)])
def test_propagation_told_the_shares_is_better(sizes):
    features, labels = blobs(sizes, spread=2.0)
    labelled, graph = drawn_per_class(labels, 10, 0), neighbour_graph(features)
    shares = given_shares([n / sum(sizes) for n in sizes])
    right = []
    for told in (None, shares):
        head = propagation_head(features, graph, labelled, labels[labelled], len(sizes), shares=told)
        with torch.no_grad():
            right.append((head(torch.from_numpy(features)).argmax(1).numpy() == labels).mean())
    assert right[1] > right[0] + 0.02


@pytest.mark.parametrize("sizes", rest_is_slow([((950, 50),), ((600, 300, 60, 40),)]))
def test_estimated_intervals_cover(sizes):
    truth, covered = np.array(sizes) / sum(sizes), []
    for seed in range(24):
        features, labels = blobs(sizes, spread=2.0, seed=seed)
        task, labelled = task_of(features, labels), drawn_per_class(labels, 12, seed)
        found = estimated_shares(task, labelled, 0)
        if found is not None:
            covered.append((found.low <= truth) & (truth <= found.high))
            # As far as is certain: the expected shares are nearer to equal ones than the likeliest.
            assert found.share[0] < truth[0] + 0.06
    assert len(covered) >= 18 and np.mean(covered) > 0.93


def test_equal_classes_are_taken_to_be_equal():
    found = []
    for seed in range(20):
        features, labels = blobs((250, 250, 250, 250), spread=2.0, seed=seed)
        found.append(estimated_shares(task_of(features, labels), drawn_per_class(labels, 6, seed), 0))
    assert sum(each is not None for each in found) <= 3


def test_shares_explain_what_is_predicted():
    rates = np.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.0, 0.3, 0.7]])
    truth = np.array([0.85, 0.1, 0.05])
    found = shares_that_explain(truth @ rates, np.stack([rates, np.eye(3)]))
    assert np.allclose(found[0], truth, atol=2e-3) and np.allclose(found[1], truth @ rates)
    drawn = posterior_of_shares(np.round(400 * rates), truth @ rates, 0)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    assert rule_out_equal(drawn)
    assert (low < truth).all() and (truth < high).all() and (high - low).max() < 0.2


def test_shares_are_kept_as_rows():
    shares = shares_of_labels(np.array([38, 2]), "from 40 images labelled at random")
    again = shares_from(shares.as_row(["rest", "target"]))
    assert again is not None and again.origin == shares.origin and again.is_in_labels
    for name in ("share", "low", "high"):
        assert getattr(again, name).tolist() == getattr(shares, name).tolist()
    words = shares.words(["rest", "target"])
    assert (
        words == "rest 94 % (83 to 99 %), target 6.1 % (0.6 to 17 %), from 40 images labelled at random"
    )
    assert shares_from(None) is None


RANDOM, CHOSEN = "random", "chosen (herding)"


@pytest.mark.parametrize(
    ("asked", "counts", "how", "words"),
    [
        ("auto", (38, 2), RANDOM, "a 94 % (83 to 99 %), b 6.1 % (0.6 to 17 %), from 40 images labelled"),
        ("auto", (22, 18), RANDOM, "equal, which 40 images labelled at random do not contradict"),
        ("auto", (19, 1), "a share of each class", "a 96 % (92 to 100 %), b 3.8 % (0 to 7.5 %)"),
        ("auto", (5, 5), "a share of each class", "equal, which 10 labels do not contradict"),
        ("auto", (1, 1), "drawn per class", f"equal, {NOTHING}"),
        ("equal", (38, 2), RANDOM, "equal, as asked for"),
        ("labels", (38, 2), CHOSEN, "as among the 40 labels, as asked for"),
        ({"b": 0.05}, (20, 20), CHOSEN, "a 95 %, b 5 %, as given"),
    ],
)
def test_where_shares_come_from(asked, counts, how, words):
    features, labels = blobs((300, 300))
    labelled = np.concatenate([np.arange(counts[0]), 300 + np.arange(counts[1])])
    task, found = with_shares(
        task_of(features, labels), asked, ["a", "b"], labelled, [how] * sum(counts)
    )
    assert words in found
    assert (task.shares is None) == found.startswith("equal")


def test_chosen_labels_say_nothing_of_shares_beside_random_ones():
    features, labels = blobs((300, 300))
    labelled = np.concatenate([np.arange(38), 300 + np.arange(42)])
    hows = [RANDOM] * 38 + [RANDOM] * 2 + [CHOSEN] * 40
    task, words = with_shares(task_of(features, labels), "auto", ["a", "b"], labelled, hows)
    assert "from 40 images labelled at random" in words
    assert task.shares is not None and task.shares.share[1] < 0.1 and not task.shares.is_in_labels


def test_all_labels_are_their_own_shares():
    features, labels = blobs((90, 10))
    hows = ["all"] * 100
    _, words = with_shares(task_of(features, labels), "auto", ["a", "b"], np.arange(100), hows)
    assert words == "a 90 %, b 10 %, those of all 100 labels"


def test_a_head_expects_the_shares_that_its_labels_do_not_have():
    features, labels = blobs((900, 100))
    labelled = drawn_per_class(labels, 20, 0)
    head = nn.Linear(8, 2)
    before = copy.deepcopy(head.state_dict())
    for shares, change in (
        (None, 0.0),
        (shares_of_labels(np.array([38, 2]), ""), 0.0),
        (given_shares([0.9, 0.1]), np.log(9)),
    ):
        head.load_state_dict(before)
        task = task_of(features, labels, shares)
        fit._decide_for(head, task, labels[labelled], np.full(2, 0.5))
        apart = (head.bias - before["bias"]).detach().numpy()
        assert apart[0] - apart[1] == pytest.approx(change, abs=1e-5)


def test_labels_count_by_the_images_that_they_stand_for():
    labels = np.array([0, 0, 1, 1])
    task = task_of(np.zeros((4, 2), np.float32), labels, given_shares([0.9, 0.1]))
    weights = task.weights_of(np.arange(4))
    assert weights is not None and weights.tolist() == pytest.approx([1.8, 1.8, 0.2, 0.2])
    # The first choice knows only class 1, the second only class 0.
    logits = {"one": np.array([[0, 1]] * 4), "zero": np.array([[1, 0]] * 4)}
    _, scores, _ = best_of(logits, labels, 1.0, weights_L=weights)
    assert scores == pytest.approx({"one": 0.1, "zero": 0.9})
