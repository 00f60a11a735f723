"""Pretraining in two processes that torchrun starts, beside one process with as many threads.

    python examples/benchmarks/processes.py DATA [--out FILE] [--seconds 25] [--namespaces]

DATA holds `cifar10` and `aerial` (class folders under `train/`). On a machine of two cores, one process
with two threads and two processes with one thread each train the same network with the same batch, in
turn, three times each. With --namespaces (root only) the two processes also run in network namespaces
of their own, as on two machines that a cable joins; then one of them is killed, and later the cable is
cut, and the seconds are measured until all processes have ended. Finished measurements are kept in the
results file. --paper prints what is exchanged in a step and what can be expected of more machines.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import Results

HERE = Path(__file__).resolve().parent
# Name: network, pixels, images, batch.
CASES = {
    "resnet8-w32 at 32 px": ("resnet8-w32", 32, "cifar10", 128),
    "resnet8-w64 at 32 px": ("resnet8-w64", 32, "cifar10", 128),
    "resnet8-w32 at 96 px": ("resnet8-w32", 96, "aerial", 128),
}
ROUNDS, FEWEST_ROWS = 3, 6
NAMESPACES = ("clfew-first", "clfew-second")
ADDRESSES = ("10.77.0.1", "10.77.0.2")


def line_of(case, data, out, threads, epochs=1000):
    network, pixels, images, batch = CASES[case]
    options = {"--encoder": network, "--size": pixels, "--batch": batch, "--threads": threads}
    options |= {"--epochs": epochs, "--init": "scratch", "--out": out, "--precision": "auto"}
    words = [str(word) for option in options.items() for word in option]
    return ["-m", "clfew", "pretrain", str(data / images / "train"), *words]


def torchrun(*options):
    return [str(Path(sys.executable).parent / "torchrun"), *map(str, options)]


def speed(case, data, processes, seconds):
    """Returns the images a second of a training that is stopped after some time."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        start = (
            [sys.executable]
            if processes == 1
            else torchrun("--standalone", "--nproc-per-node", processes)
        )
        training = started([*start, *line_of(case, data, out, 2 // processes)])
        try:
            return images_a_second(out / "metrics.jsonl", training, seconds)
        finally:
            stop(training)


def started(line):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(line, start_new_session=True, **quiet)


def images_a_second(metrics, training, seconds):
    """Returns the median of the rows of a training's log, without the first two."""
    latest = time.monotonic() + 300
    while not metrics.exists():
        assert training.poll() is None and time.monotonic() < latest
        time.sleep(0.1)
    ends, rows = time.monotonic() + seconds, []
    while time.monotonic() < ends or len(rows) < FEWEST_ROWS:
        assert training.poll() is None and time.monotonic() < latest
        time.sleep(0.5)
        rows = [json.loads(row) for row in metrics.read_text().splitlines()]
    return statistics.median(row["images_per_second"] for row in rows[2:])


def stop(training):
    training.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        training.wait(60)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(training.pid, signal.SIGKILL)


@contextlib.contextmanager
def namespaces():
    """Two network namespaces that a pair of virtual devices joins."""

    def ip(*words):
        subprocess.run(["ip", *words], check=True)

    for name in NAMESPACES:
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)
        ip("netns", "add", name)
    try:
        ip("link", "add", "clfew0", "type", "veth", "peer", "name", "clfew1")
        for number, (name, address) in enumerate(zip(NAMESPACES, ADDRESSES, strict=True)):
            ip("link", "set", f"clfew{number}", "netns", name)
            ip("-n", name, "address", "add", f"{address}/24", "dev", f"clfew{number}")
            ip("-n", name, "link", "set", f"clfew{number}", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in NAMESPACES:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def in_namespaces(case, data, out):
    """Starts a training in both namespaces; returns the two torchruns."""
    both = []
    for number, name in enumerate(NAMESPACES):
        options = ["--nnodes", 2, "--nproc-per-node", 1, "--node-rank", number]
        options += ["--master-addr", ADDRESSES[0], "--master-port", 29500]
        line = ["ip", "netns", "exec", name, *torchrun(*options), *line_of(case, data, out, 1)]
        both.append(started(line))
    return both


def processes_in(namespace):
    """Returns the ids of the processes of clfew in a namespace."""
    listed = subprocess.check_output(["ip", "netns", "pids", namespace], text=True)
    found = []
    for pid in map(int, listed.split()):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            if b"clfew" in words and not any(word.endswith(b"torchrun") for word in words):
                found.append(pid)
    return found


def over_a_cable(case, data, seconds, end):
    """Trains in two namespaces. Returns images a second, and how long after `end` all processes had
    ended."""
    with namespaces(), tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "run"
        both = in_namespaces(case, data, out)
        try:
            found = images_a_second(out / "metrics.jsonl", both[0], seconds)
            begun = time.monotonic()
            end()
            while any(map(processes_in, NAMESPACES)) and time.monotonic() - begun < 180:
                time.sleep(0.1)
            ended = time.monotonic() - begun
            return {"images_per_second": found, "ended_after": round(ended, 1), **state_of(out)}
        finally:
            for training in both:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(training.pid, signal.SIGKILL)


def state_of(out):
    """Returns the last step that was logged, and that of the state that was saved."""
    from clfew.training.state import saved_position

    rows = [json.loads(row) for row in (out / "metrics.jsonl").read_text().splitlines()]
    saved = saved_position(out / "state" / "state.safetensors")["step"]
    return {"logged_step": rows[-1]["step"], "saved_step": saved}


def kill_second():
    for pid in processes_in(NAMESPACES[1]):
        os.kill(pid, signal.SIGKILL)


def cut_cable():
    subprocess.run(["ip", "-n", NAMESPACES[1], "link", "set", "clfew1", "down"], check=True)


# What is assumed of an H100: views of 224 px that ResNet-50 learns from in a second, in bf16, which
# share of a step its backward pass takes, and the seconds of a small collective operation within a
# machine and among machines. Of networks: bytes a second, for each GPU within a machine, and for each
# machine among machines.
VIEWS_A_SECOND, BACKWARD = 3000, 2 / 3
LATENCY = {1: 25e-6, 4: 50e-6}
NETWORKS = {
    "8 × H100, NVLink": (1, 350e9, None),
    "4 × 8, 8 × 400 Gbit/s each": (4, 350e9, 400e9),
    "4 × 8, 100 Gbit/s each": (4, 350e9, 12.5e9),
    "4 × 8, 10 Gbit/s each": (4, 350e9, 1.25e9),
}


def on_paper(batch=256):
    """Prints bytes a step and the expected efficiency, for SimCLR with ResNet-50. batch: of each GPU."""
    import torch
    from torch import nn

    from clfew.data.augment import Recipe
    from clfew.methods import METHODS
    from clfew.models.encoder import Encoder

    with torch.device("meta"):
        encoder = Encoder("resnet50", 224, [0.5] * 3, [0.25] * 3)
        objective = METHODS["simclr"](encoder, Recipe())
    layers = [m for m in objective.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    gradient = 4 * sum(each.numel() for each in objective.parameters())
    statistics_bytes = 2 * 4 * 2 * sum(layer.num_features for layer in layers)
    step = 2 * batch / VIEWS_A_SECOND
    print(f"a step takes {1000 * step:.0f} ms; {len(layers)} BatchNorm layers")
    print(f"gradients {gradient / 1e6:.0f} MB, statistics {statistics_bytes / 1e6:.1f} MB")
    for name, (machines, within, among) in NETWORKS.items():
        processes = 8 * machines
        sent = 2 * (processes - 1) / processes * gradient
        seconds = sent / within if among is None else max(sent / within, sent / among)
        embeddings = 2 * batch * processes * 128 * 4
        exposed = max(0.0, seconds - BACKWARD * step) + 2 * len(layers) * LATENCY[machines]
        exposed += 3 * embeddings / (among or within)  # Gathered twice, and their gradient.
        print(
            f"{name}: embeddings {embeddings / 1e6:.1f} MB, gradients in {1000 * seconds:.1f} ms, "
            f"efficiency {step / (step + exposed):.0%}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "processes.json")
    parser.add_argument("--seconds", type=float, default=25)
    parser.add_argument("--namespaces", action="store_true")
    parser.add_argument("--paper", action="store_true")
    asked = parser.parse_args()
    if asked.paper:
        on_paper()
        return
    results = Results(asked.out)
    for case in CASES:
        for number in range(ROUNDS):
            for processes in (1, 2):
                key = f"{case}, {processes} processes, {number}"
                results.get(key, lambda c=case, p=processes: speed(c, asked.data, p, asked.seconds))
        one, two = (
            statistics.median(results.done[f"{case}, {p} processes, {n}"] for n in range(ROUNDS))
            for p in (1, 2)
        )
        print(f"{case}: one process {one:.0f} images/s, two processes {two:.0f}, ratio {two / one:.2f}")
    if asked.namespaces and shutil.which("ip"):
        case = next(iter(CASES))
        for name, end in (("killed", kill_second), ("cut off", cut_cable)):
            row = results.get(
                f"two namespaces, one is {name}",
                lambda e=end: over_a_cable(case, asked.data, asked.seconds, e),
            )
            print(f"two namespaces, one is {name}: {row}")


if __name__ == "__main__":
    main()
