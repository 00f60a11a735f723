"""How the processes of a start find each other in torchrun's store.

The store may be that of an earlier start, whose processes have ended, and torchrun's machines do not
count restarts alike. So the leader gives each start a name, and tells each other process that it lives.
"""

import time
import uuid
from typing import Any

from clfew.errors import UserError
from clfew.group.launch import Launch

MEETING_SECONDS = 300.0
"""How long the processes wait for each other."""


def meet(started: Launch, store: Any) -> str:
    """Waits until all processes are there; returns the name of the start. Raises UserError if some do
    not come."""
    latest = time.monotonic() + MEETING_SECONDS
    return _receive(started, store, latest) if started.rank == 0 else _come(started, store, latest)


def _receive(started: Launch, store: Any, latest: float) -> str:
    start, missing = uuid.uuid4().hex, set(range(1, started.size))
    store.set("clfew/start", start)
    while missing:
        for rank in sorted(missing):
            if store.check([f"clfew/{start}/here/{rank}"]):
                answer = store.get(f"clfew/{start}/here/{rank}").decode()
                store.set(f"clfew/{start}/welcome/{rank}/{answer}", "")
                missing.discard(rank)
        if missing and time.monotonic() > latest:
            ranks = ", ".join(map(str, sorted(missing)))
            raise UserError(
                f"Process {ranks} of {started.size} has not come within {MEETING_SECONDS / 60:.0f} "
                "minutes.",
                "what torchrun prints on each machine says why; was the command started on all of them?",
            )
        time.sleep(0.05)
    return start


def _come(started: Launch, store: Any, latest: float) -> str:
    own = uuid.uuid4().hex
    while time.monotonic() < latest + MEETING_SECONDS:
        if store.check(["clfew/start"]):
            start = store.get("clfew/start").decode()
            store.set(f"clfew/{start}/here/{started.rank}", own)
            answered = time.monotonic() + 1
            while time.monotonic() < answered:
                if store.check([f"clfew/{start}/welcome/{started.rank}/{own}"]):
                    return start
                time.sleep(0.05)
        time.sleep(0.05)
    raise UserError("The first process has not come.", "what torchrun prints there says why.")
