"""The classifier behind the page: against label propagation in full, and on clusters that are known."""

import numpy as np
import pytest
from made_board import codes_of

from clfew.finetuning.label_propagation import ALPHA, neighbour_graph
from clfew.labelling import assistant as module
from clfew.labelling.assistant import Assistant, Labels, settle
from clfew.selection.codes import SCALE

NO_TESTS = np.zeros((0, 24), np.int16)


def assistant_of(codes, tested=NO_TESTS, groups=None):
    return Assistant(codes, np.arange(len(codes)) if groups is None else groups, tested)


def labels_of(cluster, rows, by_one=True):
    rows = np.asarray(rows)
    numbers = np.unique(cluster[rows])
    places = np.searchsorted(numbers, cluster[rows])
    return Labels(rows, places, (numbers + 1).tolist(), np.full(len(rows), by_one))


def some(cluster, count, seed=0):
    """Rows of so many labelled images, with one of each cluster first."""
    chance = np.random.default_rng(seed)
    firsts = [chance.choice(np.flatnonzero(cluster == c)) for c in np.unique(cluster)]
    others = np.setdiff1d(chance.permutation(len(cluster)), firsts)
    return np.concatenate([firsts, chance.permutation(others)])[:count]


def settled_slowly(graph, start):
    """F ← α S F + (1 - α) Y, thousands of times."""
    mass, graph = start.astype(np.float64), graph.astype(np.float64)
    for _ in range(3000):
        mass = ALPHA * (graph @ mass) + (1 - ALPHA) * start
    return mass


@pytest.mark.parametrize("width", [0.3, 1.0, 2.0])
def test_labels_settle_where_thousands_of_steps_bring_them(width):
    codes, cluster = codes_of([80, 50, 20], width)
    graph = neighbour_graph(codes.astype(np.float32) / SCALE, is_scaled=True)
    start = np.zeros((len(codes), 3), np.float32)
    rows = some(cluster, 12)
    start[rows, cluster[rows]] = 1
    expected, found = settled_slowly(graph, start), settle(graph.astype(np.float32), start)
    assert np.abs(found - expected).max() < 1e-3 * expected.max()
    near = expected / expected.sum(1, keepdims=True)
    assert np.abs(found / found.sum(1, keepdims=True) - near)[expected.sum(1) > 1e-4].max() < 1e-3
    assert (found >= 0).all() and found.dtype == np.float32


def test_probabilities_sum_to_one_and_labels_stay():
    codes, cluster = codes_of([60, 40, 30], 1.5)
    labels = labels_of(cluster, some(cluster, 15))
    fit = assistant_of(codes, codes[:5]).fit(labels)
    sums = fit.probabilities.sum(1)
    assert ((np.abs(sums - 1) < 1e-4) | (sums == 0)).all() and (sums > 0).mean() > 0.9
    assert fit.predicted[labels.rows].tolist() == labels.classes.tolist()
    assert ((fit.margin >= 0) & (fit.margin <= 1)).all()
    assert fit.tested.shape == (5,) and fit.probabilities.dtype == np.float32


def test_what_no_label_reaches_has_no_class():
    """Two clusters without an edge between them: nothing is said of the one without a label."""
    codes, cluster = codes_of([40, 40], 0.05)
    rows = np.flatnonzero(cluster == 0)[:4]
    labels = Labels(rows, np.array([0, 1, 0, 1]), [1, 2], np.ones(4, bool))
    fit = assistant_of(codes).fit(labels)
    assert not fit.probabilities[cluster == 1].any() and fit.probabilities[cluster == 0].any()


