"""The log of what was decided: one JSON object a line, on the disk before anybody is answered."""

import contextlib
import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from clfew.errors import UserError
from clfew.runs.files import sync_folder

LOG = "decisions.jsonl"

Event = dict[str, Any]

_NEEDED: dict[str, dict[str, type]] = {
    "listed": {"rows": list},
    "asked": {"images": list, "how": str},
    "test": {"images": list, "how": str},
    "again": {"images": dict},
    "class": {"class": int, "name": str},
    "label": {"image": str, "class": int},
    "skip": {"image": str},
    "unsure": {"image": str},
    "page": {"class": int, "labels": dict, "wrong": list},
    "rename": {"class": int, "name": str},
    "merge": {"class": int, "into": int},
    "delete": {"class": int},
    "undo": {"of": int},
    "served": {"port": int},
    "list": {"digest": str},
}
"""What each kind of event has (see `state`): a line without it is damaged."""


class DecisionLog:
    """The events of a run, in their order. Each has a number `n`, counted from 1, and a time `at`.

    damaged: how many lines could not be read; they are passed over and stay in the file.
    """

    def __init__(self, path: Path) -> None:
        """Opens a log, or makes it. A line without an end is what a kill left of an event that was never
        confirmed: it is removed. Raises UserError."""
        self.path, self.damaged = path, 0
        self.events: list[Event] = []
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            with open(path, "rb") as file:
                content = file.read()
            self._size = content.rfind(b"\n") + 1
            if self._size < len(content):
                os.ftruncate(self._descriptor, self._size)
            sync_folder(path.parent)
        except OSError as error:
            raise UserError(
                f"{path} cannot be opened: {error.strerror or error}.", "check who may write it."
            ) from None
        for line in content[: self._size].split(b"\n")[:-1]:
            event = _read(line)
            if event is None:
                self.damaged += 1
            else:
                self.events.append(event)
        self._last = max((each["n"] for each in self.events), default=0)

    @property
    def identity(self) -> str:
        """A name that no other log has: the time of its first event, "" while it is empty."""
        return str(self.events[0].get("at", "")) if self.events else ""

    def append(self, event: Event) -> Event:
        """Adds an event and waits until it is on the disk; returns it with its number and time. Raises
        UserError if that fails; then the log is as it was."""
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        event = {"n": self._last + 1, "at": now, **event}
        line = json.dumps(event, separators=(",", ":")).encode() + b"\n"
        try:
            _write_at(self._descriptor, line, self._size)
            os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise UserError(
                f"{self.path} cannot be written ({len(line):,} bytes more): {error.strerror or error}.",
                "free some space; what was decided before is safe.",
            ) from None
        self._size += len(line)
        self._last += 1
        self.events.append(event)
        return event

    def close(self) -> None:
        os.close(self._descriptor)


def _write_at(descriptor: int, content: bytes, place: int) -> None:
    """Writes all bytes at a place of a file, whatever a write before that failed has left there."""
    os.lseek(descriptor, place, os.SEEK_SET)
    while content:
        content = content[os.write(descriptor, content) :]


def _read(line: bytes) -> Event | None:
    """Returns the event in a line, None for anything else."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_event = isinstance(event, dict) and isinstance(event.get("do"), str)
    if not is_event or type(event.get("n")) is not int or event["n"] < 1:
        return None
    needed = _NEEDED.get(event["do"], {})
    return event if all(isinstance(event.get(key), kind) for key, kind in needed.items()) else None
