import shutil

import pytest
import torch
from torch import nn

from clfew.errors import UsageError, UserError
from clfew.training import compilation
from clfew.training.compilation import (
    FEWEST_STEPS,
    SHORTEST_RUN,
    check_compile,
    choose_compile,
    compiled,
)

CPU = torch.device("cpu")
LONG = 10 * SHORTEST_RUN


@pytest.fixture(autouse=True)
def _compiler_is_installed(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")


def timed(plain, fast):
    return lambda compile: fast if compile else plain


def never(compile):
    raise AssertionError("a trial was made")


def test_auto_compiles_a_long_run_that_is_faster_in_a_trial():
    wanted, why = choose_compile("auto", CPU, LONG, timed(1.0, 0.8))
    assert wanted and "1.25 times as fast" in why
    wanted, why = choose_compile("auto", CPU, LONG, timed(1.0, 1.1))
    assert not wanted and "0.91 times as fast" in why
    assert not choose_compile("auto", CPU, LONG, timed(1.0, 0.92))[0]  # A gain within the noise.


def test_auto_tries_nothing_in_a_short_run():
    assert choose_compile("auto", CPU, FEWEST_STEPS - 1, never) == choose_compile(
        "auto", CPU, FEWEST_STEPS, timed(0.9 * SHORTEST_RUN / FEWEST_STEPS, 0.0)
    )


def test_a_failed_trial_does_not_fail_the_run():
    def fails(compile):
        if compile:
            raise RuntimeError("no such instruction")
        return 1.0

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
