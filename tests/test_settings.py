"""One settings class a command: the command line, the function and config.json have its fields."""

import inspect
import json
import signal
from dataclasses import MISSING, fields
from pathlib import Path
from unittest.mock import patch

import pytest
import typer

import clfew
from clfew import settings
from clfew.cli import app
from clfew.commands.pretraining import _method_options
from clfew.errors import UsageError
from clfew.methods.base import METHODS
from clfew.methods.simclr import SimCLR

COMMANDS = {
    "pretrain": settings.PretrainSettings,
    "finetune": settings.FinetuneSettings,
    "distill": settings.DistillSettings,
    "eval": settings.EvaluateSettings,
    "predict": settings.PredictSettings,
    "embed": settings.EmbedSettings,
    "compare": settings.CompareSettings,
}
BESIDE = {"resume", "output"}
"""Options of the command line alone."""
PYTHON_ONLY = {"options"}
"""Keywords that no command line has."""


def names(kind):
    return [each.name for each in fields(kind)]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_of_a_command_are_the_fields_of_its_settings(command):
    parameters = {each.name: each for each in typer.main.get_command(app).commands[command].params}
    own = [each for each in fields(COMMANDS[command]) if each.name not in PYTHON_ONLY]
    assert set(parameters) - BESIDE - {"help"} == {each.name for each in own}
    for each in own:
        parameter = parameters[each.name]
        assert parameter.help, each.name
        if each.default is not MISSING:
            assert parameter.default == each.default, each.name


@pytest.mark.parametrize("command", COMMANDS)
def test_the_python_function_takes_them_as_typed_keywords(command):
    function = getattr(clfew, "evaluate" if command == "eval" else command)
    parameters = inspect.signature(function).parameters
    assert list(parameters) == names(COMMANDS[command])
    for each in fields(COMMANDS[command]):
        assert parameters[each.name].annotation is not inspect.Parameter.empty
        assert f"\n{each.name}: " in function.__doc__
    assert inspect.signature(function).return_annotation is not None
    with pytest.raises(TypeError, match="no_such_option"):
        function("somewhere", no_such_option=1)


@pytest.mark.parametrize("run", ["pretrain-1", "finetune-1"])
def test_config_json_keeps_them_and_makes_them_again(trained, run):
    kind = COMMANDS[run.split("-")[0]]
    arguments = json.loads((trained / "runs" / run / "config.json").read_text())["arguments"]
    assert list(arguments) == names(kind)
    assert settings.arguments_of(kind(**arguments)) == arguments


def signal_at(step, number):
    """Code that raises a signal in a step (see reliability/faults.py)."""
    import importlib.util

    path = Path(__file__).parent / "reliability/faults.py"
    spec = importlib.util.spec_from_file_location("faults_of_tests", path)
    faults = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faults)
    return faults.signal_at(step, number)


def test_the_options_of_a_registered_method_are_given_in_python():
    class Turned(SimCLR):
        def __init__(self, encoder, recipe, gentle=False, turns=4):
            super().__init__(encoder, recipe, gentle)

    with patch.dict(METHODS, {"turned": Turned}):
        asked = settings.PretrainSettings("images", method="turned", options={"turns": 3})
        assert _method_options(asked) == {"turns": 3}
        with pytest.raises(UsageError, match="--steps is no option of --method turned"):
            _method_options(settings.PretrainSettings("images", method="turned", options={"steps": 3}))


def test_the_folder_of_a_run_may_be_given_again_on_resume(clfew, images, tmp_path):
    images(tmp_path / "images", ("",), each=40)
    words = ("images", "--encoder", "resnet8-w8", "--epochs", "2", "--init", "scratch", "--out", "run")
    faults = signal_at(2, signal.SIGINT)
    assert clfew("pretrain", *words, cwd=tmp_path, faults=faults).rc == 130
    said = clfew.refused("pretrain", "--resume", "run", "--out", "other", cwd=tmp_path, rc=2)
    assert "--out other cannot be changed on resume: run was started with run" in said
    clfew.ok("pretrain", "--resume", "run", "--out", "run", cwd=tmp_path)
