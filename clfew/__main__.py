"""The `clfew` command, also as `python -m clfew`, and how it ends: its exit code, and one sentence with
a
hint for what the user can mend.
"""

import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from clfew import console
from clfew.cli import app
from clfew.errors import Stopped, UserError, is_out_of_memory


def _share_the_cores() -> None:
    """Shortens how long OpenMP's threads spin while they wait; read when torch is imported.

    By default they hold their core for milliseconds, so that two processes on the same cores, or one
    beside anything busy, mostly wait for threads that do nothing. 5,000 rounds cost nothing alone and
    make training beside another process 1.4 times as fast. The user's own settings go first.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def run_and_exit(app: Callable[[], object]) -> NoReturn:
    """Runs a command and ends the process with its exit code: 0 done, 1 the user can mend it, 2 wrong
    usage, 128 + signal."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    _share_the_cores()
    try:
        app()
    except UserError as error:
        console.show_error(error)
        sys.exit(error.exit_code)
    except Stopped as stopped:
        if stopped.resume:
            console.say("stopped; the state is saved. To go on:")
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
                    "end other programs, or take a smaller --size, --encoder or --batch.",
                )
            )
            sys.exit(1)
        is_mismatch = "torchvision::" in str(error) or isinstance(error, ImportError)
        if not is_mismatch or "torchvision" not in str(error):
            raise
        mismatch = UserError(
            f"torch and torchvision do not fit together ({str(error).splitlines()[0]}).",
            "install both from the same place: pip install --force-reinstall torch torchvision",
        )
        console.show_error(mismatch)
        sys.exit(1)
    sys.exit(0)


def main() -> NoReturn:
    """The `clfew` command."""
    run_and_exit(lambda: app(prog_name="clfew"))


if __name__ == "__main__":
    main()
