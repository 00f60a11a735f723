"""Which device, precision and number of threads a run uses, each with its reason."""

import contextlib
import ctypes
import os
from typing import Any

import torch

from clfew.errors import UsageError, UserError


def choose_device(name: str = "auto") -> tuple[torch.device, str]:
    """The device named, or the GPU where there is one. Raises UserError for one that is not there."""
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


def choose_precision(device: torch.device, name: str = "auto") -> tuple[str, str]:
    """bf16 or fp32: bfloat16 autocast where the hardware computes in it, and why."""
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
    """AVX512-BF16 or AMX. Elsewhere bfloat16 is emulated, ten times slower than float32."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def set_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)


def set_up_as_started(config: dict[str, Any], device: str, threads: int | None) -> torch.device:
    """The device of a run that is gone on with, whose threads are set: those it ran on, unless others
    are asked for or there are not as many here. Sums are rounded as they are divided among the threads,
    so that with others the run ends with weights that differ in the last digits. Raises UserError."""
    before = config.get("threads")
    set_threads(threads or (before if before and before <= (os.cpu_count() or 1) else None))
    if device != "auto":
        return choose_device(device)[0]
    try:
        return choose_device(config.get("device", "auto"))[0]
    except UserError as error:
        raise UserError(error.message, "to go on without it: --device cpu") from None


def keep_freed_memory(device: torch.device) -> None:
    """Lets the C library keep the memory of freed tensors for the next ones, where it is glibc and
    the device a CPU. It does so until the process ends.

    By default every tensor of 32 MB or more is mapped anew and its pages are filled with zeros by
    the kernel: 5 to 10 % of the time of a training step on a CPU.
    """
    if device.type != "cpu":
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # The names in malloc.h, without M_.
    with contextlib.suppress(OSError, AttributeError):  # Other systems, other C libraries.
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 64 * 2**20)
