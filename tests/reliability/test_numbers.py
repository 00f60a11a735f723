"""A loss or gradient that is not finite stops training before the optimizer's step, with a message."""

import json
import math
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.numpy
import torch
from faults import signal_at
from marks import rest_is_slow
from resuming import PRETRAIN
from torch import nn

from clfew.errors import UserError
from clfew.methods.collapse import collapse_summary
from clfew.training import guard, loop, steps
from clfew.training.batch import Batches, TrainingData
from clfew.training.loop import seconds_per_step, train
from clfew.training.plan import Plan
from clfew.training.saving import DIVERGED, Saving

CPU = torch.device("cpu")
TINY = (*PRETRAIN, "--out", "run")

BAD_LOSS = """
from clfew.methods import simclr
nt_xent, calls = simclr.nt_xent, [0]
def bad(z, *rest):
    calls[0] += 1
    return nt_xent(z, *rest) * (float({value!r}) if calls[0] == {step} else 1)
simclr.nt_xent = bad
"""


class GoesBad(nn.Module):
    """Has a loss or a gradient that becomes non-finite, and a running average as BatchNorm has."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.weight = what, nn.Parameter(torch.ones(4))
        self.register_buffer("average", torch.zeros(()))

    def loss(self, batch):
        value = self.weight.sum() / float(self.what != "loss" or batch.progress < 0.45)
        self.average.mul_(0.9).add_(0.1 * value.detach())
        if self.what == "gradient":  # A square root at 0: its value is finite, its gradient is not.
            value = value + (self.weight[0] * float(batch.progress < 0.4)).sqrt()
        return value, {}


@pytest.fixture
def data():
    pixels = np.zeros((12, 4, 4, 3), np.uint8)
    return TrainingData(pixels, np.ones(12, np.float32), np.arange(12))


PLAN = Plan(10, 4, "sgd", 1e-30, 0.0, 1, 3, "fp32")


@pytest.fixture(params=["at once", "deferred"])
def checks(request, monkeypatch):
    """Checks each step at once, as on a CPU, or looks only when a row is logged, as on a GPU."""
    if request.param == "deferred":
        monkeypatch.setattr(guard, "_can_defer", lambda *arguments: True)
        monkeypatch.setattr(loop, "LOG_SECONDS", 1e9)
    return request.param


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_the_state_before_a_bad_number_is_saved_and_reproduces_it(data, tmp_path, what, checks):
    objective, saving = GoesBad(what), Saving(tmp_path / "state", "")
    with pytest.raises(UserError) as error:
        train(objective, data, PLAN, CPU, saving=saving)
    path = saving.folder / DIVERGED
    assert what in error.value.message and str(path) in error.value.hint
    with safetensors.safe_open(path, framework="pt") as file:
        position = json.loads(file.metadata()["position"])
        kept = {name: file.get_tensor(f"module.{name}") for name in objective.state_dict()}
    step = position["step"]
    assert f"at step {step + 1}:" in error.value.message and 0 < step < 10
    # The weights are finite, and so is the running average, which the failed step had changed.
    assert all(torch.isfinite(value).all() for value in kept.values())
    again = GoesBad(what)
    again.load_state_dict(kept)
    with Batches(data, PLAN, CPU, step) as batches:
        batch = replace(next(batches), progress=step / PLAN.steps)
    assert batch.random.indices.tolist() == position["images"]
    loss, _ = again.loss(batch)
    loss.backward()
    assert not math.isfinite(loss.item()) or not torch.isfinite(again.weight.grad).all()
    assert str(loss.item()) == position["loss"]


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_bad_loss_stops_a_run_before_its_step(clfew, images, tmp_path, value):
    images(tmp_path / "unlabeled", classes=[""], each=40)
    result = clfew(*TINY, cwd=tmp_path, faults=BAD_LOSS.format(value=value, step=5))
    assert (result.rc, result.stdout) == (1, "") and "Traceback" not in result.stderr
    error, hint = result.stderr.splitlines()[-2:]
    assert error.startswith(f"error: The loss is {value} at step 5:") and "was not taken" in error
    assert "--lr" in hint and "run/state/diverged.safetensors" in hint
    # The state before the step equals that of a run that was stopped there, bit for bit.
    stopped = (*TINY[:-1], "stopped")
    clfew(*stopped, cwd=tmp_path, faults=signal_at(4, signal.SIGINT))
    one = safetensors.numpy.load_file(tmp_path / "run/state/diverged.safetensors")
    other = safetensors.numpy.load_file(tmp_path / "stopped/state/state.safetensors")
    assert {n: v.tobytes() for n, v in one.items()} == {n: v.tobytes() for n, v in other.items()}
    assert not (tmp_path / "run/encoder.safetensors").exists()
    assert "has not finished" in clfew.refused(
        "finetune", "--labels", "1%", "--from", "run", cwd=tmp_path
    )


COLLAPSE = """
import torch
from clfew import console
from clfew.methods import simclr
from clfew.training import loop
health, calls = simclr.health, [0]
line = torch.linspace(-1, 1, 32)[:, None]
def of_collapsed(z):
    calls[0] += 1
    noise = 0.001 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    return health(noise + {kind}) if calls[0] >= 4 else health(z)
