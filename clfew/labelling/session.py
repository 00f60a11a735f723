"""One session of labelling: what the page asks for is done, and the classifier is fitted behind it."""

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from clfew import console
from clfew.errors import UserError
from clfew.labelling import upcoming
from clfew.labelling.assistant import Fit
from clfew.labelling.board import Board
from clfew.labelling.log import DecisionLog, Event
from clfew.labelling.requests import event_of, show
from clfew.labelling.server import Refused
from clfew.labelling.shown import shown, why_not_finish
from clfew.labelling.state import UNDOABLE, State

BATCH = 20
"""So many images are asked for at a time once the first ones have been labelled."""

MOST_NOTICES = 20

WAIT_SECONDS = 2.0
"""After a page was accepted, the next one waits so long for the classifier that knows it."""

LABELLING, FINISHING, STOPPED = "labelling", "finishing", "stopped"


@dataclass(frozen=True)
class Ended:
    """How fine-tuning ended. phase: "done" or "failed". lines: what came of it. next: what to type.
    list_file: the labels."""

    phase: str
    lines: list[str]
    next: str
    list_file: str


class Session:
    """Answers the page. Each method may be called from any thread.

    source: its name, to show. lock: held while something changes. phase: see the constants; ended: how
    fine-tuning ended, None before. version: it changes with what is shown. seen: when the page last
    asked for something, by the monotonic clock.
    """

    def __init__(self, source: str, board: Board, log: DecisionLog) -> None:
        self.source, self.board, self._log = source, board, log
        board.decided = State.of(log.events)
        board.refresh_open()
        self.lock = threading.Condition(threading.RLock())
        self.phase, self.version, self.seen = LABELLING, 0, 0.0
        self.ended: Ended | None = None
        self._notices = deque[dict[str, Any]](maxlen=MOST_NOTICES)
        self._fitted, self._wanted, self._waiting = -1, 0, False
        self._tests_are_due = False

    @property
    def decided(self) -> State:
        return self.board.decided

    @property
    def events(self) -> list[Event]:
        return self._log.events

    def state(self) -> dict[str, Any]:
        """Returns what is to be shown."""
        with self.lock:
            self.seen = time.monotonic()
            # Between pages, images of the test sample come several at a time.
            due = upcoming.tests_due(self.decided, self.board.is_there)
            self._tests_are_due = due > 0 and (self._tests_are_due or due >= upcoming.TESTS_AT_ONCE)
            return {
                "version": self.version,
                "run": self._log.identity,
                "source": self.source,
                "phase": self.phase if self.ended is None else self.ended.phase,
                **shown(self.board, self._tests_are_due),
                "busy": self._fitted < self._wanted,
                "notices": list(self._notices),
                "result": self.ended
                and {
                    "lines": self.ended.lines,
                    "next": self.ended.next,
                    "list": self.ended.list_file,
                },
            }

    def do(self, request: dict[str, Any]) -> dict[str, Any]:
        """Does what the page asks for; returns what is to be shown then. A request that was done before
        is not done again. Raises Refused."""
        with self.lock:
            sent = request.get("request")
            if not isinstance(sent, str) or not 0 < len(sent) <= 64:
                raise Refused(400, "The request has no number.", "reload the page.")
            if sent not in self.decided.requests:
                self._do(request, sent)
            return self.state()

    def _do(self, request: dict[str, Any], sent: str) -> None:
        if self.phase != LABELLING:
            raise Refused(409, "clfew fine-tunes on the labels now.", "wait until it has finished.")
        if request.get("do") == "show":
            show(self.board, request)
            self._changed()
        elif request.get("do") == "finish":
            if (why := why_not_finish(self.board)) is not None:
                raise Refused(409, why)
            self.phase = FINISHING
            self._changed()
        else:
            event = event_of(self.board, request)
            self.append({**event, "request": sent})
            if event["do"] == "page":
                self.board.page, self._waiting = None, True
                self.lock.wait_for(lambda: self._fitted >= self._wanted, WAIT_SECONDS)
                self._waiting = False

    def append(self, event: Event) -> None:
        """Writes an event to the log and does it. Raises Refused if it cannot be written."""
        with self.lock:
            try:
                event = self._log.append(event)
            except UserError as error:
                raise Refused(507, error.message, error.hint) from None
            self.decided.apply(event)
            if event["do"] in (*UNDOABLE, "undo", "listed"):
                self.board.refresh_open(event)
                self._wanted += 1
            if event["do"] != "list":
                self._changed()

    def gone(self, number: int, reason: str) -> None:
        """Takes an image out that cannot be shown."""
        with self.lock:
            name = self.board.names[number]
            if name not in self.board.gone:
                self.board.gone.add(name)
                self.board.refresh_open()
                self._notice(f"{name} cannot be shown ({reason}): it is skipped.")

    def end(self, ended: Ended) -> None:
        """Shows how fine-tuning ended."""
        with self.lock:
            self.ended = ended
            self._changed()

    def stop(self) -> None:
        """Ends `work`."""
        with self.lock:
            self.phase = STOPPED
            self._changed()

    def _notice(self, text: str) -> None:
        last = self._notices[-1]["id"] if self._notices else 0
        self._notices.append({"id": last + 1, "text": console.printable(text)})
        self._changed()

    def _changed(self) -> None:
        self.version += 1
        self.lock.notify_all()

    def work(self) -> None:
        """Fits the classifier whenever labels have changed, and chooses more images to ask for. It is
        the body of a thread of its own, which `stop` ends."""
        while True:
            with self.lock:
                self.lock.wait_for(lambda: self._fitted < self._wanted or self.phase == STOPPED)
                if self.phase == STOPPED:
                    return
            try:
                self.work_once()
            except Refused as refused:
                with self.lock:
                    self._fitted = self._wanted
                    self._notice(f"{refused.sentence} {refused.hint}")
            except Exception as error:  # Labelling goes on without a classifier.
                with self.lock:
                    self._fitted = self._wanted
                    self._notice(f"The classifier could not be fitted ({type(error).__name__}).")
                console.say(f"note       the classifier could not be fitted: {error!r}")

    def work_once(self) -> None:
        """Fits the classifier to the labels so far, and chooses more images to ask for."""
        board = self.board
        with self.lock:
            wanted, labels = self._wanted, board.labels()
        fit = board.work.assistant.fit(labels) if labels is not None else None
        with self.lock:
            board.fit = fit
            board.verdict = board.verdict if fit is not None else None
            self._fitted = wanted
            self._changed()
        if fit is not None:
            self._judge(fit)
        self.ask(BATCH, BATCH // 2)

    def _judge(self, fit: Fit) -> None:
        """Says how good the classifier is, and asks once more for labels that contradict their
        neighbours. Images of the test sample are not among them: the classifier knows none of these."""
        # Not while a page waits for a classifier that knows the last one.
        verdict = self.board.work.assistant.judge(fit, lambda: not self._waiting)
        if verdict is None:
            return
        decided = self.decided
        with self.lock:
            self.board.verdict = verdict
            again = {}
            for row, place in verdict.contradicted:
                name = self.board.work.names[row]
                if name not in decided.again and decided.label(name) is not None:
                    again[name] = fit.labels.numbers[place]
            if again:
                self.append({"do": "again", "images": again})
            self._changed()

    def ask(self, count: int, fewest: int | None = None) -> None:
        """Chooses images to ask for, at most `count`. fewest: only where fewer than so many are left of
        those that were chosen before; None in any case."""
        board, rows = self.board, self.board.work.rows
        with self.lock:
            left = [name for name in self.decided.asked if name not in self.decided.current]
            left = [name for name in left if board.is_there(name)]
            budget, is_open = board.budget_left(), board.is_open.copy()
            waiting = [rows[name] for name in left if name in rows]
            is_open[waiting] = False
            asked = [rows[name] for name in self.decided.current if name in rows] + waiting
            fit = board.fit
        count = count if budget is None else min(count, budget - len(left))
        if (fewest is not None and len(left) >= fewest) or count <= 0 or not is_open.any():
            return
        names, how = board.work.ask(is_open, np.unique(np.array(asked, np.int64)), count, fit)
        if names:
            self.append({"do": "asked", "images": names, "how": how})
