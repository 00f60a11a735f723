"""What has been decided, against a slow transcription that computes everything anew after each event."""

import json
from collections import Counter

import numpy as np
import pytest
from slow_decisions import Slow

from clfew.labelling.state import LABEL, NONE, NONE_NAME, SKIP, UNSURE, WRONG, State

IMAGES = [f"{i}.jpg" for i in range(12)]


def assert_same(state, slow):
    names, _ = slow.classes()
    current = slow.current()
    assert {number: each.name for number, each in state.classes.items()} == names
    assert {image: (d.n, d.kind, d.label) for image, d in state.current.items()} == current
    order = [made.n for made in state.current.values()]
    assert order == sorted(order), "the last decision comes last"
    for kind in (LABEL, SKIP, UNSURE, WRONG):
        assert state.of_kind(kind) == [name for name, d in state.current.items() if d.kind == kind]
    counts = Counter(label for _, _, label in current.values() if label is not None)
    assert +state.counts == counts
    assert [each["n"] for each in state.history] == [each["n"] for each in slow.left]
    assert all(state.label(image) == current.get(image, (0, "", None))[2] for image in IMAGES)
    assert state.next_number() == slow.ever + 1


def random_event(chance, state, n):
    """An event that a page may ask for now."""
    classes, event = list(state.classes), {"n": n, "request": f"{n:x}"}
    image = str(chance.choice(IMAGES))
    kinds = ["new", "class", SKIP, UNSURE, "undo", "undo"]
    if classes:
        kinds += [LABEL] * 4 + ["page", "page", "rename", "merge", "delete"]
    do, own = chance.choice(kinds), int(chance.choice(classes)) if classes else NONE
    if do in ("new", "class"):
        made = {"class": state.next_number(), "name": f"class {n}"}
        return event | made | ({"do": LABEL, "image": image} if do == "new" else {"do": "class"})
    if do == LABEL:
        return event | {"do": LABEL, "image": image, "class": int(chance.choice([NONE, *classes]))}
    if do == "page":
        shown = chance.choice(IMAGES, 4, replace=False).tolist()
        labels = {shown[0]: own, shown[1]: own, shown[2]: int(chance.choice([NONE, *classes]))}
        return event | {"do": "page", "class": own, "labels": labels, "wrong": shown[3:]}
    if do == "rename":
        return event | {"do": "rename", "class": own, "name": f"renamed {n}"}
    if do == "merge":
        others = [each for each in [NONE, *classes] if each != own]
        return event | {"do": "merge", "class": own, "into": int(chance.choice(others))}
    if do == "delete":
        return event | {"do": "delete", "class": own}
    if do == "undo":
        return event | {"do": "undo", "of": int(chance.integers(1, n + 1))}
    return event | {"do": str(do), "image": image}


@pytest.mark.parametrize("seed", range(60))
def test_any_sequence_of_events_gives_what_the_slow_transcription_gives(seed):
    chance, state, slow, events = np.random.default_rng(seed), State(), Slow(), []
    for n in range(1, 120):
        events.append(json.loads(json.dumps(random_event(chance, state, n))))
        state.apply(events[-1])
        slow.apply(events[-1])
        assert_same(state, slow)
    again = State()
    for event in events:
        again.apply(event)
    assert again == state and list(again.current) == list(state.current)


def state_of(*events):
    state = State()
    for n, event in enumerate(events, 1):
        state.apply({"n": n, **event})
    return state


def made(*names):
    return [{"do": "class", "class": i, "name": name} for i, name in enumerate(names, 1)]


def label(image, number, **more):
    return {"do": LABEL, "image": image, "class": number, **more}


def undo(n):
    return {"do": "undo", "of": n}


def test_undoing_everything_leaves_nothing():
    for seed in range(10):
        chance, state = np.random.default_rng([7, seed]), State()
        for n in range(1, 60):
            state.apply(random_event(chance, state, n))
        while state.history:
            n += 1
            state.apply({"n": n, "do": "undo", "of": state.history[-1]["n"]})
        assert not state.current and not +state.counts and not any(map(state.of_kind, ("skip", "wrong")))


def test_what_was_undone_cannot_be_undone_again():
    state = state_of(*made("deer"), label("a", 1), label("a", NONE), undo(3), undo(3), undo(4), undo(99))
    assert state.label("a") == 1 and [each["n"] for each in state.history] == [1, 2]


def test_an_undone_decision_brings_back_the_one_before_it_in_its_place():
    state = state_of(*made("deer"), label("a", 1), label("b", 1), label("a", NONE), undo(4))
    assert state.label("a") == 1 and state.of_kind(LABEL) == ["a", "b"]


def test_deleting_a_class_opens_its_images_and_undo_gives_them_back():
    events = [*made("deer", "fox"), label("a", 1), label("b", 2), {"do": SKIP, "image": "c"}]
    state = state_of(*events, {"do": "delete", "class": 1})
    assert list(state.current) == ["b", "c"] and state.counts[1] == 0 and list(state.classes) == [2]
    assert state_of(*events, {"do": "delete", "class": 1}, undo(6)).label("a") == 1
    again = state_of(*events, {"do": "delete", "class": 1}, label("a", 2), undo(6))
    assert again.label("a") == 2 and list(again.classes) == [1, 2]


def test_an_image_that_was_labelled_before_its_class_was_deleted_stays_open():
    state = state_of(*made("deer", "fox"), label("a", 2), label("a", 1), {"do": "delete", "class": 1})
    assert state.label("a") is None and "a" not in state.current


