"""Decides by a trial whether torch.compile makes a run faster, and compiles the encoder."""

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

import torch
from torch import nn

from clfew.errors import UsageError, UserError
from clfew.group.command import is_together

FEWEST_STEPS = 200
SHORTEST_RUN = 20 * 60
"""Seconds. A trial takes about a minute, mostly to compile. A shorter run would not save that much."""
SMALLEST_GAIN = 1.1
"""Smaller gains are not worth other rounding."""

FEWEST_TIMES, CHANCE = 5, 0.005
"""How many steps of each kind are timed at least, and how probable it may be that compiled ones are as
much faster by chance (the rank test of Mann and Whitney): with five, each has to be faster than every
other one."""


class NothingCompiled(Exception):
    """A method does not call the network as a whole, so nothing that it calls is compiled."""


@contextlib.contextmanager
def compiled(objective: nn.Module, wanted: bool) -> Iterator[Callable[[], bool]]:
    """Compiles the encoder of the objective and its backbone inside this context, if `wanted`: methods
    call the one or the other. Yields a function that returns whether a compiled network has been called.

    The weights, their names and the outputs stay the same.
    """
    called = [False]
    if not wanted:
        yield lambda: called[0]
        return
    encoder: Any = objective.get_submodule("encoder")
    modules = [each for each in (encoder, getattr(encoder, "backbone", None)) if each is not None]

    def noting(implementation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            called[0] = True
            return implementation(*args, **kwargs)

        return call

    for module in modules:
        module.compile()
        module._compiled_call_impl = noting(module._compiled_call_impl)
    try:
        yield lambda: called[0]
    finally:
        for module in modules:
            module._compiled_call_impl = None


def check_compile(name: str, device: torch.device) -> None:
    """Raises UsageError if `name` is not auto, on or off, and UserError if it is "on" and a compiler is
    missing."""
    if name not in ("auto", "on", "off"):
        raise UsageError(f"--compile {name} is not known.", "choose auto, on or off.")
    missing = _missing_compiler(device)
    if name == "on" and missing:
        raise UserError(
            f"Compiling the network needs {missing}.",
            "install it, or train without compilation: --compile off",
        )


def choose_compile(
    name: str, device: torch.device, steps: int, step_times: Callable[[bool], Sequence[float]]
) -> tuple[bool, str]:
    """Returns whether to compile the network in a run of `steps` steps, and why.

    name: "auto", "on" or "off". "auto" compiles if that makes the run faster. step_times(compiled):
    measures the times of some steps. Raises UserError if `name` is "on" and the network cannot be
    compiled.
    """
    if name == "off":
        return False, "as asked for"
    if is_together():
        if name == "on":
            raise UserError(
                "The network cannot be compiled where several processes train it.",
                "train without compilation: --compile off",
            )
        return False, "several processes train together"
    if name == "on":
        try:
            step_times(True)
        except UserError:  # The batch does not fit into memory: that is not the compiler's fault.
            raise
        except NothingCompiled:
            raise UsageError(
                "--compile on has nothing to compile: this method takes the network apart.",
                "leave it out, or train without compilation: --compile off",
            ) from None
        # A compiler can fail with many types of exception.
        except Exception as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise UserError(
                f"The network cannot be compiled here ({reason[0]}).",
                "train without compilation: --compile off",
            ) from None
        return True, "as asked for"
    from scipy.stats import mannwhitneyu

    missing = _missing_compiler(device)
    if missing:
        return False, f"needs {missing}"
    if steps < FEWEST_STEPS or median(plain := step_times(False)) * steps < SHORTEST_RUN:
        return False, "the run is too short for compilation to pay off"
    started = time.monotonic()
    try:
        fast = step_times(True)
    except NothingCompiled:
        return False, "this method takes the network apart, so that nothing could be compiled"
    except Exception as error:
        return False, f"the trial failed: {type(error).__name__}"
    cost = time.monotonic() - started
    gain = median(plain) / max(median(fast), 1e-9)
    speed = f"{gain:.2f} times as fast in a trial that took {cost:.0f} s"
    if gain <= SMALLEST_GAIN:
        return False, speed
    is_clear = mannwhitneyu(fast, plain, alternative="less", method="exact").pvalue < CHANCE
    return bool(is_clear), speed if is_clear else f"{speed}, which may be chance"


def _missing_compiler(device: torch.device) -> str | None:
    """Returns what torch.compile needs but is missing on this machine, or None."""
    if device.type == "cpu":
        return None if shutil.which(os.environ.get("CXX", "g++")) else "a C++ compiler (g++)"
    if device.type == "cuda":  # Triton compiles its kernel launchers with it.
        found = any(map(shutil.which, (os.environ.get("CC", "gcc"), "clang")))
        return None if found else "a C compiler (gcc)"
    return f"a CPU or an NVIDIA GPU, not {device.type}"
