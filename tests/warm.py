"""Runs the installed command again and again without importing torch again and again.

Reads one JSON request a line and answers with the exit code. Each request is a forked process that
runs the installed script from its first line, clfew's own modules included; only what other packages
hold is already imported. Their threads must not have started: no computation happens here.
"""

import contextlib
import importlib
import json
import os
import runpy
import signal
import sys
import time
import traceback

LIMIT, HANGS = 300.0, 124
"""Seconds that a command may take, many times what any does, and the code of one that takes them all."""

# What the commands import, less `datasets`, which reads the environment on import.
HEAVY = (
    "numpy", "PIL.Image", "scipy.sparse", "scipy.stats", "sklearn.linear_model",
    "sklearn.model_selection", "sklearn.neighbors", "sklearn.manifold", "torch", "torchvision",
    "torch._dynamo", "safetensors.torch", "safetensors.numpy", "typer", "rich.progress",
    "jinja2", "matplotlib.pyplot",
)  # fmt: skip


def run(request: dict) -> int:
    """In the child: the installed script with its own arguments, folder, environment and streams."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for number, (path, flags) in enumerate(zip(request["streams"], ("r", "w", "w"), strict=True)):
        with open(path, flags) as file:
            os.dup2(file.fileno(), number)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    sys.argv = request["argv"]
    code = 0
    try:
        exec(request["faults"], {})
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def exit_code(child: int) -> int:
    """That of a process once it has ended; one that hangs is killed."""
    end = time.monotonic() + LIMIT
    pause = 0.001
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return HANGS


if __name__ == "__main__":
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for line in sys.stdin:
        settings = json.loads(line)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = run(settings)
            finally:
                os._exit(code)
        print(exit_code(child), flush=True)