def test_merged_classes_become_one_however_often():
    events = [*made("buck", "doe", "deer"), label("a", 1), label("b", 2), label("c", 3)]
    merges = [{"do": "merge", "class": 1, "into": 2}, {"do": "merge", "class": 2, "into": 3}]
    state = state_of(*events, *merges)
    assert [state.label(image) for image in "abc"] == [3, 3, 3] and state.counts[3] == 3
    assert state.now(1) == 3 and list(state.classes) == [3]
    state = state_of(*events, *merges, undo(8))
    assert [state.label(image) for image in "abc"] == [2, 2, 3]
    state = state_of(*events, *merges, {"do": "delete", "class": 3})
    assert not state.current and state.now(1) is None
    state = state_of(*events, {"do": "merge", "class": 1, "into": NONE})
    assert state.label("a") == NONE and state.counts[NONE] == 1


def test_a_class_that_others_were_merged_into_stays_when_its_making_is_undone():
    merge = {"do": "merge", "class": 1, "into": 2}
    state = state_of(*made("buck", "deer"), label("a", 1), merge, undo(2))
    assert state.label("a") == 2 and state.name_of(2) == "deer"


def test_a_class_made_by_a_label_goes_with_it_unless_other_images_have_it():
    new = label("a", 1, name="lynx")
    assert not state_of(new, undo(1)).classes
    state = state_of(new, label("b", 1), undo(1))
    assert list(state.classes) == [1] and state.label("b") == 1 and state.label("a") is None
    assert not state_of(new, {"do": "rename", "class": 1, "name": "wild cat"}, undo(1)).classes
    assert state_of(new, undo(1)).next_number() == 2, "no number is given twice"


def test_a_renamed_class_keeps_its_images_and_undo_its_name():
    events = [*made("deer"), label("a", 1), {"do": "rename", "class": 1, "name": "roe deer"}]
    assert state_of(*events).name_of(1) == "roe deer" and state_of(*events).label("a") == 1
    assert state_of(*events, undo(3)).name_of(1) == "deer"


def keys_of(*events):
    state = state_of(*events)
    return {state.name_of(number): key for number, key in state.keys().items()}


TEN = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay"]


def test_the_first_nine_classes_have_keys():
    keys = keys_of(*made(*TEN))
    assert [keys[name] for name in TEN] == [*"123456789", None]


def test_a_class_keeps_its_key_when_another_is_deleted_or_merged():
    for event in ({"do": "delete", "class": 2}, {"do": "merge", "class": 2, "into": 1}):
        before, after = keys_of(*made(*TEN[:5])), keys_of(*made(*TEN[:5]), event)
        assert after == {name: key for name, key in before.items() if name != "bee"}
        new = {"do": "class", "class": 6, "name": "yak"}
        assert keys_of(*made(*TEN[:5]), event, new) == after | {"yak": "2"}
        # The key that is left goes to the one that had none, and the next class has none.
        ten = keys_of(*made(*TEN), event, {"do": "class", "class": 11, "name": "yak"})
        expected = keys_of(*made(*TEN)) | {"jay": "2", "yak": None}
        del expected["bee"]
        assert ten == expected


def test_a_class_whose_name_is_a_digit_has_that_key():
    assert keys_of(*made("5", "a", "1", "b", "0")) == {"5": "5", "a": "2", "1": "1", "b": "3", "0": "0"}
    assert keys_of(*made("a", "b", "1")) == {"a": "3", "b": "2", "1": "1"}
    assert keys_of(*made(*"0123456789")) == {digit: digit for digit in "0123456789"}
    zero = {"do": "rename", "class": 1, "name": "zero"}
    assert keys_of(*made("0", "a"), zero) == {"zero": "2", "a": "1"}


def test_no_class_has_a_key_where_digits_begin_the_name_of_one_without():
    assert set(keys_of(*made(*TEN[:9], "10 euros")).values()) == {None}
    assert keys_of(*made("10 euros", *TEN[:8]))["10 euros"] == "1"
    assert keys_of(*made(*TEN, "2"))["2"] == "2"
    # Once it has a name without one, or is gone, keys come back.
    state = [*made(*TEN[:9], "10 euros"), {"do": "delete", "class": 10}]
    assert [keys_of(*state)[name] for name in TEN[:9]] == list("123456789")


def test_a_class_is_found_by_its_name_whatever_the_case_of_its_letters():
    state = state_of(*made("Deer", "fox", "FOX", "straße"))
    assert [state.number_of(n) for n in ("Deer", "deer", "fox", "FOX")] == [1, 1, 2, 3]
    assert state.number_of("STRASSE") == 4
    assert state.number_of("Fox") is None and state.number_of("lynx") is None
    assert state.number_of(NONE_NAME) == state.number_of("None Of These") == NONE
    twice = [*made("deer"), {"do": "rename", "class": 1, "name": "roe"}, *made("", "deer")[1:], undo(2)]
    assert state_of(*twice).number_of("deer") == 1, "a third one of the name is not made"


def test_a_list_so_far_is_taken_over():
    rows = [["a", "deer", "train", 1, "listed", ""], ["b", "", "train", 2, "listed", ""]]
    rows += [["c", NONE_NAME, "test", 3, "random", ""]]
    state = state_of(*made("deer"), {"do": "listed", "rows": rows})
    assert (state.label("a"), state.label("b"), state.label("c")) == (1, None, NONE)
    assert not [each for each in state.history if each["do"] == "listed"], "it cannot be undone"


def test_requests_are_known_even_when_they_were_undone():
    state = state_of({"do": SKIP, "image": "a", "request": "r1"}, undo(1) | {"request": "r2"})
    assert state.requests == {"r1", "r2"} and not state.current
