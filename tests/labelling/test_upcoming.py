"""Which images are labelled one by one, and in which order: nothing twice, nothing forgotten."""

import numpy as np
import pytest

from clfew.labelling import upcoming as module
from clfew.labelling.state import LABEL, NONE, SKIP, UNSURE, WRONG, State
from clfew.labelling.upcoming import (
    AGAIN_EACH,
    LEARNED_EACH,
    STEPS_OF_PAGE,
    open_tests,
    steps,
    upcoming,
)


def there(name):
    return True


class Run:
    """A state with the events that led to it."""

    def __init__(self, asked=40, tests=12, classes=("deer", "fox")):
        self.state, self.events = State(), []
        for number, name in enumerate(classes, 1):
            self.add(do="class", **{"class": number}, name=name)
        if tests:
            self.add(do="test", images=[f"t{i}" for i in range(tests)], how="random")
        if asked:
            self.add(do="asked", images=[f"a{i}" for i in range(asked)], how="chosen (herding)")

    def add(self, **event):
        self.events.append({"n": len(self.events) + 1, **event})
        self.state.apply(self.events[-1])
        return self.events[-1]["n"]

    def label(self, image, number=1):
        return self.add(do=LABEL, image=image, **{"class": number})

    def page(self, right, wrong=()):
        labels = dict.fromkeys(right, 1)
        return self.add(do="page", labels=labels, wrong=list(wrong), **{"class": 1})

    def again(self, images, number=2):
        return self.add(do="again", images=dict.fromkeys(images, number))

    def next(self, most=8, left=None, is_there=there):
        return upcoming(self.state, is_there, left, most)

    def first(self, **options):
        return self.next(**options)[0]


def answered(run, count, **options):
    """The images that come one after the other, each labelled."""
    found = []
    for _ in range(count):
        if not run.next(**options):
            break
        found.append(run.first(**options))
        run.label(found[-1])
    return found


def is_test(name):
    return name.startswith("t")


def test_an_image_to_test_on_comes_after_so_many_to_learn_from():
    found = answered(Run(), (LEARNED_EACH + 1) * 6)
    assert [is_test(name) for name in found] == ([False] * LEARNED_EACH + [True]) * 6
    assert [n for n in found if is_test(n)] == [f"t{i}" for i in range(6)], "in the order of the sample"
    learned = [n for n in found if not is_test(n)]
    assert learned == [f"a{i}" for i in range(len(learned))], "in the order in which they were asked"


def test_what_is_shown_next_is_what_comes_then():
    run = Run()
    ahead = run.next(most=30)
    assert ahead == answered(run, 30)


def test_the_order_is_the_same_after_a_restart():
    run, chance = Run(), np.random.default_rng(0)
    for _ in range(20):
        image = run.first()
        run.add(do=str(chance.choice([SKIP, UNSURE])), image=image)
        if chance.random() < 0.7:
            run.label(run.first())
        again = State()
        for event in run.events:
            again.apply(event)
        assert upcoming(again, there, None) == run.next()


def test_no_image_is_in_the_list_twice_and_none_is_decided():
    for seed in range(20):
        run, chance = Run(), np.random.default_rng(seed)
        for _ in range(60):
            coming = run.next(most=99)
            assert len(coming) == len(set(coming))
            back = {*run.state.of_kind(SKIP), *run.state.of_kind(WRONG), *run.state.again}
            assert not {name for name in coming if name in run.state.current} - back
            if not coming:
                break
            image, chosen = coming[0], chance.random()
            if chosen < 0.5:
                run.label(image, int(chance.integers(1, 3)))
            elif chosen < 0.7:
                run.add(do=SKIP, image=image)
            elif chosen < 0.8:
                run.add(do=UNSURE, image=image)
            elif chosen < 0.9 and len(coming) > 4:
                shown = [n for n in coming[:4] if not is_test(n) and n not in run.state.current]
                run.page(shown[1:], shown[:1])
            else:
                labelled = run.state.of_kind(LABEL)
                run.again([n for n in labelled if not is_test(n) and n not in run.state.again][:2])


def test_everything_is_asked_in_the_end():
    run = Run(asked=23, tests=9)
    found = answered(run, 99)
    assert sorted(found) == sorted([f"a{i}" for i in range(23)] + [f"t{i}" for i in range(9)])
    assert run.next() == []


def test_skipped_images_come_back_at_the_end_also_those_to_test_on():
    run = Run(asked=7, tests=2)
    run.add(do=SKIP, image="a0")
    run.add(do=SKIP, image="t0")
    run.add(do=SKIP, image="a1")
    ahead = run.next(most=99)
    assert ahead[-3:] == ["a0", "t0", "a1"] and len(ahead) == 9
    assert answered(run, 6) == ahead[:6]
    run.add(do=SKIP, image="a0")
    assert run.next(most=99)[-3:] == ["t0", "a1", "a0"], "the one skipped last comes last"


def test_an_unsure_image_does_not_come_back():
    run = Run(asked=3, tests=1)
    for image in ("a0", "t0"):
        run.add(do=UNSURE, image=image)
    assert run.next() == ["a1", "a2"]


