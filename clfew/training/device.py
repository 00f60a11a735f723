"""Chooses the device, the precision and the number of threads of a run; the first two with a reason."""

import contextlib
import ctypes
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch

from clfew.errors import UsageError, UserError
from clfew.group.command import is_together
from clfew.group.launch import launch, own_cores, processes_here

P = ParamSpec("P")
R = TypeVar("R")


def choose_device(name: str = "auto") -> tuple[torch.device, str]:
    """Returns the device `name` and why it was chosen. "auto" is the GPU if there is one, else the CPU.
    Raises UserError if the device cannot be used."""
    if name.startswith("cuda") and is_together():
        name = "cuda"  # Each process has a GPU of its own.
    if torch.cuda.is_available() and name in ("auto", "cuda"):
        require_gpu_each()
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), torch.cuda.get_device_name()
        return torch.device("cpu"), f"no GPU found; {torch.get_num_threads()} threads"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"The device '{name}' cannot be used ({str(error).splitlines()[0]}).",
            "leave out --device, or use --device cpu.",
        ) from None
    return device, "as asked for"


def require_gpu_each() -> None:
    """Raises UserError if torchrun has started more processes on this machine than it has GPUs."""
    count, gpus = processes_here(), torch.cuda.device_count()
    if is_together() and count > gpus:
        raise UserError(
            f"There are {count} processes on a machine with {gpus} GPU{'s' if gpus > 1 else ''}.",
            f"give --nproc-per-node {gpus}, or --device cpu.",
        )


def choose_precision(device: torch.device, name: str = "auto") -> tuple[str, str]:
    """Returns "bf16" or "fp32", and why. "auto" is bfloat16 autocast if the hardware has bfloat16
    arithmetic. Raises UsageError for an unknown `name`."""
    if name not in ("auto", "bf16", "fp32"):
        raise UsageError(f"--precision {name} is not known.", "choose auto, bf16 or fp32.")
    if name != "auto":
        return name, "as asked for"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU computes in it"
        return "fp32", "the GPU has no bf16"
    if device.type == "cpu" and _cpu_computes_bf16():
        return "bf16", "the CPU computes in it"
    return "fp32", f"the {device.type.upper()} has no bf16 arithmetic"


def _cpu_computes_bf16() -> bool:
    """Returns whether the CPU has AVX512-BF16 or AMX. Other CPUs emulate bfloat16, ten times slower than
    float32."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def set_threads(threads: int | None) -> None:
    """Sets the number of threads. Without one, processes that torchrun has started on a machine share
    its cores out: torchrun gives each a single thread unless the user has set OMP_NUM_THREADS."""
    if threads is None and processes_here() > 1 and os.environ.get("OMP_NUM_THREADS") == "1":
        threads = own_cores()
    if threads is not None:
        torch.set_num_threads(threads)


def set_up_as_started(config: dict[str, Any], device: str, threads: int | None) -> torch.device:
    """Sets the number of threads of a run that is resumed, and returns its device.

    Both are what the run used before, unless others are given. If this machine has fewer processors than
    the run had threads, PyTorch's number of threads stays; so does it if torchrun has started another
    number of processes, which share the cores out. How sums are rounded depends on how they are
    divided among the threads, so with another number the run ends with weights that differ in the last
    digits. Raises UserError if the device cannot be used.
    """
    started = launch()
    processes = 1 if started is None else started.size
    is_same = config.get("processes", 1) == processes
    threads_before = config.get("threads") if is_same else None if processes > 1 else own_cores()
    are_available = threads_before and threads_before <= (os.cpu_count() or 1)
    set_threads(threads or (threads_before if are_available else None))
    if device != "auto":
        return choose_device(device)[0]
    try:
        return choose_device(config.get("device", "auto"))[0]
    except UserError as error:
        raise UserError(error.message, "to resume without it: --device cpu") from None


@contextlib.contextmanager
def left_as_found() -> Iterator[None]:
    """After this context, PyTorch's random numbers, its number of threads and the C library's handling
    of freed memory are what they were: they belong to the program that calls clfew."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        _give_back_memory()


def without_traces(run: Callable[P, R]) -> Callable[P, R]:
    """Returns a function that does what `run` does inside `left_as_found`. If that returns an iterator,
    each of its steps is inside too, with the number of threads that `run` has set."""

    @functools.wraps(run)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with left_as_found():
            result, threads = run(*args, **kwargs), torch.get_num_threads()
        return _each_without_traces(result, threads) if isinstance(result, Iterator) else result

    return wrapped


def _each_without_traces(steps: Any, threads: int) -> Any:
    while True:
        with left_as_found():
            torch.set_num_threads(threads)
            try:
                step = next(steps)
            except StopIteration:
                return
        yield step


_is_keeping = False


def keep_freed_memory(device: torch.device) -> None:
    """Makes the C library keep the memory of freed tensors for new ones, until the command ends (see
    `left_as_found`). It has an effect only on a CPU and with glibc.

    By default the kernel maps new memory for every tensor of 32 MB or more and fills its pages with
    zeros. That takes 5 to 10 % of the time of a training step on a CPU.
    """
    global _is_keeping
    if device.type != "cpu":
        return
    _is_keeping = True
    _set_malloc(mmap_max=0, trim_threshold=2**31 - 1, top_pad=64 * 2**20)


def _give_back_memory() -> None:
    """Undoes `keep_freed_memory`, with glibc's defaults, and returns freed memory to the system."""
    global _is_keeping
    if _is_keeping:
        _is_keeping = False
        _set_malloc(mmap_max=65536, trim_threshold=128 * 2**10, top_pad=128 * 2**10)
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


def _set_malloc(mmap_max: int, trim_threshold: int, top_pad: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # Other systems have other C libraries.
        mallopt = ctypes.CDLL(None).mallopt
        # M_TRIM_THRESHOLD and so on in malloc.h.
        for name, value in ((-4, mmap_max), (-1, trim_threshold), (-2, top_pad)):
            mallopt(name, value)
