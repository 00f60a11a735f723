"""Which images are labelled one by one, and in which order."""

from collections.abc import Callable

from clfew.labelling.state import SKIP, WRONG, State

FIRST = 40
"""So many images are labelled one by one before a page of them is proposed."""

LEARNED_EACH = 5
"""An image of the test sample comes after so many that are learned from."""

STEPS_OF_PAGE = 3
"""So many images that are learned from a page counts as."""

TESTS_AT_ONCE = 4
"""Between pages, images of the test sample come when so many are due."""

AGAIN_EACH = 5
"""Of so many images one may be a label that is asked once more."""


def steps(state: State) -> int:
    """Returns how many images to learn from have been labelled, where a page counts as some."""
    return state.singles + STEPS_OF_PAGE * state.pages


def open_tests(state: State) -> list[str]:
    """Returns the images of the test sample of which nothing is decided, in their order."""
    return [name for name in state.tests if name not in state.current]


def tests_due(state: State, is_there: Callable[[str], bool]) -> int:
    """Returns how many images of the test sample should have been labelled by now, and were not.
    is_there: whether an image can be shown."""
    left = open_tests(state)
    due = steps(state) // LEARNED_EACH - (len(state.tests) - len(left))
    return min(sum(map(is_there, left)), due)


def upcoming(
    state: State, is_there: Callable[[str], bool], learned_left: int | None, most: int = 8
) -> list[str]:
    """Returns the images to label next, the first one first.

    First come those that were marked wrong in a page; then images to learn from, with those of the test
    sample and labels that are asked once more in between; at the end those that were skipped.
    is_there: whether an image can be shown. learned_left: so many images more may be asked to learn
    from, None for all.
    """

    def open_of(names: list[str]) -> list[str]:
        return [name for name in names if is_there(name)]

    wrong, skipped = open_of(state.of_kind(WRONG)), open_of(state.of_kind(SKIP))
    again = open_of([name for name, each in state.again.items() if _is_before(state, name, each.n)])
    tests = open_of(open_tests(state))
    asked = open_of([name for name in state.asked if name not in state.current])
    if learned_left is not None:
        wrong = wrong[:learned_left]
        asked = asked[: learned_left - len(wrong)]
        is_spent = len(wrong) + len(asked) >= learned_left
        skipped = [name for name in skipped if name in state.tests or not is_spent]
    learned = steps(state)
    due = learned // LEARNED_EACH - (len(state.tests) - len(open_tests(state)))
    found: list[str] = []
    while len(found) < most and (wrong or again or tests or asked or skipped):
        if wrong:
            source = wrong
        elif again and (learned % AGAIN_EACH == AGAIN_EACH - 1 or not (asked or tests)):
            source = again
        elif tests and (due > 0 or not asked):
            source, due = tests, due - 1
        else:
            source = asked or skipped
        if source is not tests:
            learned += 1
            due += learned % LEARNED_EACH == 0
        found.append(source.pop(0))
    return found


def _is_before(state: State, image: str, n: int) -> bool:
    """Returns whether an image's label was given before event `n`, which asks for it once more: not if
    the class of its neighbours has become its own, or was deleted."""
    made = state.current.get(image)
    if made is None or made.label is None or made.n >= n:
        return False
    return state.now(state.again[image].neighbours) not in (None, made.label)
