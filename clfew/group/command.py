"""The command that this process works on, alone or together with others."""

import atexit
import contextlib
import functools
import signal
import traceback
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch.distributed as dist

from clfew import console
from clfew.group.group import Group
from clfew.group.launch import Launch, has_left, launch, say_aloud
from clfew.group.watch import RESUME

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

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
def _together() -> Iterator[None]:
    global _is_together
    _is_together = True
    try:
        yield
    finally:
        _is_together = False


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
    return started is None or started.size == 1 or _is_together or has_left()


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
    with _together(), _join(started).leading() as ending:
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
    with _together(), _join(started).leading():
        yield from run()


def _help(own_source: str | None) -> tuple[int, Any]:
    started = launch()
    assert started is not None
    numbers = (signal.SIGINT, signal.SIGTERM)
    # Python would run its handlers only when the leader has joined too, which may have failed.
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        group = _join(started)
    except RuntimeError:
        say_aloud(traceback.format_exc())
        raise SystemExit(1) from None
    for number, handler in before.items():
        signal.signal(number, handler)
    group.own_source = own_source
    with _together():
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
