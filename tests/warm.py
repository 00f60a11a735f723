"""Runs the installed command many times without importing torch each time.

Reads one JSON request a line and prints the exit code. Each request runs in a forked process, which
executes the installed script from its first line and imports clfew's modules; only other packages are
imported before the fork. No computation may happen here, because threads must not start before a fork.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import time
import traceback

LIMIT, HANGS = 300.0, 124
"""The most seconds that a command may take, many times more than any needs, and the exit code if it
takes longer."""

# The packages that commands import, except `datasets` and `typer.rich_utils`, which read the environment
# on import. So does clfew.
HEAVY = (
    "numpy", "PIL.Image", "scipy.sparse", "scipy.stats", "sklearn.linear_model",
    "sklearn.model_selection", "sklearn.neighbors", "sklearn.manifold", "torch", "torchvision",
    "torch._dynamo", "safetensors.torch", "safetensors.numpy", "typer", "rich.progress",
    "jinja2", "matplotlib.pyplot", "matplotlib.backends.backend_agg", "pillow_heif",
    "PIL.BmpImagePlugin", "PIL.GifImagePlugin", "PIL.JpegImagePlugin", "PIL.PngImagePlugin",
    "PIL.PpmImagePlugin", "typer._adapters", "rich.columns", "rich.markdown", "rich.panel",
    "rich.syntax", "rich.table", "rich.traceback",
)  # fmt: skip


def run(request: dict) -> int:
    """Runs the installed script with the request's arguments, folder, environment and streams."""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for number, (path, flags) in enumerate(zip(request["streams"], ("r", "w", "w"), strict=True)):
        with open(path, flags) as file:
            os.dup2(file.fileno(), number)
    sys.stdin = os.fdopen(0, closefd=False)
    # As a new interpreter opens them.
    encoding = request["env"].get("PYTHONIOENCODING")
    sys.stdout = os.fdopen(1, "w", encoding=encoding, closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding=encoding, errors="backslashreplace", closefd=False)
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
    """Waits for a process and returns its exit code; kills it if it hangs."""
    end = time.monotonic() + LIMIT
    pause = 0.001
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause)
        pause = min(2 * pause, 0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return HANGS


if __name__ == "__main__":
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # Otherwise each child's garbage collections would copy all of this memory.
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
