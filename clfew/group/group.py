"""The processes of a command, and what they do together: see the package's documentation."""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, ParamSpec, TypeVar

import torch
import torch.distributed as dist

from clfew.errors import Stopped, UserError, is_out_of_memory
from clfew.group.launch import Launch, name_network, say_aloud
from clfew.group.meeting import MEETING_SECONDS, meet
from clfew.group.messages import Messages
from clfew.group.watch import DEAD_SECONDS, END, END_SECONDS, FAILED, HINT, Watch
from clfew.version import __version__

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_FOREVER = timedelta(days=30)
"""Collective operations do not end by themselves: the leader may do something else meanwhile. `Watch`
ends a process that waits for one that is gone."""


class Lost(UserError):
    """Another process has ended, so the command cannot go on. Nothing may be sent any more."""


class Agreed(UserError):
    """An error in some process that is raised in all of them, which stay together."""


@dataclass(frozen=True)
class Rows:
    """The part of each batch that a process takes: `count` rows from `start` on, of `total`."""

    start: int
    count: int
    total: int


class Group(Messages):
    """The processes of a command.

    nodes, hosts: see `Launch.node`, and the name of the machine, of each process. own_source: the images
    that this process's command line names. rows: the rows of a batch that this
    process takes in the training that is on its way. inner: the operations within a network, as those of
    the training's own gradients may be on their way at the same time. is_settled: whether every helper
    waits for what comes next.
    """

    def __init__(self, started: Launch) -> None:
        self.launch = started
        with_gpus = torch.cuda.is_available() and dist.is_nccl_available()
        if with_gpus and started.local_rank < torch.cuda.device_count():
            torch.cuda.set_device(started.local_rank)
        name_network()
        # It would end the process before the reason could be said: `Watch` does what it is for.
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        is_hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        self._connections = [self._connection(not is_hosted and not started.rank)]
        self._connections.append(self._connection())
        self._start = meet(started, self._connections[0])
        own = dist.PrefixStore(f"clfew/{self._start}/processes", self._connections[0])
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if with_gpus else "gloo",
            timeout=_FOREVER,
            store=own,
            rank=started.rank,
            world_size=started.size,
        )
        control = dist.new_group(backend="gloo", timeout=_FOREVER)
        super().__init__(started.rank, started.size, control)
        self.inner: Any = dist.new_group(timeout=_FOREVER)
        self._number = self._given = 0
        self.watch: Watch | None = None
        self.is_settled, self.rows = True, Rows(0, 1, 1)
        self.own_source: str | None = None
        self.said: set[int] = set()
        about = self.exchange((started.node, socket.gethostname(), __version__, torch.__version__))
        self.nodes, self.hosts = [each[0] for each in about], [each[1] for each in about]
        self._versions = {each[2:] for each in about}

    def _connection(self, is_master: bool = False) -> Any:
        """Returns a connection to torchrun's store. is_master: whether the store is in this process."""
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        limit = timedelta(seconds=MEETING_SECONDS)
        store = dist.TCPStore(address, port, is_master=is_master, timeout=limit, wait_for_workers=False)
        store.set_timeout(_FOREVER)
        return store

    @contextlib.contextmanager
    def command(self) -> Iterator[None]:
        """Inside this context, one command is run."""
        self._number += 1
        prefix = f"clfew/{self._start}/{self._number}"
        self.store = dist.PrefixStore(prefix, self._connections[0])
        self.is_settled = True
        self.watch = Watch(dist.PrefixStore(prefix, self._connections[1]), self.rank, self.size)
        try:
            yield
        finally:
            self.watch.end()

    def agree(self, work: Callable[[], T]) -> list[T]:
        """Does some work in each process and returns all results. Raises the first UserError of any
        process as Agreed in all of them."""
        value: T | None = None
        error: tuple[str, str] | None = None
        try:
            value = work()
        except UserError as failed:
            error = failed.message, failed.hint
        results: list[Any] = self.exchange((value, error))
        for rank, (_, wrong) in enumerate(results):
            if wrong is not None:
                self.is_settled = True
                message = wrong[0] if rank == 0 else f"{self.name_of(rank)}: {wrong[0]}"
                raise Agreed(message, wrong[1])
        return [each for each, _ in results]

    def name_of(self, rank: int) -> str:
        return f"process {rank} on {self.hosts[rank]}"

    def next_number(self) -> int:
        """Returns another number each time."""
        self._given += 1
        return self._given

    @contextlib.contextmanager
    def unsettled(self) -> Iterator[None]:
        """Inside this context the helpers are busy with what they were told, and hear nothing else."""
        self.is_settled = False
        try:
            yield
        except RuntimeError as error:
            raise self._as_lost(error) from error
        self.is_settled = True

    def require_all(self) -> None:
        """Raises Lost if another process has ended, or hangs."""
        assert self.watch is not None
        if self.store.check([FAILED]) or self.watch.silent_ranks(DEAD_SECONDS):
            raise Lost(self.watch.why_ended(), self.watch.hint())

    # The two roles -----------------------------------------------------------------------------------

    def everywhere(self, function: Callable[..., T], *args: Any, leader: dict[str, Any]) -> T:
        """Runs a function of a module in all processes; see the function `everywhere`."""
        # How sums are rounded depends on the number of threads.
        threads = torch.get_num_threads()
        self.send((f"{function.__module__}:{function.__qualname__}", (threads, args)))
        self.is_settled = False
        try:
            result = function(*args, **leader)
        except (UserError, Stopped):
            raise
        except RuntimeError as error:
            raise self._as_lost(error) from error
        self.is_settled = True
        return result

    def _as_lost(self, error: RuntimeError) -> Exception:
        """Returns what the leader raises for an error in the midst of what all processes do."""
        why = self._why_lost(error)
        with contextlib.suppress(Exception):
            if self.store.check([END]):  # While this process was asleep, another has said it.
                os._exit(1)
        return error if why is None else Lost(why, HINT)

    @contextlib.contextmanager
    def leading(self) -> Iterator["Ending"]:
        """Inside this context the leader runs a command; after it the helpers go home with the result
        that it was given."""
        ending = Ending()
        with self.command():
            try:
                self._check_versions()
                yield ending
            except BaseException as error:
                why = self._why_stopped(error)
                self._end(exit_code_of(error), None)
                if why is not None:
                    raise why from None
                raise
            self._end(0, ending.result)

    def _why_stopped(self, error: BaseException) -> UserError | None:
        """Returns the error to report where torchrun has stopped the leader because another process had
        ended; None if that is not why."""
        if isinstance(error, UserError) or not isinstance(error, (Stopped, SystemExit)):
            return None
        assert self.watch is not None
        with contextlib.suppress(Exception):
            if self.store.check([FAILED]) or self.watch.do_not_show():
                hint = f"to resume: {error.resume}" if isinstance(error, Stopped) else ""
                return UserError(self.watch.why_ended(), hint or self.watch.hint())
        return None

    def _check_versions(self) -> None:
        if len(self._versions) > 1:
            found = " and ".join(f"clfew {own} with torch {its}" for own, its in sorted(self._versions))
            raise UserError(
                f"The processes do not run the same programs: {found}.",
                "install the same versions on all machines.",
            )

    def _end(self, code: int, result: Any) -> None:
        with contextlib.suppress(Exception):  # The others may be gone, and then there is no need.
            self.store.set(END, str(code))
            if self.is_settled:
                # One that hangs must not keep the leader from printing the result.
                sending = threading.Thread(
                    target=self.send, args=(("end", (code, result)),), daemon=True
                )
                sending.start()
                sending.join(END_SECONDS)
                self.is_settled = not sending.is_alive()

    def help(self) -> tuple[int, Any]:
        """Does a helper's parts of a command until it ends; returns its exit code and its result."""
        with self.command(), _unmoved_by_signals():
            while True:
                try:
                    name, (first, second) = self.receive()
                    if name == "end":
                        return first, second
                    torch.set_num_threads(first)
                    _function(name)(*second)
                except (Agreed, Stopped):
                    continue  # The leader knows.
                except BaseException as error:
                    self._leave(error)

    def _leave(self, error: BaseException) -> NoReturn:
        """Ends a helper that cannot go on: what it has met is the leader's to say."""
        if isinstance(error, RuntimeError) and self._why_lost(error) is not None:
            assert self.watch is not None
            with contextlib.suppress(Exception):
                if self.store.check([END]):
                    os._exit(int(self.store.get(END)))
                self.watch.speak()
            os._exit(1)
        if isinstance(error, UserError):
            message, hint = error.message, error.hint
        elif is_out_of_memory(error):
            message, hint = "there is not enough memory", "use a smaller --batch, --size or --encoder."
        else:
            message, hint = f"{type(error).__name__}: {error}", HINT
            say_aloud(traceback.format_exc())
        said = {"message": f"{self.name_of(self.rank)}: {message}", "hint": hint}
        with contextlib.suppress(Exception):
            self.store.set(FAILED, json.dumps(said))
        os._exit(1)

    def _why_lost(self, error: RuntimeError, seconds: float = 4.0) -> str | None:
        """Returns in words which process has ended, None if the error has another cause. It waits a
        while until that can be known."""
        text = str(error)
        is_of_group = isinstance(error, dist.DistError) or any(
            word in text for word in ("gloo", "NCCL", "Connection", "onnection closed")
        )
        latest = time.monotonic() + (seconds if is_of_group else 0)
        assert self.watch is not None
        with contextlib.suppress(Exception):
            while True:
                if self.store.check([FAILED]) or self.store.check([END]):
                    break
                if time.monotonic() >= latest or (is_of_group and self.watch.silent_ranks(2.0)):
                    break
                time.sleep(0.2)
            if is_of_group or self.store.check([FAILED]):
                return self.watch.why_ended()
        return "One of the processes has ended." if is_of_group else None


@dataclass
class Ending:
    """What a command returns in all processes."""

    result: Any = None


def exit_code_of(error: BaseException) -> int:
    """Returns the exit code of a command that ends with an error."""
    if isinstance(error, UserError):
        return error.exit_code
    if isinstance(error, Stopped):
        return 128 + error.signal
    if isinstance(error, GeneratorExit):
        return 0
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(bool(error.code))
    return 1


@contextlib.contextmanager
def _unmoved_by_signals() -> Iterator[None]:
    """Inside this context, a helper goes on after a signal: `Watch` tells the leader, which decides."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _function(name: str) -> Callable[..., Any]:
    module, _, qualified = name.partition(":")
    __import__(module)
    function: Any = sys.modules[module]
    for part in qualified.split("."):
        function = getattr(function, part)
    return function
