"""What torchrun tells each process that it starts. Nothing here imports torch."""

import contextlib
import functools
import os
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_SIOCGIFADDR, _LOOPBACK = 0x8915, 127
"""The request for the address of a network device (linux/sockios.h), and what this machine's own
addresses begin with."""

_TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """A start by torchrun.

    rank, size: of this process among all, 0 is the leader. local_rank, local_size: among those that one
    torchrun has started. node: which torchrun started it. restarts: how often torchrun has started all
    processes again. name: of the torchrun command, the same in all of its starts. began: when that was,
    in seconds as `time.time` counts them, 0 if it is not known.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    node: int
    restarts: int
    name: str
    began: float


@functools.cache
def launch() -> Launch | None:
    """Returns how torchrun has started this process, None if it has not."""
    values = os.environ
    if "TORCHELASTIC_RUN_ID" not in values or any(name not in values for name in _TOLD):
        return None
    rank, size, local_rank, local_size = (int(values[name]) for name in _TOLD[:4])
    node, restarts = (int(values.get(n, 0)) for n in ("GROUP_RANK", "TORCHELASTIC_RESTART_COUNT"))
    return Launch(rank, size, local_rank, local_size, node, restarts, _name_of_launch(), _began())


_is_left = _is_noticed = False


def notice() -> None:
    """Called when Python has acted on a signal."""
    global _is_noticed
    _is_noticed = True


def has_noticed() -> bool:
    """Returns whether `notice` has been called."""
    return _is_noticed


def leave() -> None:
    """Called by a process that does not work with the others from now on."""
    global _is_left
    _is_left = True


def has_left() -> bool:
    """Returns whether `leave` has been called."""
    return _is_left


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
    """Returns a name of this torchrun command: the run id, which all machines have, or, where there is
    none, its process."""
    run_id = os.environ["TORCHELASTIC_RUN_ID"]
    return run_id if run_id != "none" else f"{socket.gethostname()} {os.getppid()}"


def _began() -> float:
    """Returns when this process's parent was started, which tells apart commands of one name."""
    try:
        after_boot = Path(f"/proc/{os.getppid()}/stat").read_text().rsplit(")", 1)[1].split()[19]
        up = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - up + int(after_boot) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0


def name_network() -> None:
    """Names the network by which the processes of several machines reach each other, unless the user
    has: torch would take the one that the machine's own name stands for, on many the machine alone."""
    started = launch()
    if started is None or started.size == started.local_size or sys.platform != "linux":
        return
    import fcntl

    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))  # Sends nothing.
        own = socket.inet_aton(probe.getsockname()[0])
        if started.rank == 0 and own[0] == _LOOPBACK:  # The address is its own: any network may have it.
            own = socket.inet_aton(socket.gethostbyname(os.environ["MASTER_ADDR"]))
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            with contextlib.suppress(OSError):
                if fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)[20:24] == own:
                    os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def silence() -> None:
    """Keeps a helper from speaking: only the leader does. An error that nobody expected is still shown
    (see `say_aloud`)."""
    for name in ("stdout", "stderr"):
        setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def say_aloud(text: str) -> None:
    """Prints a line on stderr from a process that is silent otherwise."""
    stream = sys.__stderr__
    if stream is not None:
        stream.write(text + "\n")
        stream.flush()