simclr.health = of_collapsed
loop.LOG_SECONDS = console._PLAIN_SECONDS = 0.0
"""


@pytest.mark.parametrize(
    ("kind", "words"),
    rest_is_slow(
        [
            ("torch.ones_like(z)", "of the standard deviation"),
            ("line.expand_as(z)", "to a line, an effective rank of 1."),
        ]
    ),
)
def test_a_collapse_is_reported_while_it_happens_and_in_the_report(clfew, images, tmp_path, kind, words):
    images(tmp_path / "unlabeled", each=20)
    result = clfew.ok(*TINY, cwd=tmp_path, faults=COLLAPSE.format(kind=kind))
    lines = result.stderr.splitlines()
    (shown,) = [
        line for line in lines if line.startswith("alarm      step 4: embeddings have collapsed")
    ]
    (end,) = [line for line in lines if "Train longer" in line]
    assert words in shown and lines.index(shown) < lines.index(end)
    progress = [line.endswith("collapsing") for line in lines if line.startswith("pretrain ")]
    assert progress == sorted(progress) and len(set(progress)) == 2
    clfew.ok("finetune", "--labels", "4/class", "--from", "run", cwd=tmp_path)
    clfew.ok("eval", "--out", "eval", cwd=tmp_path)
    page = (tmp_path / "eval/report.html").read_text()
    assert "A collapse was seen from step 4 to step" in page and "At the end, embeddings" in page


def test_a_collapse_that_passes_is_reported_too():
    rows = [{"step": step, "spread": 0.01 if step in (3, 4) else 0.5} for step in range(1, 9)]
    summary = collapse_summary(rows)
    assert "from step 3 to step 4" in summary and "over before the end" in summary
    assert collapse_summary(rows[4:]) == ""


class Hungry(nn.Module):
    """An objective that runs out of memory with more than `most` images."""

    def __init__(self, most: int, words: str, kind: type[Exception]) -> None:
        super().__init__()
        self.most, self.words, self.kind = most, words, kind
        self.weight = nn.Parameter(torch.ones(2))

    def loss(self, batch):
        if len(batch.images) > self.most:
            raise self.kind(self.words)
        return self.weight.sum(), {}


OUT_OF_MEMORY = [
    ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.", RuntimeError),
    ("CUDA out of memory. Tried to allocate 2.00 GiB.", torch.OutOfMemoryError),
    ("", MemoryError),
]


@pytest.mark.parametrize(("words", "kind"), OUT_OF_MEMORY)
@pytest.mark.parametrize("trains", [train, lambda *a: seconds_per_step(*a, budget=1)])
def test_a_batch_that_does_not_fit_names_one_that_does(data, words, kind, trains):
    plan = Plan(10, 8, "sgd", 0.1, 0.0, 1, 3, "fp32")
    with pytest.raises(UserError) as error:
        trains(Hungry(3, words, kind), data, plan, CPU)
    assert "8 images" in error.value.message and "--batch 2" in error.value.hint
    with pytest.raises(UserError, match="8 images") as error:
        trains(Hungry(1, words, kind), data, plan, CPU)
    assert "--size" in error.value.hint and "--batch" not in error.value.hint


def test_another_error_of_a_step_is_not_reported_as_memory(data):
    with pytest.raises(RuntimeError, match="shapes"):
        train(Hungry(0, "shapes do not match", RuntimeError), data, PLAN, CPU)


def test_memory_that_a_command_runs_out_of_is_one_sentence(clfew, images, tmp_path):
    images(tmp_path / "unlabeled", classes=[""], each=40)
    faults = f"""
from clfew.methods import simclr
def hungry(z, *rest, original=simclr.nt_xent):
    if len(z) > 16:
        raise RuntimeError({OUT_OF_MEMORY[0][0]!r})
    return original(z, *rest)
