"""The processes of a command, and what they do together: see the package's documentation."""

import atexit
import contextlib
import functools
import io
import json
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, ParamSpec, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from clfew import console
from clfew.errors import Stopped, UserError, is_out_of_memory
from clfew.group.launch import Launch, launch, say_aloud
from clfew.group.watch import DEAD_SECONDS, END, FAILED, HINT, RESUME, Watch
from clfew.version import __version__

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_FOREVER = timedelta(days=30)
"""Collective operations do not end by themselves: the leader may do something else meanwhile. `Watch`
ends a process that waits for one that is gone."""
_PART_BYTES = 2**28
"""Large arrays are sent in parts, so that the copies on the way are small."""


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


class Group:
    """The processes of a command.

    rank, size: see `Launch`. hosts: the node of each process. rows: the rows of a batch that this
    process takes in the training that is on its way. inner: the operations within a network, as those of
    the training's own gradients may be on their way at the same time. is_settled: whether every helper
    waits for what comes next.
    """

    def __init__(self, started: Launch) -> None:
        self.launch, self.rank, self.size = started, started.rank, started.size
        with_gpus = torch.cuda.is_available() and dist.is_nccl_available()
        if with_gpus and started.local_rank < torch.cuda.device_count():
            torch.cuda.set_device(started.local_rank)
        dist.init_process_group("cpu:gloo,cuda:nccl" if with_gpus else "gloo", timeout=_FOREVER)
        self._control: Any = dist.new_group(backend="gloo", timeout=_FOREVER)
        self.inner: Any = dist.new_group(timeout=_FOREVER)
        self._connections = [self._connection() for _ in range(2)]
        self._number = self._given = 0
        self.store: Any = None
        self.watch: Watch | None = None
        self.is_settled, self.rows = True, Rows(0, 1, 1)
        self.known_arrays: dict[tuple[str, str], np.ndarray] = {}
        self.own_source: str | None = None
        self.said: set[int] = set()
        about = self.exchange((started.node, socket.gethostname(), __version__, torch.__version__))
        self.nodes, self.hosts = [each[0] for each in about], [each[1] for each in about]
        self._versions = {each[2:] for each in about}

    def _connection(self) -> Any:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return dist.TCPStore(address, port, is_master=False, timeout=_FOREVER)

    @contextlib.contextmanager
    def command(self) -> Iterator[None]:
        """Inside this context, one command is run."""
        self._number += 1
        prefix = f"clfew/{self.launch.restarts}/{self._number}"
        self.store = dist.PrefixStore(prefix, self._connections[0])
        self.is_settled = True
        self.watch = Watch(dist.PrefixStore(prefix, self._connections[1]), self.rank, self.size)
        global _is_together
        _is_together = True
        try:
            yield
        finally:
            _is_together = False
            self.watch.end()

    # Messages ----------------------------------------------------------------------------------------

    def send(self, message: Any) -> None:
        """Sends a message to all helpers."""
        content = self._packed(message)
        dist.broadcast(torch.tensor([len(content)]), 0, group=self._control)
        dist.broadcast(torch.frombuffer(bytearray(content), dtype=torch.uint8), 0, group=self._control)

    def receive(self) -> Any:
        """Returns the leader's next message."""
        size = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(size, 0, group=self._control)
        content = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(content, 0, group=self._control)
        return self._unpacked(content.numpy().tobytes())

    def numbers(self, values: list[float]) -> list[float]:
        """Returns the leader's numbers, as many in each process: the fastest message."""
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.broadcast(tensor, 0, group=self._control)
        result: list[float] = tensor.tolist()
        return result

    def exchange(self, value: T) -> list[T]:
        """Returns the value of each process, in all of them."""
        content = self._packed(value)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(content)]), group=self._control)
        parts = [torch.zeros(int(max(sizes)), dtype=torch.uint8) for _ in range(self.size)]
        own = torch.zeros_like(parts[0])
        own[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        dist.all_gather(parts, own, group=self._control)
        return [
            self._unpacked(part[: int(size)].numpy().tobytes())
            for part, size in zip(parts, sizes, strict=True)
        ]

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

    def collect(self, array: np.ndarray) -> list[np.ndarray]:
        """Returns to the leader the array of each process, to the others nothing. Each process holds
        only its own, the leader all."""
        if self.rank != 0:
            shape = torch.tensor([len(array.shape), *array.shape], dtype=torch.int64)
            dist.send(torch.tensor([len(shape)]), 0, group=self._control)
            dist.send(shape, 0, group=self._control)
            self._send_bytes(array)
            return []
        arrays = [array]
        for rank in range(1, self.size):
            count = torch.zeros(1, dtype=torch.int64)
            dist.recv(count, rank, group=self._control)
            shape = torch.zeros(int(count), dtype=torch.int64)
            dist.recv(shape, rank, group=self._control)
            received = np.empty(tuple(shape[1:].tolist()), array.dtype)
            self._receive_bytes(received, rank)
            arrays.append(received)
        return arrays

    def give(self, value: Any) -> None:
        """Sends a message from a helper to the leader, which must `take` it."""
        content = self._packed(value)
        dist.send(torch.tensor([len(content)]), 0, group=self._control)
        dist.send(torch.frombuffer(bytearray(content), dtype=torch.uint8), 0, group=self._control)

    def take(self, rank: int) -> Any:
        """Returns the next message of a helper."""
        size = torch.zeros(1, dtype=torch.int64)
        dist.recv(size, rank, group=self._control)
        content = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(content, rank, group=self._control)
        return self._unpacked(content.numpy().tobytes())

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

    def _send_bytes(self, array: np.ndarray) -> None:
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for start in range(0, len(content), _PART_BYTES):
            part = torch.from_numpy(content[start : start + _PART_BYTES])
            dist.send(part, 0, group=self._control)

    def _receive_bytes(self, array: np.ndarray, rank: int) -> None:
        content = torch.from_numpy(array.reshape(-1).view(np.uint8))
        for part in content.split(_PART_BYTES) if len(content) else ():
            dist.recv(part, rank, group=self._control)

    def name_of(self, rank: int) -> str:
        return f"process {rank} on {self.hosts[rank]}"

    def _packed(self, value: Any) -> bytes:
        buffer = io.BytesIO()
        _Pickler(buffer, self.known_arrays).dump(value)
        return buffer.getvalue()

    def _unpacked(self, content: bytes) -> Any:
        return _Unpickler(io.BytesIO(content), self.known_arrays).load()

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
        gpus = torch.cuda.device_count()
        if gpus and self.launch.local_size > gpus:
            raise UserError(
                f"There are {self.launch.local_size} processes on a machine with {gpus} GPUs.",
                f"give --nproc-per-node {gpus}, or --device cpu.",
            )

    def _end(self, code: int, result: Any) -> None:
        with contextlib.suppress(Exception):  # The others may be gone, and then there is no need.
            self.store.set(END, str(code))
            if self.is_settled:
                self.send(("end", (code, result)))

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


class _Pickler(pickle.Pickler):
    """Packs a message for other processes of the same command. Arrays that all of them have, those of
    image caches, are named only. Tensors are on the CPU: each process has a GPU of its own."""

    def __init__(self, file: io.BytesIO, known: dict[tuple[str, str], np.ndarray]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._names = {id(array): name for name, array in known.items()}

    def persistent_id(self, value: Any) -> Any:
        return self._names.get(id(value)) if isinstance(value, np.ndarray) else None

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.device.type != "cpu":
            return _as_it_is, (value.detach().cpu(),)
        return NotImplemented


def _as_it_is(value: T) -> T:
    return value


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, known: dict[tuple[str, str], np.ndarray]) -> None:
        super().__init__(file)
        self._known = known

    def persistent_load(self, name: Any) -> Any:
        return self._known[name]


def _function(name: str) -> Callable[..., Any]:
    module, _, qualified = name.partition(":")
    __import__(module)
    function: Any = sys.modules[module]
    for part in qualified.split("."):
        function = getattr(function, part)
    return function


# The group of this process -----------------------------------------------------------------------------

_group: Group | None = None
_is_together = False


def current() -> Group | None:
    """Returns the group that works on the running command, None if this process is alone."""
    return _group if _is_together else None


def size() -> int:
    """Returns how many processes work on the running command."""
    return _group.size if _is_together and _group is not None else 1


def is_together() -> bool:
    """Returns whether several processes work on the running command."""
    return size() > 1


def words_of(batch: int) -> str:
    """Returns in words which part of a batch each process takes, "" if this process is alone."""
    count = size()
    if count == 1:
        return ""
    if batch < count:
        return "fewer than there are processes, so the first one trains alone"
    each, over = divmod(batch, count)
    first = "the first" if over == 1 else f"the first {over}"
    return f"{each} in each of {count} processes" + (f", {each + 1} in {first}" if over else "")


def resumed_by(command: str) -> None:
    """Tells all processes how the running command is resumed."""
    group = current()
    if group is not None and group.rank == 0:
        group.store.set(RESUME, command)


def say_remainder(batch: int) -> None:
    """Says, once in a command, where a batch leaves a remainder among the processes."""
    group = current()
    if group is not None and batch % group.size and batch not in group.said:
        group.said.add(batch)
        console.say(f"note       a batch of {batch} leaves a remainder: {words_of(batch)}")


def has(array: np.ndarray) -> bool:
    """Returns whether several processes work on the running command and all have this array."""
    group = current()
    return group is not None and any(array is each for each in group.known_arrays.values())


@contextlib.contextmanager
def on_its_own() -> Iterator[None]:
    """Inside this context, this process works as if it were alone."""
    global _is_together
    before, _is_together = _is_together, False
    try:
        yield
    finally:
        _is_together = before


def everywhere(function: Callable[..., T], *args: Any, **leader: Any) -> T:
    """Runs a function of a module in all processes of the command, and returns the leader's result.

    args: its arguments, which the others get too, so they must be picklable; images only as arrays of an
    image cache. leader: further arguments of the leader alone. A function that raises must do so in all
    processes alike (see `Group.agree`); anything else ends the command. If this process is alone, it is
    a plain call.
    """
    group = current()
    if group is None:
        return function(*args, **leader)
    return group.everywhere(function, *args, leader=leader)


def together(run: Callable[P, R]) -> Callable[P, R]:
    """Returns a command that all processes work on, if torchrun has started several. In a helper it
    returns what the leader's returned."""

    @functools.wraps(run)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if _runs_alone():
            return run(*args, **kwargs)
        return _run(lambda: run(*args, **kwargs), getattr(args[0], "source", None))

    return wrapped


def together_each(run: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
    """Does the same as `together` for a command that returns an iterator; in a helper it is empty."""

    @functools.wraps(run)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        if _runs_alone():
            return run(*args, **kwargs)
        return _each(lambda: run(*args, **kwargs), getattr(args[0], "source", None))

    return wrapped


def _runs_alone() -> bool:
    started = launch()
    return started is None or started.size == 1 or _is_together


def help_with(own_source: str | None) -> int:
    """Helps with the command that the leader runs; returns its exit code. own_source: what this
    process's command line names as the images."""
    return _help(own_source)[0]


def _run(run: Callable[[], R], own_source: str | None) -> R:
    started = launch()
    assert started is not None
    if started.rank > 0:
        code, result = _help(own_source)
        if code:
            raise SystemExit(code)
        return result
    with _join(started).leading() as ending:
        result = run()
        ending.result = result
    return result


def _each(run: Callable[[], Iterator[T]], own_source: str | None) -> Iterator[T]:
    started = launch()
    assert started is not None
    if started.rank > 0:
        if code := help_with(own_source):
            raise SystemExit(code)
        return
    with _join(started).leading():
        yield from run()


def _help(own_source: str | None) -> tuple[int, Any]:
    started = launch()
    assert started is not None
    numbers = (signal.SIGINT, signal.SIGTERM)
    # Python would run its handlers only when the leader has joined too, which may have failed.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    group = _join(started)
    for number, handler in before.items():
        signal.signal(number, handler)
    group.own_source = own_source
    return group.help()


def _join(started: Launch) -> Group:
    global _group
    if _group is None:
        _group = Group(started)
        atexit.register(_part_from, _group)
    return _group


def _part_from(group: Group) -> None:
    if group.is_settled:
        with contextlib.suppress(Exception):
            dist.destroy_process_group()
