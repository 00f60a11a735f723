import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from clfew.data.augment import Recipe
from clfew.data.randomness import epoch_order
from clfew.errors import Stopped, UserError
from clfew.methods.simclr import SimCLR
from clfew.models.encoder import Encoder
from clfew.training import loop
from clfew.training.batch import TrainingData
from clfew.training.loop import seconds_per_step, train
from clfew.training.plan import Plan
from clfew.training.saving import Saving
from clfew.training.signals import StopRequest

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def log_every_step(monkeypatch):
    monkeypatch.setattr(loop, "LOG_SECONDS", 0.0)


def plan(steps=12, optimizer="adamw", batch=8, rate=0.01):
    return Plan(steps, batch, optimizer, rate, 1e-3, 2, 5, "fp32")


def objective(weights=0, encoder="resnet8-w8"):
    """SimCLR with dropout, so that a step uses every kind of random numbers."""
    torch.manual_seed(weights)
    network = SimCLR(Encoder(encoder, 12, [0.5] * 3, [0.25] * 3), Recipe())
    network.projector.insert(3, nn.Dropout(0.2))
    return network


class Recorder(nn.Module):
    """An objective that records its batches."""

    def __init__(self, loss=lambda weight: weight.sum()):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
        self.compute_loss, self.batches = loss, []

    def loss(self, batch):
        self.batches.append(batch)
        return self.compute_loss(self.weight) + self.bias.sum(), {"extra": torch.tensor(7.0)}


@pytest.fixture
def data(pixels):
    images, labels = pixels(20, side=14)
    aspects = np.linspace(0.5, 2, 20).astype(np.float32)
    indices = np.array([1, 2, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19])
    return TrainingData(images, aspects, indices, labels[indices])


def stop_at(step, rows, number=signal.SIGTERM):
    def log(row):
        rows.append(row)
        if row["step"] == step:
            os.kill(os.getpid(), number)

    return log


def same_state(a, b):
    states = a.state_dict(), b.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize(
    ("optimizer", "encoder"),
    [
        *((name, "resnet8-w8") for name in ("lars", "sgd", "adamw", "muon")),
        ("muon", "resnet8-w64"),  # With enough channels for our own gradients.
    ],
)
def test_a_stopped_and_resumed_run_is_bit_identical(data, tmp_path, optimizer, encoder):
    rate = 0.5 if optimizer == "lars" else 0.01
    whole, rows = objective(encoder=encoder), []
    train(whole, data, plan(optimizer=optimizer, rate=rate), CPU, rows.append)
    saving = Saving(tmp_path / "state", "clfew pretrain --resume here")
    before, after = [], []
    with pytest.raises(Stopped) as stopped:
        stopped_early = objective(encoder=encoder)
        train(stopped_early, data, plan(optimizer=optimizer, rate=rate), CPU, stop_at(5, before), saving)
    assert stopped.value.signal == signal.SIGTERM
    assert stopped.value.resume == "clfew pretrain --resume here"
    resumed = objective(99, encoder)  # All of it must come from the saved state.
    train(resumed, data, plan(optimizer=optimizer, rate=rate), CPU, after.append, saving)
    assert [row["step"] for row in before + after] == list(range(1, 13))
    assert [row["loss"] for row in before + after] == [row["loss"] for row in rows]
    assert same_state(whole, resumed)
    assert not same_state(whole, objective(encoder=encoder))


def test_a_killed_run_resumes_from_its_last_periodic_save(data, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", -1.0)
    whole, rows = objective(), []
    train(whole, data, plan(), CPU)

    def fall_over(row):
        if row["step"] == 7:
            raise RuntimeError("killed")

    saving = Saving(tmp_path / "state", "")
    with pytest.raises(RuntimeError, match="killed"):
        train(objective(), data, plan(), CPU, fall_over, saving)
    resumed = objective(weights=1)
    train(resumed, data, plan(), CPU, rows.append, saving)
    assert rows[0]["step"] == 7  # Saved after step 6, before the row of step 7 was written.
    assert same_state(whole, resumed)


def test_sigint_without_saving_also_stops_and_the_handlers_are_restored(data):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    rows = []
    with pytest.raises(Stopped) as stopped:
        train(Recorder(), data, plan(), CPU, stop_at(3, rows, signal.SIGINT))
    assert (stopped.value.signal, stopped.value.resume) == (signal.SIGINT, "")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_after_a_stop_during_the_last_step_no_step_is_left(data, tmp_path):
    saving, rows = Saving(tmp_path / "state", ""), []
    stopped, resumed = objective(), objective(weights=1)
    with pytest.raises(Stopped):
        train(stopped, data, plan(), CPU, stop_at(12, []), saving)
    train(resumed, data, plan(), CPU, rows.append, saving)
    assert rows == [] and same_state(stopped, resumed)


def test_without_saving_a_stop_during_the_last_step_finishes_the_run(data):
    rows = []
    train(Recorder(), data, plan(), CPU, stop_at(12, rows))
    assert rows[-1]["step"] == 12


def test_a_signal_that_comes_after_the_decision_to_save_waits_for_the_next_step(data, tmp_path):
    saving, rows = Saving(tmp_path / "state", "resume"), []

    class Late:
        """A signal that comes between two looks at it, in the third step."""

        looks = 0

        @property
        def signal(self):
            self.looks += 1
            return signal.SIGTERM if self.looks > 2 else 0

    with pytest.raises(Stopped) as stopped:
        train(objective(), data, plan(), CPU, rows.append, saving, stop=Late())
    assert stopped.value.resume == "resume" and saving.file.exists()


def test_a_signal_before_a_training_of_a_command_stops_it_at_the_first_step(data, tmp_path):
    rows = []
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Stopped) as stopped:
            train(objective(), data, plan(), CPU, rows.append, stop=stop)
    assert stopped.value.signal == signal.SIGINT and [row["step"] for row in rows] == [1]


