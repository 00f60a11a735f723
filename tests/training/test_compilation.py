import contextlib
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from clfew.data.augment import Recipe
from clfew.errors import UsageError, UserError
from clfew.methods.base import METHODS
from clfew.models.encoder import Encoder
from clfew.training import compilation
from clfew.training.batch import TrainingData
from clfew.training.compilation import (
    FEWEST_STEPS,
    SHORTEST_RUN,
    NothingCompiled,
    check_compile,
    choose_compile,
    compiled,
)
from clfew.training.loop import seconds_per_step
from clfew.training.plan import Plan

CPU = torch.device("cpu")
LONG = 10 * SHORTEST_RUN


@pytest.fixture(autouse=True)
def _compiler_is_installed(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


def timed(plain, fast, steps=5):
    """Steps differ by up to 4 %."""
    noise = np.linspace(0.98, 1.02, steps)
    return lambda compile: list(noise * (fast if compile else plain))


def never(compile):
    raise AssertionError("a trial was made")


def test_auto_compiles_a_long_run_that_is_faster_in_a_trial():
    wanted, why = choose_compile("auto", CPU, LONG, timed(1.0, 0.8))
    assert wanted and "1.25 times as fast" in why
    wanted, why = choose_compile("auto", CPU, LONG, timed(1.0, 1.1))
    assert not wanted and "0.91 times as fast" in why
    assert not choose_compile("auto", CPU, LONG, timed(1.0, 0.92))[0]  # Too small a gain.


def test_a_gain_that_may_be_chance_is_not_taken():
    """With two steps of each kind, both are faster in one of six trials of the same kind."""
    wanted, why = choose_compile("auto", CPU, LONG, timed(1.0, 0.8, steps=2))
    assert not wanted and why.endswith("which may be chance")
    noisy = {False: [1.0, 0.7, 1.3, 1.0, 0.9], True: [0.8, 0.8, 1.2, 0.6, 0.8]}
    wanted, why = choose_compile("auto", CPU, LONG, noisy.get)
    assert not wanted and "1.25 times as fast" in why and "chance" in why


def test_auto_tries_nothing_in_a_short_run():
    assert choose_compile("auto", CPU, FEWEST_STEPS - 1, never) == choose_compile(
        "auto", CPU, FEWEST_STEPS, timed(0.9 * SHORTEST_RUN / FEWEST_STEPS, 0.0)
    )


def test_a_failed_trial_does_not_fail_the_run():
    def fails(compile):
        if compile:
            raise RuntimeError("no such instruction")
        return [1.0] * 5

    wanted, why = choose_compile("auto", CPU, LONG, fails)
    assert not wanted and "RuntimeError" in why


def test_without_a_compiler_auto_does_not_compile_and_on_raises(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert choose_compile("auto", CPU, LONG, never) == (False, "needs a C++ compiler (g++)")
    with pytest.raises(UserError, match=r"C\+\+ compiler"):
        check_compile("on", CPU)
    check_compile("auto", CPU)
    assert choose_compile("off", CPU, LONG, never) == (False, "as asked for")


def test_the_compiler_is_the_one_named_in_the_environment(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: name if name == "my-c++" else None)
    monkeypatch.setenv("CXX", "my-c++")
    check_compile("on", CPU)
    monkeypatch.delenv("CXX")
    with pytest.raises(UserError):
        check_compile("on", CPU)


def test_on_is_tried_before_anything_is_written():
    tried = []
    assert choose_compile("on", CPU, 1, tried.append) == (True, "as asked for")
    assert tried == [True]

    def fails(compile):
        raise RuntimeError("no such instruction\nin line 1")

    with pytest.raises(UserError, match=r"cannot be compiled here \(no such instruction\)"):
        choose_compile("on", CPU, 1, fails)


def test_a_batch_that_does_not_fit_is_not_the_compilers_fault():
    def does_not_fit(compile):
        raise UserError("A batch of 512 images does not fit.", "a batch of 8 fits: --batch 8.")

    with pytest.raises(UserError, match="A batch of 512"):
        choose_compile("on", CPU, 1, does_not_fit)


def test_other_values_are_refused():
    with pytest.raises(UsageError, match="--compile yes"):
        check_compile("yes", CPU)


def test_only_inside_the_context_is_the_encoder_compiled(monkeypatch):
    calls = []
    monkeypatch.setattr(
        torch, "compile", lambda function, **_: lambda *args: calls.append(1) or function(*args)
    )
    objective = nn.ModuleDict({"encoder": nn.Linear(3, 2)})
    names, images = list(objective.state_dict()), torch.ones(1, 3)
    expected = objective["encoder"](images)
    with compiled(objective, False):
        objective["encoder"](images)
    assert not calls
    with pytest.raises(ZeroDivisionError), compiled(objective, True):
        assert torch.equal(objective["encoder"](images), expected)
        assert list(objective.state_dict()) == names
        raise ZeroDivisionError
    assert len(calls) == 1
    objective["encoder"](images)
    assert len(calls) == 1


@pytest.mark.slow
def test_the_real_compiler_gives_the_same_features_up_to_rounding(monkeypatch):
    monkeypatch.undo()
    if compilation._missing_compiler(CPU):
        pytest.skip("no C++ compiler is installed")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten())
    objective, images = nn.ModuleDict({"encoder": network}), torch.randn(4, 3, 8, 8)
    expected = network(images)
    with compiled(objective, True):
        torch.testing.assert_close(network(images), expected)


class Parts(nn.Module):
    """An objective that calls the encoder, its backbone, or only a part of that."""

    def __init__(self, part):
        super().__init__()
        self.encoder, self.part = nn.Sequential(), part
        self.encoder.add_module("backbone", nn.Sequential(nn.Linear(3, 2)))

    def outputs(self, images):
        network = {"whole": self.encoder, "backbone": self.encoder.backbone}
        return network.get(self.part, self.encoder.backbone[0])(images)


@pytest.mark.parametrize(("part", "is_called"), [("whole", True), ("backbone", True), ("inner", False)])
def test_whether_anything_compiled_was_called_is_known(monkeypatch, part, is_called):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    objective, images = Parts(part), torch.ones(1, 3)
    with compiled(objective, True) as asked:
        assert not asked()
        objective.outputs(images)
        assert asked() is is_called


def test_a_method_with_nothing_to_compile_is_not_compiled_and_says_so():
    def nothing(compile):
        if compile:
            raise NothingCompiled
        return [1.0] * 5

    with pytest.raises(UsageError, match="nothing to compile"):
        choose_compile("on", CPU, 1, nothing)
    wanted, why = choose_compile("auto", CPU, LONG, nothing)
    assert not wanted and "takes the network apart" in why


@pytest.mark.parametrize("name", METHODS)
def test_every_method_calls_what_is_compiled_or_says_that_there_is_nothing(monkeypatch, name):
    """The compiler is replaced: whether a method's calls reach it does not depend on what it does."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    kind = METHODS[name]
    network = Encoder(kind.encoder_name("resnet8-w8"), 32, [0.5] * 3, [0.25] * 3, input=kind.input)
    objective = kind(network, Recipe())
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    data = TrainingData(images, np.ones(8, np.float32), np.arange(8))
    objective.look_at(torch.from_numpy(images), torch.ones(8))
    plan = Plan(10, 8, "adamw", 1e-3, 0.0, 1, 0, "fp32", True)
    apart = name in ("colorization", "denoising", "inpainting", "split-brain")
    with pytest.raises(NothingCompiled) if apart else contextlib.nullcontext():
        seconds_per_step(objective, data, plan, CPU, budget=1)
