"""torch.compile: whether it pays for a run, found by a trial, and its use."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from clfew.errors import UsageError, UserError

FEWEST_STEPS = 200
SHORTEST_RUN = 20 * 60
"""Seconds. A trial takes a minute or so, mostly to compile: a shorter run would not win it back."""
SMALLEST_GAIN = 1.1
"""Smaller gains are within what two short trials differ by."""


@contextlib.contextmanager
def compiled(objective: nn.Module, wanted: bool) -> Iterator[None]:
    """Inside this context the encoder of the objective is compiled, if that is wanted.

    Its weights, their names and what it returns stay as they are.
    """
    if not wanted:
        yield
        return
    encoder: Any = objective.get_submodule("encoder")
    encoder.compile()
    try:
        yield
    finally:
        encoder._compiled_call_impl = None


def check_compile(name: str, device: torch.device) -> None:
    """Raises UsageError for a `name` that is not auto, on or off; UserError for "on" where a compiler
    is missing."""
    if name not in ("auto", "on", "off"):
        raise UsageError(f"--compile {name} is not known.", "choose auto, on or off.")
    missing = _missing_compiler(device)
    if name == "on" and missing:
        raise UserError(
            f"Compiling the network needs {missing}.", "install it, or do without: --compile off"
        )


def choose_compile(
    name: str, device: torch.device, steps: int, step_seconds: Callable[[bool], float]
) -> tuple[bool, str]:
    """Whether a run of `steps` steps is faster compiled, and why.

    name: "auto", "on" or "off". `step_seconds(compiled)` measures the time of a step. Raises UserError
    for "on" where the network cannot be compiled.
    """
    if name == "off":
        return False, "as asked for"
    if name == "on":
        try:
            step_seconds(True)
        except UserError:  # Of memory: compiling has no part in it.
            raise
        # A compiler fails in many ways.
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"The network cannot be compiled here ({reason[0]}).", "do without: --compile off"
            ) from None
        return True, "as asked for"
    missing = _missing_compiler(device)
    if missing:
        return False, f"needs {missing}"
    if steps < FEWEST_STEPS or (plain := step_seconds(False)) * steps < SHORTEST_RUN:
        return False, "the run is too short for it to pay"
    started = time.monotonic()
    try:
        fast = step_seconds(True)
    except Exception as error:
        return False, f"the trial failed: {type(error).__name__}"
    cost = time.monotonic() - started
    speed = f"{plain / fast:.2f} times as fast in a trial that took {cost:.0f} s"
    return plain > SMALLEST_GAIN * fast, speed


def _missing_compiler(device: torch.device) -> str | None:
    """What torch.compile needs and does not find here."""
    if device.type == "cpu":
        return None if shutil.which(os.environ.get("CXX", "g++")) else "a C++ compiler (g++)"
    if device.type == "cuda":  # Triton builds its launchers.
        found = any(map(shutil.which, (os.environ.get("CC", "gcc"), "clang")))
        return None if found else "a C compiler (gcc)"
    return f"a CPU or an NVIDIA GPU, not {device.type}"
