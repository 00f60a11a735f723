"""Starts torchrun, as a user does."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

BESIDE = Path(__file__).parent
TORCHRUN = Path(sys.executable).parent / "torchrun"
BY_RANK = BESIDE / "by_rank.py"


def line_of(*arguments, processes=2, restarts=0):
    options = ["--nproc-per-node", processes, "--max-restarts", restarts]
    return [str(each) for each in (TORCHRUN, "--standalone", *options, *arguments)]


def torchrun(*arguments, cwd=None, env=None, processes=2, timeout=240):
    """Runs a script or `-m MODULE` in several processes; returns the exit code and what they and
    torchrun printed."""
    line = line_of(*arguments, processes=processes)
    done = subprocess.run(
        line, cwd=cwd, env=env or os.environ, timeout=timeout, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr


def by_rank(first, other, cwd, env):
    """Runs clfew with other words, or another environment, in the processes after the first. first,
    other: a list of arguments and a dict of variables."""
    return torchrun(BY_RANK, json.dumps([first, other]), cwd=cwd, env=env)


class Running:
    """A command that runs in two processes, whose output goes to a file. ranks: their process ids."""

    def __init__(self, *arguments, cwd, env, restarts=0):
        self._file = Path(cwd) / "output.txt"
        with open(self._file, "w", encoding="utf-8") as file:
            line = line_of("-m", "clfew", *arguments, restarts=restarts)
            self.torchrun = subprocess.Popen(
                line, cwd=cwd, env=env, stdout=file, stderr=file, start_new_session=True
            )

    @property
    def output(self):
        return self._file.read_text(encoding="utf-8")

    @property
    def ranks(self):
        found = {}
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = status.read_text().rsplit(")", 1)[1].split()[1]
                variables = status.with_name("environ").read_bytes().split(b"\0")
            except (OSError, IndexError):
                continue
            if int(parent) == self.torchrun.pid:
                rank = [each[5:] for each in variables if each.startswith(b"RANK=")]
                found |= {int(rank[0]): int(status.parent.name)} if rank else {}
        return found

    def wait_for(self, metrics, step, seconds=120):
        """Waits until a training has logged a step."""
        latest = time.monotonic() + seconds
        while time.monotonic() < latest and self.torchrun.poll() is None:
            rows = metrics.read_text().splitlines() if metrics.exists() else []
            if rows and json.loads(rows[-1])["step"] >= step:
                return
            time.sleep(0.05)
        raise AssertionError(self.output)

    def ended(self, seconds=60):
        """Waits until all processes have ended; returns torchrun's exit code."""
        ranks = self.ranks
        code = self.torchrun.wait(seconds)
        latest = time.monotonic() + 5
        while any(Path(f"/proc/{pid}").exists() for pid in ranks.values()):
            assert time.monotonic() < latest
            time.sleep(0.05)
        return code

    def kill(self):
        for pid in [*self.ranks.values(), self.torchrun.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.torchrun.wait(20)
