"""Stops on request: the first SIGINT or SIGTERM is recorded. The second ends a command at once; in a
program that calls clfew it does what it would have done without clfew. Processes that torchrun has
started get one signal several times, so only the first counts."""

import os
import signal
import threading
from types import FrameType
from typing import Any

from clfew import console
from clfew.group.launch import launch, notice


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
            # A handler that was not set from Python cannot be put back.
            known = [number for number in self._HANDLED if signal.getsignal(number) is not None]
            self._before = {number: signal.signal(number, self._record) for number in known}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        notice()
        before = self._before.get(signal.Signals(number))
        if self.signal and not console.is_command and callable(before):
            before(number, frame)
        elif self.signal and launch() is None:
            os._exit(128 + number)
        self.signal = self.signal or number if launch() else number
