"""Pages of one class: which images, in which order, and which class comes first."""

import numpy as np
import pytest
from made_board import codes_of

from clfew.labelling import pages
from clfew.labelling.assistant import Assistant, Fit, Labels
from clfew.labelling.pages import DOUBTFUL, FEW_LABELS, FEWEST, LEAST, MIXED, SUREST, choices, page_of

NUMBERS = (1, 2, 5)


def fit_of(probabilities, numbers=NUMBERS):
    probabilities = np.asarray(probabilities, np.float32)
    one = np.zeros(1, np.int64)
    labels = Labels(one, one, numbers, np.array([True]))
    return Fit(labels, probabilities, np.array([], np.int64))


def random_fit(count=100, seed=0):
    return fit_of(np.random.default_rng(seed).dirichlet([0.5] * 3, count))


def open_rows(count, closed=()):
    is_open = np.ones(count, bool)
    is_open[list(closed)] = False
    return is_open


def shown(fit, label, order=SUREST, is_open=None, groups=None, few=False, most=pages.SIZE):
    count = len(fit.probabilities)
    is_open = open_rows(count) if is_open is None else is_open
    groups = np.arange(count) if groups is None else groups
    return page_of(fit, label, order, is_open, groups, few, most)


def test_a_page_has_open_images_that_are_taken_for_its_class():
    fit = random_fit()
    for place, label in enumerate(NUMBERS):
        taken = np.flatnonzero(fit.predicted == place)
        closed = taken[::3]
        is_open = open_rows(100, closed)
        for order in pages.ORDERS:
            page = shown(fit, label, order, is_open)
            assert (page.label, page.order, page.found) == (label, order, len(taken) - len(closed))
            assert len(page.rows) == min(pages.SIZE, page.found) == len(set(page.rows))
            assert set(page.rows) <= set(taken.tolist()) - set(closed.tolist())


def test_the_surest_or_the_most_doubtful_come_first():
    fit = random_fit()
    taken = np.flatnonzero(fit.predicted == 1)
    expected = taken[np.argsort(-fit.margin[taken], kind="stable")].tolist()
    assert shown(fit, 2, SUREST, most=10).rows == expected[:10]
    assert shown(fit, 2, DOUBTFUL, most=10).rows == expected[::-1][:10]


def test_a_mixed_page_has_some_of_each_part():
    fit = random_fit(400)
    taken = np.flatnonzero(fit.predicted == 0)
    ranked = taken[np.argsort(-fit.margin[taken], kind="stable")].tolist()
    places = [ranked.index(row) for row in shown(fit, 1, MIXED).rows]
    assert places == sorted(places) and len(places) == pages.SIZE
    assert places[0] == 0 and places[-1] == len(ranked) - 1
    steps = np.diff(places)
    assert steps.max() - steps.min() <= 1
    few = shown(random_fit(30), 1, MIXED).rows
    assert few == shown(random_fit(30), 1, SUREST).rows, "all of them where there are few"


def test_a_page_has_at_most_so_many_images():
    fit = random_fit(400)
    for most in (1, 5, pages.SIZE):
        for order in pages.ORDERS:
            assert len(shown(fit, 1, order, most=most).rows) == most


def test_groups_come_in_turn():
    """Of bursts of eight, each is on the page once before one is twice."""
    fit = fit_of(np.tile([0.9, 0.05, 0.05], (80, 1)) - np.linspace(0, 0.3, 80)[:, None] * [1, 0, 0])
    groups = np.arange(80) // 8
    rows = shown(fit, 1, SUREST, groups=groups).rows
    assert sorted(groups[rows[:10]]) == sorted(groups[rows[10:20]]) == list(range(10))
    one = shown(fit, 1, SUREST, groups=np.zeros(80, int)).rows
    assert len(one) == pages.SIZE, "as far as there are others"


