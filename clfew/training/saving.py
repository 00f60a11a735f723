"""Keeps the states of trainings so that a command can be resumed.

`pretrain` trains once. `finetune` and `distill` train several times. The trainings and their order are
always the same, so a number identifies each of them.
"""

import contextlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from clfew.errors import Stopped, UserError
from clfew.group.command import resumed_by
from clfew.group.group import Lost
from clfew.runs.files import make_folder, write_json
from clfew.runs.folders import Run, is_finished
from clfew.training.state import FILE

T = TypeVar("T")

DIVERGED = "diverged.safetensors"
"""The file, beside the state, with the state before a loss or gradient that is not finite."""


@dataclass(frozen=True)
class Saving:
    """Where the state of a training is saved until its command has finished, and the command that
    resumes it. name: the name of the file."""

    folder: Path
    resume_command: str
    name: str = FILE

    @property
    def file(self) -> Path:
        return self.folder / self.name

    def discard(self) -> None:
        """Removes the state of a training that has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass
class Trainings:
    """The trainings of a command, each with its own state file, and decisions that are saved with them.

    started: how many trainings have started so far. part: a prefix of the names of the files.
    """

    folder: Path
    resume_command: str
    started: int = field(default=0, init=False)
    part: str = field(default="", init=False)

    def next(self) -> Saving:
        """Returns where the next training saves its state."""
        self.started += 1
        name = f"{self.part}{self.started}.safetensors"
        return Saving(self.folder, self.resume_command, name)

    def remember(self, name: str, decide: Callable[[], T]) -> T:
        """Returns the result of `decide`, written to JSON and read back. It is called only once, however
        often the command is stopped and resumed."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            make_folder(self.folder)
            write_json(path, decide())
        content: T = json.loads(path.read_text(encoding="utf-8"))
        return content

    def once(self, name: str, decide: Callable[[], T]) -> T:
        """Does the same as `remember` if `decide` includes trainings. Their states are removed once it
        has returned."""
        outside = self.started, self.part
        self.started, self.part = 0, f"{name}."
        try:
            content = self.remember(name, decide)
        finally:
            self.started, self.part = outside
        for state in self.folder.glob(f"{name}.*.safetensors"):
            state.unlink()
        return content

    def exist(self) -> bool:
        """Returns whether anything was saved from which to resume."""
        return self.folder.exists() and any(self.folder.iterdir())


@contextlib.contextmanager
def stoppable(resume_command: str) -> Iterator[None]:
    """Inside this context, SIGINT or SIGTERM raises Stopped with the command that resumes, whatever is
    running. Where another process of the command has ended, the hint is that command."""
    resumed_by(resume_command)
    try:
        yield
    except Lost as lost:
        hint = f"what was saved is whole; to resume: {resume_command}"
        raise UserError(lost.message, hint) from None
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT, resume_command) from None
    except SystemExit as error:
        if error.code != 128 + signal.SIGTERM:
            raise
        raise Stopped(signal.SIGTERM, resume_command) from None


@contextlib.contextmanager
def resumable(run: Run, resume_command: str, is_new: bool) -> Iterator[Trainings]:
    """Inside this context, every training saves its state in the run's folder, and a signal raises
    Stopped, whatever is running.

    The states are removed when the context ends without an error. If it ends with an error or a signal,
    a new run of which nothing was saved is removed altogether. A signal that comes when the run has
    written all its files has no effect.
    """
    trainings = Trainings(run.folder / "state", resume_command)
    try:
        with stoppable(resume_command):
            yield trainings
    except BaseException as error:
        is_stopped, is_kept = isinstance(error, Stopped), not is_new or trainings.exist()
        if not (is_stopped and is_finished(run.folder)):
            if not is_kept:
                shutil.rmtree(run.folder, ignore_errors=True)
            if isinstance(error, Stopped):
                raise Stopped(error.signal, resume_command if is_kept else "") from None
            raise
    shutil.rmtree(trainings.folder, ignore_errors=True)
