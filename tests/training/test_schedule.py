"""Trainings that have a time, on a clock that only their steps move on."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from clfew.errors import Stopped
from clfew.training import loop, meter
from clfew.training.batch import TrainingData
from clfew.training.loop import train
from clfew.training.plan import Plan
from clfew.training.saving import Saving
from clfew.training.schedule import MISS, Schedule
from clfew.training.signals import StopRequest

CPU = torch.device("cpu")
SECONDS = 60.0
FEW_SECONDS = 15.0
"""For trainings whose steps are taken, not simulated."""
DATA = TrainingData(np.zeros((8, 2, 2, 3), np.uint8), np.ones(8, np.float32), np.arange(8))


def planned(steps, seconds=SECONDS, most=None):
    return Plan(steps, 8, "sgd", 0.1, 0.0, max(1, steps // 10), 3, "fp32", False, seconds, most)


class Timed(nn.Module):
    """An objective whose steps take the time that `step_seconds(now)` says."""

    def __init__(self, clock, step_seconds):
        super().__init__()
        self.weight, self.clock, self.step_seconds = nn.Parameter(torch.ones(2)), clock, step_seconds
        self.progress = []

    def loss(self, batch):
        self.clock.now += self.step_seconds(self.clock.now)
        self.progress.append(batch.progress)
        return (self.weight * (1 + batch.progress)).sum(), {}

    def after_step(self, progress):
        self.progress.append(progress)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    for module in (loop, meter):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def trained(clock, plan, step_seconds, **options):
    rows, objective, begun = [], Timed(clock, step_seconds), clock.now
    carried_out = train(objective, DATA, plan, CPU, rows.append, **options)
    return SimpleNamespace(plan=carried_out, objective=objective, rows=rows, seconds=clock.now - begun)


def simulated(plan, step_seconds):
    """Goes through a schedule as the loop does, without training. Returns what `trained` does."""
    schedule, step, seconds, rows, progress = Schedule(plan, len(DATA)), 0, 0.0, [], []
    while step < schedule.last:
        rate = schedule.learning_rate(step)
        progress += [schedule.progress(step), schedule.progress(step, taken=1)]
        seconds += step_seconds(100.0 + seconds)
        step += 1
        if schedule.must_follow(step, seconds):
            schedule.follow(step, seconds)
        rows.append({"step": step, "lr": rate, "seconds": seconds, "steps": schedule.last})
    carried_out = replace(plan, seconds=None, most_steps=None, replanned=schedule.replanned)
    return SimpleNamespace(plan=carried_out, progress=progress, rows=rows, seconds=seconds)


def changing(*changes):
    """Returns the seconds of a step: 0.02, times each factor of `changes` from its second on."""

    def step_seconds(now):
        return 0.02 * [factor for since, factor in ((0.0, 1.0), *changes) if now - 100.0 >= since][-1]

    return step_seconds


@pytest.mark.parametrize("at", [0.001, 0.1, 0.5, 0.95, 0.99])
@pytest.mark.parametrize("factor", [0.2, 5.0, 1 / 20, 20.0])
def test_the_time_is_kept_however_the_speed_changes(at, factor):
    run = simulated(planned(3000), changing((at * SECONDS, factor)))
    # A fivefold change misses by less than 5 %; a slow step that has begun is finished.
    allowed = 0.05 if 0.2 <= factor <= 5 else 0.1
    assert abs(run.seconds / SECONDS - 1) < allowed
    assert run.plan.last_step() == run.rows[-1]["step"]


@pytest.mark.parametrize("estimate", [3, 28, 300, 3000, 30_000, 300_000])
def test_the_time_is_kept_however_wrong_the_first_plan_was(estimate):
    run = simulated(planned(estimate), changing())
    assert abs(run.seconds / SECONDS - 1) < 0.02
    assert 2900 < run.plan.last_step() < 3100
    rates = [row["lr"] for row in run.rows]
    # Warm-up, peak and a decay to nothing are there; a plan of far too many steps begins with a warm-up
    # that is too slow for a moment.
    assert max(rates) > 0.095 and rates[-1] < 0.001
    done = {round(row["seconds"]): row["lr"] for row in run.rows}
    assert 0.03 < done[30] < 0.07


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("noise", "most"), [(0.3, 5), (1.0, 60)])
def test_noise_in_the_speed_makes_few_new_plans(seed, noise, most):
    random = np.random.default_rng(seed)
    run = simulated(planned(3000), lambda now: 0.02 * random.gamma(1 / noise**2) * noise**2)
    assert abs(run.seconds / SECONDS - 1) < 0.02
    assert len(run.plan.replanned) < most


@pytest.mark.slow
def test_a_steady_speed_needs_no_new_plan_and_takes_the_planned_steps(clock):
    plan = planned(750, FEW_SECONDS)
    run = trained(clock, plan, changing())
    assert run.plan.replanned == [] and run.plan.last_step() == 750
    fixed = trained(clock, replace(plan, seconds=None), changing())
    assert torch.equal(run.objective.weight, fixed.objective.weight)
    assert run.objective.progress == fixed.objective.progress


def test_slow_steps_that_are_few_keep_the_time_to_within_a_step():
    run = simulated(planned(60), lambda now: 2.0 if now > 110 else 1.0)
    assert abs(run.seconds - SECONDS) <= 2.0


def test_a_step_that_hangs_once_does_not_end_the_training():
    hung = []

    def step_seconds(now):
        if now > 120 and not hung:
            hung.append(now)
            return 6.0
        return 0.02

    run = simulated(planned(3000), step_seconds)
    assert abs(run.seconds / SECONDS - 1) < 0.02
    assert 2600 < run.plan.last_step() < 2800


def test_the_first_step_does_not_count_as_the_speed():
    run = simulated(planned(3000), lambda now: 3.0 if now == 100 else 0.02)
    assert abs(run.seconds / SECONDS - 1) < 0.02 and run.plan.last_step() > 2800
    assert all(row["steps"] > 2500 for row in run.rows)


def test_no_more_steps_than_the_limit_and_fewer_where_they_do_not_fit():
    run = simulated(planned(1000, most=1000), changing())
    assert run.plan.replanned == [] and run.plan.last_step() == 1000  # In 20 of 60 seconds.
    run = simulated(planned(1000, most=1000), lambda now: 0.02 if now < 110 else 0.2)
    assert abs(run.seconds / SECONDS - 1) < 0.02 and run.plan.last_step() < 1000
    # The decay goes on from where it was.
    assert np.all(np.diff(run.progress) >= 0) and run.rows[-1]["lr"] < 0.001
    # Once there is time again for all of them, all are taken.
    run = simulated(planned(1000, most=1000), lambda now: 0.2 if 110 < now < 130 else 0.02)
    assert run.plan.last_step() == 1000 and run.seconds < SECONDS


def test_every_new_plan_is_logged_with_its_steps(clock):
    run = trained(clock, planned(750, FEW_SECONDS), changing((5, 50.0), (10, 2.0)))
    logged = {row["step"]: row["steps"] for row in run.rows}
    assert len(run.plan.replanned) >= 2
    assert all(logged[first] == last for first, _, last in run.plan.replanned)
    fixed = trained(clock, replace(planned(100), seconds=None), changing())
    assert all("steps" not in row for row in fixed.rows)


@pytest.mark.slow
def test_what_is_recorded_takes_the_same_steps_again(clock):
    speed = changing((0, 5.0), (1.25, 25.0), (5, 1.0), (12.5, 15.0))
    run = trained(clock, planned(150, FEW_SECONDS), speed)
    assert len(run.plan.replanned) >= 3
    recorded = Plan(**json.loads(json.dumps(vars(run.plan))))
    assert recorded == run.plan and recorded.seconds is None
    again = trained(clock, recorded, lambda now: 1.7)  # Whatever the speed.
    assert torch.equal(run.objective.weight, again.objective.weight)
    assert run.objective.progress == again.objective.progress
    assert again.plan == recorded
    # Another number of the same steps is another training.
    plain = replace(recorded, steps=recorded.last_step(), replanned=[])
    other = trained(clock, plain, lambda now: 1.7)
    assert not torch.equal(run.objective.weight, other.objective.weight)


@pytest.mark.slow
def test_a_training_that_is_resumed_keeps_its_time_and_what_is_recorded_of_it(clock, tmp_path):
    speed, saving = changing((2.5, 4.0), (8.75, 0.5)), Saving(tmp_path / "state", "")
    plan, stopped = planned(750, FEW_SECONDS), []
    with StopRequest() as stop:

        def step_seconds(now):
            if now > 107.5 and not stopped:
                stopped.append(now)
                stop.signal = 15
            return speed(now)

        with pytest.raises(Stopped):
            trained(clock, plan, step_seconds, saving=saving, stop=stop)
    clock.now += 1000.0  # Nobody trains.
    begun = clock.now - (stopped[0] - 100)
    resumed = trained(clock, plan, lambda now: speed(now - begun + 100), saving=saving)
    assert abs(stopped[0] - 100 + resumed.seconds - FEW_SECONDS) < 0.02 * FEW_SECONDS
    assert any(first < resumed.rows[0]["step"] for first, _, _ in resumed.plan.replanned)
    whole = trained(clock, resumed.plan, lambda now: 0.02)
    assert torch.equal(whole.objective.weight, resumed.objective.weight)
    # A training that had its time is not trained again.
    again = trained(clock, plan, speed, saving=saving)
    assert again.rows == [] and again.plan == resumed.plan
    assert torch.equal(again.objective.weight, resumed.objective.weight)


def test_progress_hardly_ever_goes_back_where_the_first_plan_was_right():
    run = simulated(planned(3000), changing((10, 5.0), (20, 1.0), (40, 2.0)))
    # What fast steps use up before their speed is known is given back.
    assert min(np.diff(run.progress)) > -0.05 and sum(np.diff(run.progress) < 0) <= 5
    assert run.progress[-1] == pytest.approx(1.0, abs=2 * MISS)


def test_the_warm_up_never_passes_the_peak_between_two_steps():
    schedule = Schedule(replace(planned(1), replanned=[[1, 0.003, 400], [7, 0.0213, 3333]]), 8)
    rates = [schedule.learning_rate(step) for step in range(3333)]
    assert max(rates[1:]) <= 0.1 and min(rates) > 0
    assert rates[-1] < 1e-6 and math.isclose(max(rates[1:]), 0.1, rel_tol=0.01)