def test_images_marked_wrong_come_first():
    run = Run()
    run.page(["a5", "a6"], ["a7", "a8"])
    assert run.next()[:2] == ["a7", "a8"]
    run.label("a7", 2)
    assert run.first() == "a8"
    run.label("a8", NONE)
    assert not {"a5", "a6", "a7", "a8"} & set(run.next(most=99))


def test_a_page_counts_as_some_images_to_learn_from():
    run = Run()
    before = module.tests_due(run.state, there)
    for i in range(LEARNED_EACH):
        run.page([f"a{i}"])
    assert steps(run.state) == STEPS_OF_PAGE * LEARNED_EACH
    assert module.tests_due(run.state, there) - before == STEPS_OF_PAGE
    assert run.next()[:STEPS_OF_PAGE] == [f"t{i}" for i in range(STEPS_OF_PAGE)]


def test_images_to_test_on_and_undone_decisions_do_not_count():
    run = Run()
    n = run.label("a0")
    run.label("t0")
    assert steps(run.state) == 1
    run.add(do="undo", of=n)
    assert steps(run.state) == 0 and run.first() == "a0"


def test_a_label_is_asked_once_more_and_only_once():
    run = Run()
    labelled = [n for n in answered(run, 12) if not is_test(n)]
    run.again(labelled[:2])
    shown = answered(run, 3 * AGAIN_EACH)
    assert [name for name in shown if name in labelled] == labelled[:2]
    places = [shown.index(name) for name in labelled[:2]]
    assert places[1] - places[0] >= AGAIN_EACH - 1, "not one after the other"
    assert not set(labelled) & set(run.next(most=99)), "whatever was said then"


def test_a_label_given_again_meanwhile_is_not_asked_once_more():
    run = Run()
    run.label("a0")
    run.again(["a0"])
    assert "a0" in run.next(most=99)
    run.label("a0", 2)
    assert "a0" not in run.next(most=99)


def test_undoing_the_second_label_asks_once_more():
    run = Run()
    run.label("a0")
    run.again(["a0"])
    n = run.label("a0", 2)
    run.add(do="undo", of=n)
    assert "a0" in run.next(most=99)


def test_where_the_classes_have_become_one_there_is_nothing_to_ask():
    for event in ({"do": "merge", "class": 2, "into": 1}, {"do": "delete", "class": 2}):
        run = Run()
        run.label("a0")
        run.again(["a0"])
        n = run.add(**event)
        assert "a0" not in run.next(most=99)
        run.add(do="undo", of=n)
        assert "a0" in run.next(most=99)


def test_labels_are_asked_once_more_before_the_end_where_nothing_else_is_left():
    run = Run(asked=2, tests=0)
    answered(run, 2)
    run.again(["a0", "a1"])
    run.add(do="asked", images=["b"], how="random")
    run.add(do=SKIP, image="b")
    assert run.next() == ["a0", "a1", "b"]


@pytest.mark.parametrize("left", [0, 1, 3])
def test_the_budget_bounds_images_to_learn_from_but_not_those_to_test_on(left):
    run = Run(asked=10, tests=4)
    found = run.next(most=99, left=left)
    assert [name for name in found if not is_test(name)] == [f"a{i}" for i in range(left)]
    assert [name for name in found if is_test(name)] == [f"t{i}" for i in range(4)]


def test_images_that_are_gone_are_passed_over():
    run, gone = Run(asked=10, tests=4), {"a0", "a3", "t0", "t2"}
    run.add(do=SKIP, image="a3")
    run.page(["a4"], ["a5"])
    found = run.next(most=99, is_there=lambda name: name not in gone | {"a5"})
    assert not set(found) & (gone | {"a5"}) and len(found) == 6 + 2
    budget = run.next(most=99, left=3, is_there=lambda name: name not in gone | {"a5"})
    assert [n for n in budget if not is_test(n)] == ["a1", "a2", "a6"], "they do not count"


def test_images_to_test_on_that_are_gone_are_not_due():
    run = Run(asked=40, tests=2)
    for i in range(3 * LEARNED_EACH):
        run.label(f"a{i}")
    assert module.tests_due(run.state, there) == 2 and open_tests(run.state) == ["t0", "t1"]
    assert module.tests_due(run.state, lambda name: name != "t0") == 1
    assert module.tests_due(run.state, lambda name: False) == 0


def test_without_a_sample_or_without_images_nothing_is_due():
    assert module.tests_due(Run(tests=0).state, there) == 0 and len(Run(tests=0).next()) == 8
    assert Run(asked=0, tests=0).next() == []
    assert Run(asked=0, tests=3).next() == ["t0", "t1", "t2"]


def test_where_the_budget_is_spent_only_the_test_sample_is_asked_for():
    run = Run(asked=6, tests=3)
    run.add(do=SKIP, image="a0")
    run.add(do=SKIP, image="t0")
    run.page(["a1"], wrong=["a2", "a3"])
    assert run.next(left=1)[0] == "a2" and not {"a3", "a0"} & set(run.next(left=1))
    assert run.next(left=0) == ["t1", "t2", "t0"]