def test_a_signal_in_the_last_step_of_a_training_is_known_to_its_command(data):
    def interrupt(row):
        if row["step"] == 3:
            signal.raise_signal(signal.SIGTERM)

    with StopRequest() as stop:
        train(objective(), data, plan(3), CPU, interrupt, stop=stop)
        assert stop.signal == signal.SIGTERM


def test_a_damaged_state_is_a_user_error(data, tmp_path):
    saving = Saving(tmp_path / "state", "")
    with pytest.raises(Stopped):
        train(Recorder(), data, plan(), CPU, stop_at(4, []), saving)
    (file,) = saving.folder.iterdir()
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(UserError, match="cannot be used"):
        train(Recorder(), data, plan(), CPU, saving=saving)


def test_the_state_of_another_network_is_a_user_error(data, tmp_path):
    saving = Saving(tmp_path / "state", "")
    with pytest.raises(Stopped):
        train(Recorder(), data, plan(), CPU, stop_at(4, []), saving)
    with pytest.raises(UserError, match="cannot be used"):
        train(objective(), data, plan(), CPU, saving=saving)


def test_a_kill_during_the_first_save_starts_from_the_beginning(data, tmp_path):
    # A kill between making the folder and renaming the file into it leaves an empty folder behind.
    (tmp_path / "state").mkdir()
    rows = []
    train(Recorder(), data, plan(), CPU, rows.append, Saving(tmp_path / "state", ""))
    assert rows[0]["step"] == 1


def test_rows_have_the_keys_that_a_report_reads(data):
    rows = []
    train(Recorder(), data, plan(), CPU, rows.append)
    keys = {"step", "epoch", "loss", "lr", "images_per_second", "data_wait", "extra", "seconds"}
    assert all(set(row) == keys for row in rows)
    assert all(row["extra"] == 7.0 and row["images_per_second"] > 0 for row in rows)
    assert [row["epoch"] for row in rows[:3]] == [0.5, 1.0, 1.5]  # 17 images, batches of 8.
    peak = max(rows, key=lambda row: row["lr"])
    assert peak["lr"] == 0.01 and peak["step"] in (2, 3)


def test_the_first_and_the_last_step_are_logged_however_fast(data, monkeypatch):
    monkeypatch.setattr(loop, "LOG_SECONDS", 1e9)
    rows = []
    train(Recorder(), data, plan(), CPU, rows.append)
    assert [row["step"] for row in rows] == [1, 12]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_a_user_error(data, value):
    with pytest.raises(UserError, match="diverged") as error:
        train(Recorder(lambda weight: weight.sum() * value), data, plan(), CPU)
    assert "--lr" in error.value.hint


def test_labels_aspects_and_random_numbers_match_their_images(data):
    recorder = Recorder()
    train(recorder, data, plan(steps=4), CPU)
    order = np.concatenate([epoch_order(5, epoch, 17)[:16] for epoch in (0, 1)])
    rows = data.indices[order]
    batches = recorder.batches
    assert np.array_equal(np.concatenate([b.images for b in batches]), data.pixels[rows])
    assert np.array_equal(np.concatenate([b.labels for b in batches]), data.labels[order])
    assert np.array_equal(np.concatenate([b.aspects for b in batches]), data.aspects[rows])
    assert np.array_equal(np.concatenate([b.random.indices for b in batches]), rows)
    assert [(b.random.seed, b.random.epoch) for b in batches] == [(5, 0), (5, 0), (5, 1), (5, 1)]
    assert [b.progress for b in batches] == [0, 0.25, 0.5, 0.75]


def test_a_batch_larger_than_the_data_is_all_of_it(data):
    recorder = Recorder()
    train(recorder, data, plan(steps=2, batch=64), CPU)
    assert [len(b.images) for b in recorder.batches] == [17, 17]


def test_the_learning_rate_of_a_name_is_scaled(data):
    recorder = Recorder()
    # The bias takes a hundred times smaller steps: Adam's first steps are as large as the rate.
    train(recorder, data, plan(steps=3), CPU, lr_scale=lambda name: 0.01 if name == "bias" else 1.0)
    moved = (1 - recorder.weight).abs().max(), (1 - recorder.bias).abs().max()
    assert moved[0] > 0.01 and 0 < moved[1] < 0.02 * moved[0]


@pytest.mark.parametrize("fails", [False, True])
def test_the_trial_for_the_speed_leaves_no_trace(data, monkeypatch, fails):
    network = objective()
    if fails:
        calls, step = [], loop._step

        def second_fails(*args):
            calls.append(1)
            loss = step(*args)
            return loss if len(calls) == 1 else 1 / 0

        monkeypatch.setattr(loop, "_step", second_fails)
        with pytest.raises(ZeroDivisionError):
            seconds_per_step(network, data, plan(), CPU, budget=0.1)
        monkeypatch.setattr(loop, "_step", step)
    else:
        assert seconds_per_step(network, data, plan(), CPU, budget=0.1) > 0
    assert same_state(network, objective())
    assert all(parameter.grad is None for parameter in network.parameters())
    after = objective()
    train(after, data, plan(steps=3), CPU)
    train(network, data, plan(steps=3), CPU)
    assert same_state(network, after)


def test_the_largest_seed_trains(data):
    train(objective(), data, replace(plan(steps=2), seed=2**63 - 1), CPU)