def test_images_to_test_on_neither_give_nor_get_labels():
    codes, cluster = codes_of([60, 60, 40], 0.8)
    chance = np.random.default_rng(1)
    order = chance.permutation(len(codes))
    pool, tested = order[30:], order[:30]
    labels, changed = labels_of(cluster[pool], some(cluster[pool], 12)), chance.permutation(30)
    one = assistant_of(codes[pool], codes[tested])
    other = assistant_of(codes[pool], codes[tested][changed])
    without = assistant_of(codes[pool])
    for each in (other, without):
        assert np.array_equal(each.fit(labels).probabilities, one.fit(labels).probabilities)
        judged, expected = each.judge(each.fit(labels)), one.judge(one.fit(labels))
        assert np.array_equal(judged.sure, expected.sure) and judged.changed == expected.changed
        assert judged.contradicted == expected.contradicted
    assert other.fit(labels).tested.tolist() == one.fit(labels).tested[changed].tolist()
    assert (one.fit(labels).tested == cluster[tested]).mean() > 0.8


def test_other_images_get_the_class_of_those_around_them():
    codes, cluster = codes_of([60, 60, 40], 0.4)
    assistant = assistant_of(codes[::2])
    fit = assistant.fit(labels_of(cluster[::2], some(cluster[::2], 9)))
    probabilities = assistant.probabilities_of(codes[1::2], fit)
    assert np.abs(probabilities.sum(1) - 1).max() < 1e-4
    assert (probabilities.argmax(1) == cluster[1::2]).mean() > 0.95
    assert assistant.probabilities_of(codes[:0], fit).shape == (0, 3)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_labels_give_the_same_answer(seed):
    codes, cluster = codes_of([50, 50], 1.2, seed=seed)
    labels = labels_of(cluster, some(cluster, 30, seed))
    first, second = assistant_of(codes, codes[:3]), assistant_of(codes, codes[:3])
    one, other = first.fit(labels), second.fit(labels)
    assert one.probabilities.tobytes() == other.probabilities.tobytes()
    judged, expected = first.judge(one), second.judge(other)
    assert judged.sure.tobytes() == expected.sure.tobytes()
    assert (judged.contradicted, judged.changed) == (expected.contradicted, expected.changed)


@pytest.mark.parametrize("seed", range(4))
def test_slips_among_clusters_are_found_and_little_else(seed):
    codes, cluster = codes_of([80, 80, 80, 80], 0.4, seed=seed)
    rows, chance = some(cluster, 100, seed), np.random.default_rng(seed)
    slips = np.array([chance.choice(np.flatnonzero(cluster[rows] == c)) for c in range(4)])
    given = cluster.copy()
    given[rows[slips]] = (given[rows[slips]] + 1) % 4
    assistant, labels = assistant_of(codes), labels_of(given, rows)
    found = assistant.judge(assistant.fit(labels)).contradicted
    expected = {(int(row), int(cluster[row])) for row in rows[slips]}
    assert len(expected & set(found)) >= 3 and len(set(found) - expected) <= 1
    clean = labels_of(cluster, rows)
    assert len(assistant.judge(assistant.fit(clean)).contradicted) <= 1


def test_a_label_is_judged_without_those_of_its_group():
    """Bursts of four images, each labelled alike: the one burst that is wrong is found all the same."""
    codes, cluster = codes_of([80, 80], 0.3)
    groups, given = np.arange(160) // 4, cluster.copy()
    burst = np.flatnonzero(groups == 3)
    given[burst] = 1
    rows = np.concatenate([burst, *(np.flatnonzero(groups == g) for g in range(5, 40, 3))])
    assistant = assistant_of(codes, groups=groups)
    found = assistant.judge(assistant.fit(labels_of(given, rows))).contradicted
    assert sorted(found) == [(int(row), 0) for row in burst]


def test_it_is_right_where_it_is_sure_on_clusters_that_overlap():
    right = of = all_right = all_of = 0
    for seed in range(12):
        codes, cluster = codes_of([120, 120, 80], 1.1, seed=seed)
        rows = some(cluster, 70, seed)
        assistant = assistant_of(codes)
        fit = assistant.fit(labels_of(cluster, rows))
        sure, is_right = assistant.judge(fit).sure, fit.predicted == cluster
        sure[rows] = False
        right, of = right + is_right[sure].sum(), of + sure.sum()
        others = np.setdiff1d(np.arange(len(codes)), rows)
        all_right, all_of = all_right + is_right[others].sum(), all_of + len(others)
    assert right >= 0.9 * of and of >= 0.1 * all_of
    assert all_right / all_of < right / of - 0.02, "the clusters do overlap"


