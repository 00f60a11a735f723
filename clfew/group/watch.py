"""A thread beside the work of each process: it shows that the process lives, passes signals on to the
leader, and ends the process when the others have ended.

The work may wait inside a collective operation, where Python runs no signal handler and where it could
wait forever for a process that is gone. Processes meet in torchrun's store of keys.
"""

import contextlib
import json
import os
import select
import signal
import threading
import time
from typing import Any

from clfew.group.launch import has_noticed, say_aloud

BEAT_SECONDS = 0.5
DEAD_SECONDS = 25.0
"""A process that has not shown for so long that it lives has ended, or hangs. torchrun takes 30 s more
to end one that does not react."""
GRACE_SECONDS, END_SECONDS = 15.0, 3.0
"""How long a process may take to end by itself after another has failed, and a helper that waits for
something when the leader has ended."""

HINT = "start the same command again."

FAILED, STOP, END, RESUME = "failed", "stop", "end", "resume"
"""Keys: what went wrong in a helper; the signal that some process got; the exit code of the command,
once it has ended; the command that resumes it."""


class Watch:
    """The thread of one process.

    store: a connection of its own. rank, size: of the process. signalled: the signal that it got, 0 for
    none. obeys: whether a helper stops by itself after a signal (see `group.on_its_own`).
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        self.signalled, self.obeys = 0, rank == 0
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._unreachable_since: float | None = None
        self._told_at: float | None = None
        self._signalled_at: float | None = None
        self._reached_at = time.monotonic()
        self._is_over = threading.Event()
        self._reader, writer = os.pipe()
        os.set_blocking(writer, False)
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._run, daemon=True, name="clfew-watch")
        self._thread.start()
        threading.Thread(target=self._end_without_network, daemon=True, name="clfew-end").start()

    def end(self) -> None:
        """Called when the process has ended its part of the command."""
        self._is_over.set()
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(-1)
        self._thread.join()

    def silent_ranks(self, seconds: float) -> list[int]:
        """Returns the other processes that have not shown for `seconds` that they live."""
        now = time.monotonic()
        return [rank for rank, (_, at) in sorted(self._seen.items()) if now - at >= seconds]

    def do_not_show(self, seconds: float = 2.5) -> list[int]:
        """Returns the other processes that do not show within `seconds` from now that they live."""
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            late = [rank for rank, (_, at) in list(self._seen.items()) if at < began]
            if not late:
                break
            time.sleep(0.1)
        return late

    def _end_without_network(self) -> None:
        """Ends the process if the store does not answer at all, as where a cable was cut: the other
        thread then waits for it without an end."""
        while not self._is_over.wait(1.0):
            if time.monotonic() - self._reached_at > DEAD_SECONDS + GRACE_SECONDS:
                if self._rank == 0:
                    say_aloud("error: The other processes cannot be reached any more.")
                    say_aloud(f"hint: {HINT}")
                os._exit(1)

    def _run(self) -> None:
        beat = 0
        while not self._is_over.is_set():
            try:
                beat += 1
                self._store.set(f"beat/{self._rank}", str(beat))
                self._look()
                self._unreachable_since = None
                self._reached_at = time.monotonic()
            except Exception:  # The store is torchrun's: it may have ended.
                self._without_store()
            self._wait()

    def _wait(self) -> None:
        readable, _, _ = select.select([self._reader], [], [], BEAT_SECONDS)
        if readable:
            numbers = [n for n in os.read(self._reader, 64) if n in (signal.SIGINT, signal.SIGTERM)]
            if numbers and not self.signalled:
                self.signalled = numbers[0]
                with contextlib.suppress(Exception):
                    self._store.set(STOP, str(numbers[0]))

    def _look(self) -> None:
        now = time.monotonic()
        # A helper looks at those before it: the first one that lives speaks where the leader has ended.
        for rank in range(self._size if self._rank == 0 else self._rank):
            if rank != self._rank and self._store.check([f"beat/{rank}"]):
                value = self._store.get(f"beat/{rank}")
                if rank not in self._seen or self._seen[rank][0] != value:
                    self._seen[rank] = value, now
        if self._store.check([STOP]) and self.obeys and not self.signalled:
            self.signalled = int(self._store.get(STOP))
            os.kill(os.getpid(), self.signalled)
        if self._rank == 0 and self.signalled and not has_noticed():
            self._stop_soon(now)
        if self.silent_ranks(DEAD_SECONDS):
            self._end_soon(0.0)
        elif self._rank and self._store.check([END]):
            # A helper that trains by itself saves its state first.
            self._end_soon(GRACE_SECONDS if self.obeys else END_SECONDS)
        elif self._store.check([FAILED]):
            self._end_soon(GRACE_SECONDS)

    def _stop_soon(self, now: float) -> None:
        """Stops the leader where it waits for another process too long to act on a signal."""
        self._signalled_at = self._signalled_at or now
        if now - self._signalled_at > GRACE_SECONDS:
            say_aloud(f"stopped; {self.hint()}")
            self._store.set(END, str(128 + self.signalled))
            os._exit(128 + self.signalled)

    def _end_soon(self, grace: float) -> None:
        """Ends the process if its work has not ended by itself `grace` seconds after it was told to."""
        self._told_at = self._told_at or time.monotonic()
        if time.monotonic() - self._told_at < grace or self._is_over.is_set():
            return
        if self._store.check([END]):
            os._exit(int(self._store.get(END)))
        self.speak()
        self._store.set(END, "1")
        os._exit(1)

    def speak(self) -> None:
        """Says what has ended the work, unless a process before this one lives and says it."""
        if len(self.silent_ranks(2 * BEAT_SECONDS + 1)) >= self._rank:
            say_aloud(f"error: {self.why_ended()}")
            say_aloud(f"hint: {self.hint()}")

    def hint(self) -> str:
        """Returns what to do about `why_ended`."""
        if self._store.check([FAILED]):
            return str(json.loads(self._store.get(FAILED))["hint"])
        if self._store.check([RESUME]):
            return f"what was saved is whole; to resume: {self._store.get(RESUME).decode()}"
        return HINT

    def why_ended(self) -> str:
        """Returns in words what ended the work of the processes together."""
        if self._store.check([FAILED]):
            return str(json.loads(self._store.get(FAILED))["message"])
        silent = ", ".join(str(rank) for rank in self.silent_ranks(2 * BEAT_SECONDS + 1))
        who = f"Process {silent} of {self._size}" if silent else f"One of the {self._size} processes"
        return f"{who} has ended or hangs."

    def _without_store(self) -> None:
        """Stops the process in order if it is the leader, and ends it if that takes too long."""
        now = time.monotonic()
        if self._unreachable_since is None:
            self._unreachable_since = now
            if self._rank == 0 and not self.signalled:
                self.signalled = signal.SIGTERM
                os.kill(os.getpid(), signal.SIGTERM)
        if now - self._unreachable_since > DEAD_SECONDS:
            os._exit(1)
