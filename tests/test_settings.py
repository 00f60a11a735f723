"""One settings class a command: the command line, the function and config.json have its fields."""

import inspect
import json
from dataclasses import MISSING, fields

import pytest
import typer

import clfew
from clfew import settings
from clfew.cli import app

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


def names(kind):
    return [each.name for each in fields(kind)]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_options_of_a_command_are_the_fields_of_its_settings(command):
    parameters = {each.name: each for each in typer.main.get_command(app).commands[command].params}
    assert set(parameters) - BESIDE - {"help"} == set(names(COMMANDS[command]))
    for each in fields(COMMANDS[command]):
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