def test_a_page_of_a_class_with_few_labels_is_filled_up_with_what_may_be_of_it():
    rows = [[0.8, 0.2, 0.0]] * 3 + [[0.3, 0.7, 0.0], [0.4, 0.6, 0.0], [LEAST / 2, 1 - LEAST / 2, 0.0]]
    fit = fit_of(rows)
    page = shown(fit, 1, SUREST, few=True)
    assert page.rows == [0, 1, 2, 4, 3] and page.found == 3
    assert shown(fit, 1, SUREST, few=False).rows == [0, 1, 2]
    assert shown(fit, 1, SUREST, few=True, most=4).rows == [0, 1, 2, 4]
    assert shown(fit, 1, SUREST, few=True, is_open=open_rows(6, [4])).rows == [0, 1, 2, 3]


def test_images_that_no_label_reaches_are_in_no_page():
    fit = fit_of([[0.0, 0.0, 0.0], [0.9, 0.1, 0.0], [0.0, 0.0, 0.0]])
    for few in (False, True):
        assert shown(fit, 1, few=few).rows == [1]
    found = choices(fit, open_rows(3), {}, {})
    assert [(each.label, each.found) for each in found] == [(1, 1)]


def sure_of(*counts, probability=0.9):
    """So many images that are taken for each class."""
    rest = (1 - probability) / (len(counts) - 1)
    rows = np.full((sum(counts), len(counts)), rest)
    rows[np.arange(sum(counts)), np.repeat(np.arange(len(counts)), counts)] = probability
    return fit_of(rows, tuple(range(1, len(counts) + 1)))


def order_of(fit, labelled, seen=None):
    return [each.label for each in choices(fit, open_rows(len(fit.probabilities)), labelled, seen or {})]


def test_the_class_with_the_fewest_labels_comes_first():
    fit = sure_of(20, 20, 20)
    assert order_of(fit, {1: 9, 2: 3, 3: 5}) == [2, 3, 1]
    assert order_of(fit, {1: 9, 3: 5}) == [2, 3, 1]
    assert order_of(fit, {}) == [1, 2, 3]


def test_a_class_with_hardly_an_image_comes_after_others():
    fit = sure_of(20, FEWEST - 1, 20)
    assert order_of(fit, {1: 9, 2: 1, 3: 5}) == [3, 1, 2]
    assert order_of(sure_of(20, 0, 20), {1: 9, 3: 5}) == [3, 1], "and one without any not at all"


def test_a_class_whose_pages_were_bad_comes_after_others():
    fit, labelled = sure_of(30, 30, 30), {1: 9, 2: 1, 3: 5}
    assert order_of(fit, labelled, {2: (23, 24)}) == [2, 3, 1]
    assert order_of(fit, labelled, {2: (2, 24)}) == [3, 1, 2]
    found = choices(fit, open_rows(90), labelled, {2: (2, 24)})
    assert [each.is_worth for each in found] == [True, True, False]
    good, bad = found[0].right, found[2].right
    assert 0 <= bad < pages.WORTH <= good <= 1


def test_a_class_of_which_it_is_hardly_sure_comes_after_others_until_its_pages_were_good():
    doubtful = [[0.34, 0.33, 0.33]] * 30 + [[0.05, 0.9, 0.05]] * 30
    fit = fit_of(doubtful, (1, 2, 3))
    assert order_of(fit, {1: 1, 2: 9}) == [2, 1]
    assert order_of(fit, {1: 1, 2: 9}, {1: (24, 24)}) == [1, 2]


def test_closed_images_are_not_counted():
    fit = sure_of(20, 20)
    found = choices(fit, open_rows(40, range(15)), {}, {})
    assert {each.label: each.found for each in found} == {1: 5, 2: 20}
    assert choices(fit, np.zeros(40, bool), {}, {}) == []


@pytest.mark.parametrize("order", pages.ORDERS)
def test_pages_of_a_fitted_classifier_are_mostly_right(order):
    codes, cluster = codes_of([80, 60, 40], 0.6)
    rows = np.concatenate([np.flatnonzero(cluster == c)[: FEW_LABELS + 1] for c in range(3)])
    labels = Labels(rows, cluster[rows], [1, 2, 3], np.ones(len(rows), bool))
    fit = Assistant(codes, np.arange(180), codes[:0]).fit(labels)
    for label in (1, 2, 3):
        page = shown(fit, label, order, open_rows(180, rows))
        assert len(page.rows) == pages.SIZE and not set(page.rows) & set(rows)
        assert (cluster[page.rows] == label - 1).mean() > 0.8
