"""What torchrun tells each process that it starts. Nothing here imports torch."""

import functools
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

_TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """A start by torchrun.

    rank, size: of this process among all, 0 is the leader. local_rank, local_size: among those that one
    torchrun has started. node: which torchrun started it. restarts: how often torchrun has started all
    processes again. name: the same in all starts of one torchrun command, and in no other's.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    node: int
    restarts: int
    name: str


@functools.cache
def launch() -> Launch | None:
    """Returns how torchrun has started this process, None if it has not."""
    values = os.environ
    if "TORCHELASTIC_RUN_ID" not in values or any(name not in values for name in _TOLD):
        return None
    rank, size, local_rank, local_size = (int(values[name]) for name in _TOLD[:4])
    node, restarts = (int(values.get(n, 0)) for n in ("GROUP_RANK", "TORCHELASTIC_RESTART_COUNT"))
    return Launch(rank, size, local_rank, local_size, node, restarts, _name_of_launch())


def is_helper() -> bool:
    """Returns whether torchrun has started this process beside a first one, which leads."""
    started = launch()
    return started is not None and started.rank > 0


def processes_here() -> int:
    """Returns how many processes torchrun has started on this machine, 1 if it has started none."""
    started = launch()
    return 1 if started is None else started.local_size


def own_cores() -> int:
    """Returns how many processor cores this process may use. Processes that may each use all of the
    machine's share them out."""
    every = os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else every
    return cores if cores < every else max(1, cores // processes_here())


def _name_of_launch() -> str:
    """Returns a name of this torchrun command: its run id is "none", or the same each time, if the user
    gives no other, so its process and the time at which that began are added."""
    began = ""
    if sys.platform == "linux":
        status = Path(f"/proc/{os.getppid()}/stat").read_text()
        began = status.rsplit(")", 1)[1].split()[19]
    return f"{os.environ['TORCHELASTIC_RUN_ID']} {socket.gethostname()} {os.getppid()} {began}".strip()


def silence() -> None:
    """Keeps a helper from speaking: only the leader does. An error that nobody expected is still shown
    (see `say_aloud`)."""
    for name in ("stdout", "stderr"):
        setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def say_aloud(text: str) -> None:
    """Prints a line on stderr from a process that is silent otherwise."""
    stream = sys.__stderr__
    if stream is not None:
        print(text, file=stream, flush=True)