simclr.nt_xent = hungry
"""
    result = clfew(*TINY, cwd=tmp_path, faults=faults)
    assert result.rc == 1 and "Traceback" not in result.stderr
    assert "A batch of 16 images does not fit" in result.stderr and "--batch 8" in result.stderr
    clfew.ok(*TINY[:-1], "smaller", "--batch", "8", cwd=tmp_path, faults=faults)


def test_deferred_checks_take_the_same_steps_and_look_only_at_rows_and_saves(
    data, tmp_path, monkeypatch
):
    """For momentum, too: what is put back is all that a step changes."""
    plan = Plan(30, 4, "adamw", 0.1, 0.0, 3, 3, "fp32")
    at_once, looks, rows = GoesBad("none"), [], []
    train(at_once, data, plan, CPU)
    monkeypatch.setattr(guard, "_can_defer", lambda *arguments: True)
    monkeypatch.setattr(loop, "LOG_SECONDS", 1e9)
    look = guard.Guard.look
    monkeypatch.setattr(guard.Guard, "look", lambda self: (looks.append(1), look(self))[1])
    monkeypatch.setattr(steps, "require_finite", None)  # It reads the result in every step.
    deferred = GoesBad("none")
    train(deferred, data, plan, CPU, rows.append, Saving(tmp_path / "state", ""))
    assert torch.equal(at_once.weight, deferred.weight)
    assert torch.equal(at_once.average, deferred.average)
    assert [row["step"] for row in rows] == [1, 30] and len(looks) == 2


class GoesBadOnce(GoesBad):
    """Has one loss that is not finite, as a fault of the hardware has, not when it is computed again."""

    def loss(self, batch):
        value, extras = super().loss(batch)
        if batch.progress > 0.45 and not hasattr(self, "fault"):
            self.fault = True
            return value * math.nan, extras
        return value, extras


def test_a_bad_step_that_is_not_bad_again_leaves_no_trace(data, monkeypatch):
    plan = Plan(30, 4, "adamw", 0.1, 0.0, 3, 3, "fp32")
    sound, faulty, rows = GoesBad("none"), GoesBadOnce("none"), []
    train(sound, data, plan, CPU)
    monkeypatch.setattr(guard, "_can_defer", lambda *arguments: True)
    train(faulty, data, plan, CPU, rows.append)
    assert faulty.fault
    assert torch.equal(sound.weight, faulty.weight) and torch.equal(sound.average, faulty.average)
    steps = [row["step"] for row in rows]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_after_going_back_each_step_is_checked_until_the_bad_one_is_found(data, monkeypatch, seconds):
    """It is found in one round, however often rows are logged meanwhile."""
    rounds, go_back = [], guard.Guard.go_back
    monkeypatch.setattr(guard, "_can_defer", lambda *arguments: True)
    monkeypatch.setattr(guard.Guard, "go_back", lambda *a: (rounds.append(1), go_back(*a))[1])
    monkeypatch.setattr(loop, "LOG_SECONDS", 1e9)
    objective = GoesBad("loss")
    step = loop._step

    def logging(*arguments):
        if rounds:
            monkeypatch.setattr(loop, "LOG_SECONDS", seconds)
        return step(*arguments)

    monkeypatch.setattr(loop, "_step", logging)
    with pytest.raises(UserError, match="at step 6:"):
        train(objective, data, PLAN, CPU)
    assert len(rounds) == 1


def test_a_trial_waits_for_the_device_in_every_step(data, monkeypatch):
    reads, item = [], torch.Tensor.item
    monkeypatch.setattr(guard, "_can_defer", lambda *arguments: True)
    monkeypatch.setattr(torch.Tensor, "item", lambda self: (reads.append(1), item(self))[1])
    taken, step = [], loop._step
    monkeypatch.setattr(loop, "_step", lambda *a: (taken.append(1), step(*a))[1])
    seconds_per_step(GoesBad("none"), data, PLAN, CPU, budget=1)
    assert len(reads) >= len(taken) >= 3


def test_copies_that_do_not_fit_are_done_without(data, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(guard, "_can_defer", lambda *arguments: True)
    monkeypatch.setattr(guard.copy, "deepcopy", full)
    plan = Plan(10, 4, "adamw", 0.1, 0.0, 1, 3, "fp32")
    objective, other = GoesBad("none"), GoesBad("none")
    train(objective, data, plan, CPU)
    monkeypatch.undo()
    train(other, data, plan, CPU)
    assert torch.equal(objective.weight, other.weight)


def test_copies_are_kept_only_where_they_take_little_of_a_gpu(monkeypatch):
    memory = SimpleNamespace(total_memory=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: memory)
    network = nn.Linear(999, 1000, bias=True)  # A million numbers of four bytes, three times.
    memory.total_memory = int(12e6 / guard.MOST_OF_MEMORY) + 1
    assert guard._can_defer(network, torch.device("cuda"))
    assert not guard._can_defer(network, torch.device("mps"))
    memory.total_memory -= 100
    assert not guard._can_defer(network, torch.device("cuda"))


def test_the_check_is_made_in_every_step(data, monkeypatch):
    checked = []
    require = steps.require_finite
    monkeypatch.setattr(steps, "require_finite", lambda *a: (checked.append(1), require(*a))[1])
    train(GoesBad("none"), data, Plan(3, 4, "sgd", 0.0, 0.0, 1, 3, "fp32"), CPU)
    assert len(checked) == 3
