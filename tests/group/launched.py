"""Starts torchrun, as a user does."""

import os
import subprocess
import sys
from pathlib import Path

TORCHRUN = Path(sys.executable).parent / "torchrun"


def torchrun(*arguments, processes=2, cwd=None, timeout=240, env=None):
    """Runs a script or `-m MODULE` in several processes; returns the exit code and all that was
    printed."""
    line = [TORCHRUN, "--standalone", "--nproc-per-node", processes, *arguments]
    environment = os.environ | {"TORCH_CPP_LOG_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"} | (env or {})
    done = subprocess.run(
        list(map(str, line)), cwd=cwd, env=environment, timeout=timeout, capture_output=True, text=True
    )
    return done.returncode, done.stdout, done.stderr
