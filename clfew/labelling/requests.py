"""From what the page asks for to events of the log."""

from collections.abc import Callable
from typing import Any

from clfew.labelling import pages
from clfew.labelling.board import Board
from clfew.labelling.log import Event
from clfew.labelling.server import Refused
from clfew.labelling.state import LABEL, NONE, SKIP, UNSURE

MOST_NAME = 200

Request = dict[str, Any]


def event_of(board: Board, request: Request) -> Event:
    """Returns the event that a request asks for. Raises Refused if it cannot be done."""
    make = _MAKERS.get(request.get("do", "")) if isinstance(request.get("do"), str) else None
    if make is None:
        raise Refused(400, "The request is unknown.", "reload the page.")
    return make(board, request)


def show(board: Board, request: Request) -> None:
    """Shows another page. Raises Refused."""
    order, asked = request.get("order") or pages.MIXED, request.get("class")
    if order not in pages.ORDERS:
        raise Refused(400, "There is no such order.", "reload the page.")
    board.asked_class = None if asked is None else _class(board, request, "class")
    board.order, board.page = order, None


def _label(board: Board, request: Request) -> Event:
    event = {"do": LABEL, "image": _image(board, request)}
    if "name" not in request:
        return {**event, "class": _class(board, request, "class")}
    name = _name(request)
    number = board.decided.number_of(name)
    if number is not None:
        return {**event, "class": number}
    return {**event, "class": board.decided.next_number(), "name": name}


def _set_aside(board: Board, request: Request) -> Event:
    return {"do": request["do"], "image": _image(board, request)}


def _accept(board: Board, request: Request) -> Event:
    label, wrong, page = request.get("class"), request.get("wrong"), board.page
    shown = [] if page is None else [board.number(row) for row in page.rows]
    if page is None or shown != request.get("images") or label != page.label:
        raise Refused(409, "This page has changed in the meantime.", "look at the new one.")
    if not isinstance(wrong, list) or not all(isinstance(each, dict) for each in wrong):
        raise Refused(400, "The request is not complete.", "reload the page.")
    if not all(type(each.get("image")) is int and each["image"] in shown for each in wrong):
        raise Refused(400, "An image that is not in the page was marked.", "reload the page.")
    corrected, labels, marked = {each["image"]: each.get("class") for each in wrong}, {}, []
    for number in shown:
        own = corrected.get(number)
        if number not in corrected:
            labels[board.names[number]] = page.label
        elif own is None:
            marked.append(board.names[number])
        else:
            labels[board.names[number]] = _class(board, {"class": own}, "class")
    return {"do": "page", "class": page.label, "labels": labels, "wrong": marked}


def _undone(board: Board, request: Request) -> Event:
    events = board.decided.history
    number = request.get("n", events[-1]["n"] if events else None)
    if type(number) is not int or not any(each["n"] == number for each in events):
        raise Refused(409, "There is nothing to undo.")
    return {"do": "undo", "of": number}


def _make_class(board: Board, request: Request) -> Event:
    name = _name(request)
    if board.decided.number_of(name) is not None:
        raise Refused(409, f"There is a class {name} already.")
    return {"do": "class", "class": board.decided.next_number(), "name": name}


def _rename(board: Board, request: Request) -> Event:
    number, name = _class(board, request, "class", is_own=True), _name(request)
    if board.decided.number_of(name) not in (None, number):
        raise Refused(409, f"There is a class {name} already.", "merge the two instead.")
    return {"do": "rename", "class": number, "name": name}


def _merge(board: Board, request: Request) -> Event:
    number, into = _class(board, request, "class", is_own=True), _class(board, request, "into")
    if number == into:
        raise Refused(409, "A class cannot be merged into itself.", "choose another one.")
    return {"do": "merge", "class": number, "into": into}


def _delete(board: Board, request: Request) -> Event:
    return {"do": "delete", "class": _class(board, request, "class", is_own=True)}


def _image(board: Board, request: Request) -> str:
    number = request.get("image")
    if type(number) is not int or not 0 <= number < len(board.names):
        raise Refused(400, "There is no such image.", "reload the page.")
    return board.names[number]


def _class(board: Board, request: Request, key: str, is_own: bool = False) -> int:
    """Returns the number of a class that there is. is_own: not "none of these"."""
    number = request.get(key)
    if type(number) is int and (number in board.decided.classes or (number == NONE and not is_own)):
        return number
    raise Refused(409, "There is no such class any more.", "choose another one.")


def _name(request: Request) -> str:
    name = request.get("name")
    name = " ".join(name.split()) if isinstance(name, str) else ""
    if not name or len(name) > MOST_NAME or not name.isprintable():
        raise Refused(400, f"A class needs a name of 1 to {MOST_NAME} letters.")
    return name


_MAKERS: dict[str, Callable[[Board, Request], Event]] = {
    LABEL: _label,
    SKIP: _set_aside,
    UNSURE: _set_aside,
    "page": _accept,
    "undo": _undone,
    "class": _make_class,
    "rename": _rename,
    "merge": _merge,
    "delete": _delete,
}
