"""Faults that are injected into a command: each is code that the process runs before the command.

A fault replaces functions of clfew or of the system where it has to happen, and nothing else. `artifact`
returns what two runs are compared by.
"""

import json
import re

import safetensors.numpy

from clfew.runs.folders import ARTIFACTS


def signal_at(step: int, number: int, training: int = 1, twice: bool = False) -> str:
    """Sends the process a signal during a step of one of its trainings, both counted from 1.

    twice: sends it again before the state is saved, which the first signal causes.
    """
    return f"""
import os
from clfew.training import loop
take, train, saves, trainings = loop._step, loop._train, loop.save_state, [0]
def faulty_train(*arguments):
    trainings[0] += 1
    train(*arguments)
def faulty_step(stepper, batch, order):
    result = take(stepper, batch, order)
    if (order.step + 1, trainings[0]) == ({step}, {training}):
        os.kill(os.getpid(), {number})
    return result
loop._train, loop._step = faulty_train, faulty_step
if {twice}:
    def faulty_save(*arguments):
        os.kill(os.getpid(), {number})
        saves(*arguments)
    loop.save_state = faulty_save
"""


def save_every(steps: int) -> str:
    """Saves the state after every `steps` steps, not every two minutes, and after every training."""
    return f"""
from clfew.training import loop
def often(is_last, signal, since, seconds, count=[0]):
    count[0] += 1
    return is_last or bool(signal) or count[0] % {steps} == 0
loop._must_save = often
"""


COUNT_STEPS = """
import sys, torch
from clfew.training import loop
train_counted, step_counted, taken, trainings_counted = loop._train, loop._step, [0], [0]
def counting_step(*arguments):
    taken[0] += 1
    return step_counted(*arguments)
def counting_train(*arguments):
    trainings_counted[0] += 1
    taken[0] = 0
    train_counted(*arguments)
    line = f"training {trainings_counted[0]}: {taken[0]} steps on {torch.get_num_threads()} threads"
    print(line, file=sys.stderr)
loop._train, loop._step = counting_train, counting_step
"""
"""Not a fault: prints to stderr how many steps each finished training has taken in this process."""


def steps_taken(stderr: str) -> dict[int, int]:
    """Reads what COUNT_STEPS has printed: the steps of each training; trainings are counted from 1."""
    counts = re.findall(r"^training (\d+): (\d+) steps", stderr, re.MULTILINE)
    return {int(training): int(steps) for training, steps in counts}


CALLS = ("mkstemp", "write", "fsync", "chmod", "replace", "sync_folder")
"""The calls that write a file, in this order."""


def in_write(
    name: str, number: int, call: str, after: bool, then: str = "kill", arrived: float = 0.5
) -> str:
    """Makes a call fail, or ends the process at it, when the file `name` is written for the `number`th
    time.

    after: after the call has taken effect instead of before. arrived: the fraction of the bytes that has
    been written before a failing "write". then: "kill"; "SIGINT", which only sends the signal; or an
    errno such as "ENOSPC".
    """
    return f"""
import errno, os, signal, tempfile
from clfew.runs import files
writes, inside = [0], [False]
def strike():
    if {then!r} == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if {then!r} == "SIGINT":
        return signal.raise_signal(signal.SIGINT)
    raise OSError(getattr(errno, {then!r}), os.strerror(getattr(errno, {then!r})))
def faulty(original, call):
    def stand_in(*arguments, **options):
        strikes = inside[0] and call == {call!r}
        if strikes and not {after}:
            strike()
        result = original(*arguments, **options)
        if strikes:
            strike()
        return result
    return stand_in
class Slow:
    def __init__(self, file):
        self.file = file
    def __enter__(self):
        return self
    def __exit__(self, *error):
        self.file.close()
    def __getattr__(self, name):
        return getattr(self.file, name)
    def write(self, content):
        if inside[0] and {call!r} == "write":
            self.file.write(content[: len(content) if {after} else int({arrived} * len(content))])
            self.file.flush()
            strike()
        return self.file.write(content)
write_bytes, fdopen = files.write_bytes, os.fdopen
def watched(path, content):
    writes[0] += path.name == {name!r}
    inside[0] = path.name == {name!r} and writes[0] == {number}
    try:
        write_bytes(path, content)
    finally:
        inside[0] = False
class System:
    def __getattr__(self, name):
        original = getattr(os, name)
        if name == "fdopen":
            return lambda *a, **o: Slow(fdopen(*a, **o))
        return faulty(original, name) if name in ("fsync", "chmod", "replace") else original
class Temporary:
    def __getattr__(self, name):
        return faulty(getattr(tempfile, name), name)
files.os, files.tempfile = System(), Temporary()
files.sync_folder = faulty(files.sync_folder, "sync_folder")
for module in list(__import__("sys").modules.values()):
    if getattr(module, "write_bytes", None) is write_bytes:
        module.write_bytes = watched
"""


def artifact(run):
    """Returns the bytes of the tensors of a run's artifact, and its metadata without command lines."""
    (path,) = (run / name for name in ARTIFACTS.values() if (run / name).exists())
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = json.loads(file.metadata()["clfew"])
    for step in metadata["training"].values():
        step.pop("command")
    return {name: value.tobytes() for name, value in safetensors.numpy.load_file(path).items()}, metadata
