"""The `clfew` command, also run as `python -m clfew`.

It ends with an exit code. An error that the user can fix is printed as one sentence and a hint.
"""

import errno
import io
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import NoReturn

from clfew import console
from clfew.cli import app
from clfew.errors import Stopped, UserError, is_out_of_memory
from clfew.group.launch import is_helper, launch, notice, silence


def _share_the_cores() -> None:
    """Shortens the time that OpenMP's threads spin while they wait. torch reads it on import.

    By default a waiting thread holds its core for milliseconds. If two processes share the cores, each
    then mostly waits for threads that do nothing. 5,000 rounds of spinning cost nothing if clfew runs
    alone, and make training beside another process 1.4 times as fast. The user's own settings have
    priority.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def _give_a_home() -> None:
    """Sets HOME where a user has none, as in a container: clfew and the libraries would else fail to
    find their caches, or make a folder called ~."""
    if not os.environ.get("HOME"):
        os.environ.pop("HOME", None)  # The system may still know of one.
    if os.path.isabs(os.path.expanduser("~")):
        return
    home = os.path.join(tempfile.gettempdir(), f"clfew-home-{os.getuid()}")
    os.makedirs(home, mode=0o700, exist_ok=True)
    if os.stat(home).st_uid != os.getuid():
        home = tempfile.mkdtemp(prefix="clfew-home-")
    os.environ["HOME"] = home


def _join_the_others() -> None:
    """Sets up a process that torchrun has started. Only the first one speaks. Signals after the first
    have no effect, as torchrun passes on what other processes have passed on too."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if is_helper():
        silence()

    def stop(number: int, frame: object) -> NoReturn:
        notice()
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda *_: None)
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, stop)


def run_and_exit(app: Callable[[], object]) -> NoReturn:
    """Runs a command and ends the process with its exit code.

    The code is 0 for success, 1 for an error that the user can fix, 2 for wrong usage, and 128 + the
    signal's number after a signal.
    """
    console.is_command = True
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if launch() is not None:
        _join_the_others()
    _share_the_cores()
    _give_a_home()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # Where the locale has no such sign.
    try:
        app()
    except UserError as error:
        console.show_error(error)
        sys.exit(error.exit_code)
    except Stopped as stopped:
        if stopped.resume:
            console.say("stopped; the run's state was saved. To resume:")
            console.next_command(stopped.resume)
        else:
            console.say("stopped; nothing was saved")
        sys.exit(128 + stopped.signal)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        console.show_error(UserError("A name is too long for this system.", "check the spelling."))
        sys.exit(1)
    except (RuntimeError, ImportError, MemoryError) as error:
        if is_out_of_memory(error):
            console.show_error(
                UserError(
                    "There is not enough memory for this.",
                    "end other programs, or use a smaller --size, --encoder or --batch.",
                )
            )
            sys.exit(1)
        is_mismatch = "torchvision::" in str(error) or isinstance(error, ImportError)
        if not is_mismatch or "torchvision" not in str(error):
            raise
        mismatch = UserError(
            f"torch and torchvision do not match ({str(error).splitlines()[0]}).",
            "install both from the same place: pip install --force-reinstall torch torchvision",
        )
        console.show_error(mismatch)
        sys.exit(1)
    sys.exit(0)


def main() -> NoReturn:
    """Runs the `clfew` command."""
    run_and_exit(lambda: app(prog_name="clfew"))


if __name__ == "__main__":
    main()
