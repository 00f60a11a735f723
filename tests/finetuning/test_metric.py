"""The metric that `auto` chooses by, against scikit-learn, and how often chance wins."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score

from clfew.errors import UsageError, UserError
from clfew.finetuning import model_selection
from clfew.finetuning.asked import check_metric
from clfew.finetuning.expected_shares import given_shares
from clfew.finetuning.fit import FullSettings, Task
from clfew.finetuning.metric import BY_ACCURACY, Metric, metric_of, win_by_exchange
from clfew.finetuning.model_selection import best_of, decide_probe, win_by_chance

METRICS = [BY_ACCURACY, Metric("balanced"), Metric("macro-f1"), Metric("ap:b", 1)]


def outputs(seed, count=80, classes=4, right=0.6):
    chance = np.random.default_rng(seed)
    labels = chance.choice(classes, count, p=[0.6, 0.2, 0.15, 0.05][:classes])
    logits = chance.normal(size=(count, classes))
    logits[np.arange(count), labels] += 2.0 * right
    return logits, labels, chance.uniform(0.2, 3.0, count)


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_those_of_scikit_learn(seed):
    logits, labels, weights = outputs(seed)
    predicted = logits.argmax(1)
    probability = np.exp(logits[:, 1]) / np.exp(logits).sum(1)
    wanted = {
        "accuracy": np.average(predicted == labels, weights=weights),
        "macro-f1": f1_score(labels, predicted, average="macro", sample_weight=weights),
        "ap:b": average_precision_score(labels == 1, probability, sample_weight=weights),
    }
    for metric in METRICS:
        if metric.is_balanced:
            # A label counts by its class then.
            counts = np.bincount(labels)[labels]
            found = metric.of(metric.outputs(logits)[None], labels, 1 / counts)[0]
            assert found == pytest.approx(balanced_accuracy_score(labels, predicted))
        else:
            found = metric.of(metric.outputs(logits)[None], labels, weights)[0]
            assert found == pytest.approx(wanted[metric.name])


def test_several_sets_of_outputs_are_measured_at_once():
    logits, labels, weights = outputs(0)
    others = outputs(1)[0]
    for metric in METRICS:
        both = np.stack([metric.outputs(logits), metric.outputs(others)])
        one_by_one = [metric.of(each[None], labels, weights)[0] for each in both]
        assert metric.of(both, labels, weights).tolist() == pytest.approx(one_by_one)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_chance_wins_no_more_often_than_it_may(metric):
    won = 0
    for seed in range(200):
        logits, labels, weights = outputs(seed, right=0.5)
        chance = np.random.default_rng(1000 + seed)
        other = chance.normal(size=logits.shape)
        other[np.arange(len(labels)), labels] += 1.0
        pair = metric.outputs(logits), metric.outputs(other)
        won += win_by_exchange(metric, *pair, labels, weights) < 0.05
    assert won <= 18  # 10 are expected; more than 18 come about in 1 of 100 repetitions.


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_what_is_better_wins(metric):
    logits, labels, weights = outputs(0, count=200, right=1.5)
    worse = np.random.default_rng(5).normal(size=logits.shape)
    pair = metric.outputs(logits), metric.outputs(worse)
    assert win_by_exchange(metric, *pair, labels, weights) < 0.005
    assert win_by_exchange(metric, *pair[::-1], labels, weights) == 1.0


def test_of_labels_that_count_equally_it_is_the_sign_test():
    for wins, losses in ((5, 0), (6, 1), (9, 3), (12, 4), (20, 8)):
        one = np.array([1] * wins + [0] * losses + [1] * 10)
        other = np.array([0] * wins + [1] * losses + [1] * 10)
        found = win_by_exchange(BY_ACCURACY, one, other, np.ones(len(one)), np.ones(len(one)))
        assert found == pytest.approx(win_by_chance(wins, losses), abs=0.02)


def test_the_best_is_chosen_by_the_metric():
    labels = np.array([0] * 90 + [1] * 10)
    never = np.tile([1.0, 0.0], (100, 1))
    # It finds all of the rare class, and names it twice as often as it is there.
    finds = np.where((labels == 1)[:, None] | (np.arange(100) < 14)[:, None], [0.0, 1.0], [1.0, 0.0])
    both = {"never": never, "finds": finds}
    assert best_of(both, labels, 1.0)[0] == "never"
    chosen, scores, words = best_of(both, labels, 1.0, 0.3, None, Metric("macro-f1"))
    assert chosen == "finds" and scores["finds"] > scores["never"] and "finds 0." in words


@pytest.mark.parametrize(
    ("metric", "shares", "wanted"),
    [
        ("accuracy", None, None),
        ("accuracy", [0.9, 0.1], [0.9, 0.1]),
        ("balanced", None, [0.5, 0.5]),
        ("balanced", [0.9, 0.1], [0.5, 0.5]),
        # Half way to equal ones: the root of the ratio.
        ("macro-f1", [0.9, 0.1], [0.75, 0.25]),
        ("macro-f1", None, [2 / 3, 1 / 3]),
        ("ap:b", [0.9, 0.1], [0.9, 0.1]),
    ],
)
def test_heads_decide_for_the_shares_of_the_metric(metric, shares, wanted):
    none = np.zeros(0)
    given = None if shares is None else given_shares(shares)
    task = Task(
        *(none, none, np.arange(4), np.array([0, 0, 1, 1]), 2, None, None, "fp32"),
        shares=given,
        metric=metric_of(metric, ["a", "b"], False)[0],
    )
    found = task.decided_shares(np.array([0.8, 0.2]))
    assert (found is None) == (wanted is None)
    if found is not None:
        assert found.tolist() == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("metric", "counts", "first", "has_weighted"),
    [
        ("accuracy", (30, 6, 4), "propagate", False),
        ("macro-f1", (30, 6, 4), "weighted", True),
        ("macro-f1", (30, 10), "weighted", True),
        ("balanced", (30, 6, 4), "weighted", True),
        # Of as many labels of each class the two regressions are one.
        ("macro-f1", (10, 10, 10), "linear", False),
        ("accuracy, shares", (30, 6, 4), "propagate", False),
        ("macro-f1, shares", (30, 6, 4), "weighted", True),
        ("macro-f1, shares", (30, 10), "propagate", True),
        ("balanced, shares", (30, 6, 4), "propagate", True),
        ("ap:b, shares", (30, 10), "propagate", True),
        ("ap:b", (30, 10), "weighted", True),
    ],
)
def test_weighted_classes_are_tried_where_they_may_be_better(
    monkeypatch, metric, counts, first, has_weighted
):
    labels, none = np.repeat(np.arange(len(counts)), counts), np.zeros(0)
    features = np.zeros((60, 2), np.float32)
    pool = np.concatenate([labels, np.zeros(60 - len(labels), np.int64)])
    task = Task(
        *(none, none, np.arange(60), pool, len(counts), features, None, "fp32"),
        shares=given_shares([n / sum(counts) for n in counts]) if "shares" in metric else None,
        metric=metric_of(metric.removesuffix(", shares"), ["a", "b", "c"], False)[0],
    )
    same = np.eye(len(counts))[labels]
    monkeypatch.setattr(model_selection, "fold_by_fold", lambda *given: same)
    decision = decide_probe(None, task, np.arange(len(labels)), 0, FullSettings())
    assert decision.mode == first and ("weighted" in decision.scores) == has_weighted
    assert decision.reason.startswith("cross-validated:") == metric.startswith("accuracy")


def test_a_balanced_head_counts_classes_equally():
    labels = np.array([0] * 8 + [1] * 2)
    none = np.zeros(0)
    task = Task(none, none, np.arange(10), labels, 2, None, None, "fp32", metric=Metric("balanced"))
    weights = task.weights_of(np.arange(10))
    assert weights is not None
    assert weights[:8].sum() == pytest.approx(weights[8:].sum())
    equal = Task(none, none, np.arange(4), labels[6:], 2, None, None, "fp32", metric=Metric("balanced"))
    assert equal.weights_of(np.arange(4)) is None


@pytest.mark.parametrize(
    ("asked", "are_unequal", "name", "words"),
    [
        ("auto", False, "accuracy", "taken to have equal shares"),
        ("auto", True, "macro-f1", "unequal shares"),
        ("accuracy", True, "accuracy", "as asked for"),
        (" balanced ", False, "balanced", "as asked for"),
        ("ap:b=c", True, "ap:b=c", "as asked for"),
        ("ap: a", True, "ap:a", "as asked for"),
    ],
)
def test_the_metric_is_as_asked_for_or_said_why(asked, are_unequal, name, words):
    check_metric(asked)
    metric, why = metric_of(asked, ["a", "b=c"], are_unequal)
    assert metric.name == name and words in why
    assert metric.number == {"ap:a": 0, "ap:b=c": 1}.get(name, -1)


@pytest.mark.parametrize(
    ("asked", "hint"),
    [
        ("acuracy", "did you mean accuracy"),
        ("ap:", "choose auto"),
        ("ap", "choose auto"),
        ("", "choose"),
    ],
)
def test_another_metric_is_refused(asked, hint):
    with pytest.raises(UsageError) as raised:
        check_metric(asked)
    assert hint in raised.value.hint


def test_a_class_that_there_is_not_is_refused():
    with pytest.raises(UserError, match="--metric names the class 'targt'") as raised:
        metric_of("ap:targt", ["rest", "target"], False)
    assert "did you mean target" in raised.value.hint
