"""Shares the parts of a comparison out among processes: each pretrains and tests by itself, as if it
were alone.

A process on another machine works in a folder of its own, and the leader writes what it sends.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clfew import console
from clfew.commands.comparison import (
    CellPlan,
    Cells,
    ComparisonPlan,
    Images,
    open_images,
    pretraining_folder,
)
from clfew.data.elsewhere import Part, described, found_here
from clfew.errors import Stopped, UserError
from clfew.group import command as groups
from clfew.group.command import everywhere, on_its_own
from clfew.group.group import Group
from clfew.runs.files import make_folder, write_bytes
from clfew.runs.folders import ARTIFACTS, Run, read_config
from clfew.runs.locks import LOCK
from clfew.training.signals import StopRequest

Job = tuple[str, int]
"""A method, or a baseline, and the number of its seed."""

_FILE_PART = 2**24
"""The size of the parts in which a file is sent."""


class Comparison:
    """A comparison that is running. cells: what has been measured. stop: of the whole comparison."""

    def __init__(
        self,
        run: Run,
        settings: ComparisonPlan,
        images: Images,
        encoder: str,
        stop: StopRequest,
        command: str,
        tell: Callable[[str, Any], None] | None = None,
    ) -> None:
        self.run, self.settings, self.images, self.encoder = run, settings, images, encoder
        self.stop, self._command = stop, command
        self.cells = Cells(run.folder / "cells.json", self.check, tell)

    def check(self) -> None:
        """Raises Stopped after a signal."""
        if self.stop.signal:
            raise Stopped(self.stop.signal, self._command)

    def folder_of(self, method: str, number: int) -> Path:
        """Returns the folder of a method's pretraining run."""
        return self.run.folder / pretraining_folder(method, number)

    @property
    def label_samples(self) -> CellPlan:
        """What each encoder is measured with."""
        samples, settings = self.images.label_samples, self.settings
        return [(b, i, samples[b][i]) for b in settings.labels for i in range(settings.draws)]


Do = Callable[[Comparison, Job], None]


def share_out(comparison: Comparison, jobs: list[Job], do: Do) -> dict[str, UserError]:
    """Does the jobs in all processes, each the next one that none has begun. Returns the errors of the
    methods that fail; raises the last one if all fail."""
    group = groups.current()
    assert group is not None
    folder = comparison.run.folder.resolve()
    shared = Shared(
        comparison.settings,
        jobs,
        do,
        folder,
        read_config(folder),
        comparison.cells.done,
        described(comparison.images.source),
        f"compare/{group.next_number()}",
    )
    failed = everywhere(in_each_process, shared, comparison=comparison)
    if failed and len(failed) == len(comparison.settings.methods):
        raise next(reversed(failed.values()))
    return failed


@dataclass(frozen=True)
class Shared:
    """What all processes know of a comparison. do: does a job. folder, config: of its run. done: the
    cells that have been measured. parts: its images. task: by which their messages are known."""

    settings: ComparisonPlan
    jobs: list[Job]
    do: Do
    folder: Path
    config: dict[str, Any]
    done: dict[str, Any]
    parts: list[Part]
    task: str


def in_each_process(shared: Shared, comparison: Comparison | None = None) -> dict[str, UserError]:
    """What each process does; in the leader, `comparison` is its own. Returns, there, the errors of the
    methods that fail in any process."""
    group = groups.current()
    assert group is not None
    if comparison is None:
        _help(shared, group)
        return {}
    group.agree(lambda: None)
    inbox = _Inbox(group, comparison, shared.task)
    try:
        return _do_jobs(group, comparison, shared, inbox.take) | inbox.wait()
    except (Stopped, UserError):
        inbox.take()  # What the others have finished is not lost.
        raise


