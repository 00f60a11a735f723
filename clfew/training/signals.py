"""Stops on request: the first SIGINT or SIGTERM is recorded, the second ends the process at once."""

import os
import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Inside this context, `signal` holds the number of the first SIGINT or SIGTERM, or 0 before it.

    A command that trains several times gives its own to each training, so that a signal between two of
    them, or in the last step of one, stops the command.
    """

    _HANDLED = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        # Python lets only the main thread set signal handlers. Other threads leave them as they are.
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._record) for s in self._HANDLED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, _: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number