def test_with_few_labels_it_is_sure_of_nothing_and_more_labels_help():
    codes, cluster = codes_of([60, 60], 0.3)
    assistant = assistant_of(codes)
    for count in (2, 3, module.FEWEST_SURE - 1):
        fit = assistant.fit(labels_of(cluster, some(cluster, count)))
        verdict = assistant.judge(fit)
        assert not verdict.sure.any() and not verdict.can_be_sure and not verdict.is_enough


def test_more_labels_hardly_help_on_clear_clusters_and_help_on_noise():
    codes, cluster = codes_of([150, 150], 0.3)
    count = 2 * module.FEWEST_ENOUGH
    for labels, expected in ((cluster, True), (np.random.default_rng(0).permutation(cluster), False)):
        assistant, rows = assistant_of(codes), some(labels, count)
        verdict = assistant.judge(assistant.fit(labels_of(labels, rows)))
        assert verdict.is_enough == expected and verdict.before == count // 2
        fewer = assistant.judge(assistant.fit(labels_of(labels, rows[:-2])))
        assert not fewer.is_enough, "too few labels to tell"


def test_labels_of_pages_do_not_tell_how_many_images_a_class_has():
    codes, cluster = codes_of([60, 60], 1.5)
    rows = np.concatenate([np.flatnonzero(cluster == 0)[:30], np.flatnonzero(cluster == 1)[:6]])
    assistant = assistant_of(codes)
    one_by_one, on_pages = (
        (assistant.fit(labels_of(cluster, rows, by_one)).predicted == 0).sum()
        for by_one in (True, False)
    )
    assert one_by_one > on_pages


@pytest.mark.parametrize("count", [1, 2, 3, 17])
def test_few_images_are_enough(count):
    codes, _ = codes_of([count], 0.5)
    assistant = assistant_of(codes, codes[:1])
    labels = Labels(np.array([0]), np.array([0]), [4], np.array([True]))
    fit = assistant.fit(labels)
    assert fit.predicted[0] == 0 and fit.probabilities.shape == (count, 1) and fit.tested.tolist() == [0]
    assert np.isfinite(fit.probabilities).all()
    assert not assistant.judge(fit).is_enough


def test_what_no_label_reaches_is_neither_sure_nor_unchanged():
    codes, cluster = codes_of([100] * 8, width=0.1)
    near = np.flatnonzero(cluster < 4)
    rows = np.random.default_rng(0).permutation(near)[:160]
    assistant = assistant_of(codes)
    fit = assistant.fit(labels_of(cluster, rows))
    verdict = assistant.judge(fit)
    reached = fit.probabilities.any(1)
    assert not reached.all() and reached[near].all()
    assert not verdict.sure[~reached].any() and verdict.sure[near].any()
    assert verdict.changed >= (~reached).mean() and not verdict.is_enough


def test_labels_of_pages_do_not_say_how_sure_it_is():
    codes, cluster = codes_of([60, 60], width=0.1)
    assistant, rows = assistant_of(codes), some(cluster, 60)
    by_one = assistant.judge(assistant.fit(labels_of(cluster, rows)))
    on_pages = assistant.judge(assistant.fit(labels_of(cluster, rows, by_one=False)))
    assert by_one.sure.any() and not on_pages.sure.any()


def test_it_stops_judging_where_nobody_waits_for_it_any_more():
    codes, cluster = codes_of([40, 40])
    assistant, asked = assistant_of(codes), []
    fit = assistant.fit(labels_of(cluster, some(cluster, 20)))

    def is_wanted():
        asked.append(None)
        return len(asked) < 3

    assert assistant.judge(fit, is_wanted) is None and len(asked) == 3