def _help(shared: Shared, group: Group) -> None:
    sent = _Sent(group, shared.task)
    with ExitStack() as stack:
        is_seen = read_config(shared.folder) == shared.config
        place = shared.folder if is_seen else Path(tempfile.mkdtemp(prefix="clfew-compare-"))
        if not is_seen:
            stack.callback(shutil.rmtree, place, ignore_errors=True)
        stop = stack.enter_context(StopRequest())
        stack.enter_context(_obeying(group))
        own: list[Comparison] = []

        def open_it() -> None:
            with on_its_own():
                spec = found_here(shared.parts, None, group.own_source).spec
                settings = replace(shared.settings, source=spec)
                images, encoder = open_images(settings)
            own.append(Comparison(Run(place), settings, images, encoder, stop, "", sent.cell))
            own[0].cells.done = dict(shared.done)

        group.agree(open_it)
        failed: dict[str, UserError] = {}
        try:
            failed = _do_jobs(group, own[0], shared, lambda: None, None if is_seen else sent)
        finally:
            sent.end(failed)


@contextmanager
def _obeying(group: Group) -> Iterator[None]:
    """Inside this context, a signal to any process stops this one too: it trains by itself."""
    assert group.watch is not None
    group.watch.obeys = True
    try:
        yield
    finally:
        group.watch.obeys = False


def _do_jobs(
    group: Group,
    comparison: Comparison,
    shared: Shared,
    between: Callable[[], object],
    sent: "_Sent | None" = None,
) -> dict[str, UserError]:
    """Does the jobs that no other process has begun. Returns the errors of the methods that fail."""
    failed: dict[str, UserError] = {}
    while (number := group.store.add(f"{shared.task}/next", 1) - 1) < len(shared.jobs):
        job = shared.jobs[number]
        is_method = job[0] in comparison.settings.methods
        with on_its_own():
            try:
                shared.do(comparison, job)
            except UserError as error:  # The other methods can still be compared.
                if not is_method:
                    raise
                failed[job[0]] = error
                console.say(f"failed     {job[0]}: {error.message}")
        if sent is not None and is_method:
            sent.folder(comparison.folder_of(*job))
        between()
    return failed


class _Sent:
    """What a process sends to the leader: cells, and the files of its runs."""

    def __init__(self, group: Group, task: str) -> None:
        self._group, self._task, self._count = group, task, 0

    def _send(self, *message: Any) -> None:
        key = f"{self._task}/{self._group.rank}/{self._count}"
        self._group.post(key, message)
        self._count += 1

    def cell(self, key: str, value: Any) -> None:
        self._send("cell", key, value)

    def folder(self, folder: Path) -> None:
        files = [file for file in folder.rglob("*") if file.is_file() and file.name != LOCK]
        # The artifact, which shows that a run has finished, comes last.
        for file in sorted(files, key=lambda each: (each.name in ARTIFACTS.values(), str(each))):
            name, content = str(file.relative_to(folder.parent)), file.read_bytes()
            for start in range(0, len(content), _FILE_PART):
                self._send("file", name, content[start : start + _FILE_PART])
            self._send("written", name, b"")

    def end(self, failed: dict[str, UserError]) -> None:
        self._send("end", {name: (error.message, error.hint) for name, error in failed.items()}, None)


class _Inbox:
    """Takes what the other processes send to the leader."""

    def __init__(self, group: Group, comparison: Comparison, task: str) -> None:
        self._group, self._comparison, self._task = group, comparison, task
        self._counts = [0] * group.size
        self._parts: dict[str, list[bytes]] = {}
        self._failed: dict[str, UserError] = {}
        self._working = set(range(1, group.size))

    def take(self) -> None:
        """Takes what has come since the last call."""
        store = self._group.store
        for rank in range(1, self._group.size):
            while store.check([key := f"{self._task}/{rank}/{self._counts[rank]}"]):
                self._counts[rank] += 1
                kind, name, value = self._group.fetch(key)
                store.delete_key(key)
                if kind == "cell":
                    self._comparison.cells.keep(name, value)
                elif kind == "file":
                    self._parts.setdefault(name, []).append(value)
                elif kind == "written":
                    path = self._comparison.run.folder / name
                    make_folder(self._comparison.run.folder / Path(name).parts[0])
                    make_folder(path.parent)
                    write_bytes(path, b"".join(self._parts.pop(name, [])))
                else:
                    self._failed |= {method: UserError(*words) for method, words in name.items()}
                    self._working.discard(rank)

    def wait(self) -> dict[str, UserError]:
        """Takes the rest. Returns the errors of the other processes' methods."""
        self.take()
        while self._working:
            self._comparison.check()
            self._group.require_all()
            time.sleep(0.2)
            self.take()
        return self._failed
