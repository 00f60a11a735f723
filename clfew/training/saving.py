"""Where the states of trainings are kept while a command can be gone on with.

`pretrain` trains once; `finetune` and `distill` train several times, always the same trainings in the
same order, so that a number says which is which.
"""

import contextlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from clfew.errors import Stopped
from clfew.runs.files import make_folder, write_json
from clfew.runs.folders import Run, is_finished
from clfew.training.state import FILE

T = TypeVar("T")

DIVERGED = "diverged.safetensors"
"""What led to a loss that is not finite, beside the state."""


@dataclass(frozen=True)
class Saving:
    """Where the state of a training is kept until its command has done the rest, and the command that
    resumes. name: of the file."""

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
    """The trainings of a command, each with a file of its own, and what was decided on the way."""

    folder: Path
    resume_command: str
    begun: int = field(default=0, init=False)
    part: str = field(default="", init=False)

    def next(self) -> Saving:
        self.begun += 1
        name = f"{self.part}{self.begun}.safetensors"
        return Saving(self.folder, self.resume_command, name)

    def remember(self, name: str, decide: Callable[[], T]) -> T:
        """What `decide` gives, as it goes through JSON; decided once, however often the command is
        stopped."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            make_folder(self.folder)
            write_json(path, decide())
        content: T = json.loads(path.read_text(encoding="utf-8"))
        return content

    def once(self, name: str, decide: Callable[[], T]) -> T:
        """As `remember`, of something that takes trainings: their states go when it is decided."""
        outside = self.begun, self.part
        self.begun, self.part = 0, f"{name}."
        try:
            content = self.remember(name, decide)
        finally:
            self.begun, self.part = outside
        for state in self.folder.glob(f"{name}.*.safetensors"):
            state.unlink()
        return content

    def exist(self) -> bool:
        """Whether there is anything to go on with."""
        return self.folder.exists() and any(self.folder.iterdir())


_CURRENT: ContextVar[Trainings | None] = ContextVar("trainings", default=None)


def next_saving() -> Saving | None:
    """Where the training that now begins is to be kept; None outside `resumable`."""
    trainings = _CURRENT.get()
    return None if trainings is None else trainings.next()


@contextlib.contextmanager
def stoppable(resume_command: str) -> Iterator[None]:
    """Inside, a signal raises Stopped with the command that goes on, whatever is being done."""
    try:
        yield
    except KeyboardInterrupt:
        raise Stopped(signal.SIGINT, resume_command) from None
    except SystemExit as error:
        if error.code != 128 + signal.SIGTERM:
            raise
        raise Stopped(signal.SIGTERM, resume_command) from None


@contextlib.contextmanager
def resumable(run: Run, resume_command: str, is_new: bool) -> Iterator[Trainings]:
    """Inside, every training keeps its state in the run's folder, and a signal raises Stopped, whatever
    is being done. The states go when all is done. A new run that nothing was saved of goes as a whole; a
    signal that comes when all is saved changes nothing.
    """
    trainings = Trainings(run.folder / "state", resume_command)
    token = _CURRENT.set(trainings)
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
    finally:
        _CURRENT.reset(token)
    shutil.rmtree(trainings.folder, ignore_errors=True)
