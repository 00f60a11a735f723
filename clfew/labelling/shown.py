"""What the page is shown of a session: see page.html for what it does with it."""

from typing import Any

from clfew.data.label_lists import RANDOM
from clfew.finetuning.metrics import wilson_interval
from clfew.labelling import upcoming
from clfew.labelling.board import Board
from clfew.labelling.log import Event
from clfew.labelling.pages import Choice, Page
from clfew.labelling.state import NONE, SKIP, UNSURE, WRONG

SHOWN = 20
"""So many of the last decisions are shown."""

Shown = dict[str, Any]


def shown(board: Board, tests_are_due: bool) -> Shown:
    """Returns what is shown of the decisions, of the images to label next, and of the classifier.
    tests_are_due: whether images of the test sample come before the next page."""
    decided, found = board.decided, board.choices()
    page = board.current_page(found)
    on_page = {board.work.names[row] for row in page.rows} if page is not None else set()

    def is_free(name: str) -> bool:
        return board.is_there(name) and name not in on_page

    queue = upcoming.upcoming(decided, is_free, board.budget_left())
    tested = [name for name in decided.tests if decided.label(name) is not None]
    return {
        **_classes(board),
        "queue": [{"image": board.numbers[name], "again": _again(board, name)} for name in queue],
        "page": _page(board, page),
        "why_no_page": None if page else board.why_no_page(),
        "choices": [{"class": each.label, "found": each.found} for each in found],
        "suggest": _suggested(board, page, queue, found, tests_are_due),
        "history": [_event(board, each) for each in reversed(decided.history[-SHOWN:])],
        "unsure": _numbers(board, decided.of_kind(UNSURE)),
        "skipped": _numbers(board, decided.of_kind(SKIP)),
        "left": {
            "images": int(board.is_open.sum()),
            "budget": board.budget_left(),
            "test": sum(map(board.is_there, upcoming.open_tests(decided))),
        },
        "labels": len(board.learned()),
        "tested": len(tested),
        "sure": _sure(board),
        "accuracy": _accuracy(board, tested),
        "curve": _curve(board),
        "can_finish": why_not_finish(board),
    }


def why_not_finish(board: Board) -> str | None:
    """Returns in words why there is no classifier to be had, None where there is."""
    classes = {board.decided.label(name) for name in board.learned() if board.is_there(name)}
    return None if len(classes) > 1 else "A classifier needs labels of two classes."


def _classes(board: Board) -> Shown:
    decided, keys = board.decided, board.decided.keys()
    rows = [
        {"id": n, "name": each.name, "key": keys[n], "labels": decided.counts[n]}
        for n, each in decided.classes.items()
    ]
    return {"classes": rows, "none": {"labels": decided.counts[NONE]}}


def _again(board: Board, name: str) -> Shown | None:
    """Returns the label of an image that is asked once more, and that of its neighbours."""
    own, again = board.decided.label(name), board.decided.again.get(name)
    if own is None or again is None:
        return None
    return {"label": own, "neighbours": board.decided.now(again.neighbours)}


def _page(board: Board, page: Page | None) -> Shown | None:
    if page is None:
        return None
    images = [board.number(row) for row in page.rows]
    return {"class": page.label, "order": page.order, "images": images, "found": page.found}


def _suggested(
    board: Board, page: Page | None, queue: list[str], found: list[Choice], tests_are_due: bool
) -> str:
    """Returns "one" or "page": a page, unless there is none that is worth it, the first images have not
    been labelled one by one, or others have to be before."""
    if page is None or not queue:
        return "one" if page is None else "page"
    decided = board.decided
    is_early = decided.counts.total() < upcoming.FIRST and any(
        name not in decided.current for name in decided.asked
    )
    is_worth = any(each.is_worth for each in found)
    one_first = is_early or tests_are_due or not is_worth or decided.of_kind(WRONG)
    return "one" if one_first else "page"


def _event(board: Board, event: Event) -> Shown:
    image, label = event.get("image"), board.decided.now(event.get("class"))
    text = event.get("name") or (board.decided.name_of(label) if label is not None else "")
    count = len(event.get("labels", ())) + len(event.get("wrong", ())) or 1
    number = board.numbers.get(image) if image is not None else None
    row = {"n": event["n"], "do": event["do"], "image": number, "class": label}
    return row | {"count": count, "text": text}


def _sure(board: Board) -> Shown | None:
    """Returns of how many of the open images the classifier is sure; None where it has too few labels to
    tell."""
    if board.verdict is None or not board.verdict.can_be_sure:
        return None
    sure, of = int((board.verdict.sure & board.is_open).sum()), int(board.is_open.sum())
    return {"fraction": sure / max(1, of), "images": sure, "of": of}


def _accuracy(board: Board, tested: list[str]) -> Shown | None:
    """Returns the accuracy on the test sample alone, with its interval. random: whether it was drawn at
    random, as far as the list says that it came with."""
    if board.fit is None:
        return None
    numbers, decided = board.fit.labels.numbers, board.decided
    said = dict(zip(board.work.tested, (numbers[i] for i in board.fit.tested), strict=True))
    images = [name for name in tested if name in said]
    if not images:
        return None
    right = sum(decided.now(said[name]) == decided.label(name) for name in images)
    low, high = wilson_interval(right, len(images))
    unsure = sum(name in decided.tests for name in decided.of_kind(UNSURE))
    row = {"mean": right / len(images), "low": low, "high": high}
    is_random = all(how.startswith(RANDOM) for how in decided.tests.values())
    return row | {"images": len(images), "unsure": unsure, "random": is_random}


def _curve(board: Board) -> Shown | None:
    verdict, fit = board.verdict, board.fit
    if verdict is None or fit is None or not verdict.before:
        return None
    row = {"changed": verdict.changed, "before": verdict.before, "now": len(fit.labels.rows)}
    return row | {"enough": verdict.is_enough}


def _numbers(board: Board, names: list[str]) -> list[int]:
    return [board.numbers[name] for name in names if board.is_there(name)]
