"""Stops on request: the first SIGINT or SIGTERM is recorded, the second ends the process at once."""

import os
import signal
import threading
from types import FrameType
from typing import Any


class StopRequest:
    """Inside this context, `signal` holds the number of the first SIGINT or SIGTERM, or 0 before it.

    Inside another StopRequest, it starts with the signal that the outer one has recorded, and passes its
    own on to the outer one at the end. So a signal in the last step of one training also stops a command
    that trains several times.
    """

    _HANDLED = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[signal.Signals, Any] = {}
        self._outer: StopRequest | None = None

    def __enter__(self) -> "StopRequest":
        # Python lets only the main thread set signal handlers. Other threads leave them as they are.
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._record) for s in self._HANDLED}
            outer = getattr(self._before[signal.SIGINT], "__self__", None)
            if isinstance(outer, StopRequest):
                self._outer, self.signal = outer, self.signal or outer.signal
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._outer is not None:
            self._outer.signal = self._outer.signal or self.signal

    def _record(self, number: int, _: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)
        self.signal = number
