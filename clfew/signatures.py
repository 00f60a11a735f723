"""From a settings class (see `settings`) to the signatures that it gives: of the Python function of a
command, and of the command itself; and which options may differ when a run is resumed.
"""

import inspect
import shlex
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, get_type_hints

import typer

from clfew import options as opt
from clfew.errors import UsageError
from clfew.group.launch import is_helper
from clfew.runs.folders import read_config

S = TypeVar("S")
R = TypeVar("R")
P = ParamSpec("P")


def function_of(settings: Callable[P, S], run: Callable[[S], R]) -> Callable[P, R]:
    """Returns the Python function of a command: the fields of its settings class are its keywords, its
    documentation is that of `run` and the help of each field."""

    def function(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in ("out", "fix"):
            if isinstance(kwargs.get(name), str):
                kwargs[name] = Path(str(kwargs[name]))
        return run(settings(*args, **kwargs))

    helps = [f"{name}: {_help(hint)}" for name, hint in _hints(settings).items()]
    function.__name__ = function.__qualname__ = settings.__name__.removesuffix("Settings").lower()
    function.__module__ = run.__module__
    function.__doc__ = f"{inspect.getdoc(run)}\n\n" + "\n".join(helps)
    plain = {name: hint.__origin__ for name, hint in _hints(settings).items()}
    signature = inspect.signature(settings)
    parameters = [each.replace(annotation=plain[n]) for n, each in signature.parameters.items()]
    function.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=parameters, return_annotation=inspect.signature(run).return_annotation
    )
    return function


def takes(settings: type[S]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator for a command of typer: the command's options are the fields of a settings
    class and the command's own further parameters. It is called with the context, the settings and
    these. A process that torchrun has started beside the first one helps that with the command."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = _hints(settings)

        @wraps(command)
        def typed(context: typer.Context, **values: Any) -> None:
            own = {name: values.pop(name) for name in list(values) if name not in hints}
            if is_helper():
                raise typer.Exit(_help_with(values))
            command(context, settings(**values), **own)

        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters = [
            inspect.Parameter(name, keyword, default=each.default, annotation=hints[name])
            for name, each in inspect.signature(settings).parameters.items()
            if not _is_python_only(hints[name])
        ]
        further = list(inspect.signature(command, eval_str=True).parameters.values())
        context, own = further[0], [each.replace(kind=keyword) for each in further[2:]]
        signature = inspect.Signature([context, *parameters, *own])
        typed.__signature__ = signature  # type: ignore[attr-defined]
        typed.__annotations__ = {n: each.annotation for n, each in signature.parameters.items()}
        return typed

    return decorate


def _help_with(values: dict[str, Any]) -> int:
    from clfew.group.command import help_with

    return help_with(values.get("source"))


def _hints(settings: Callable[..., Any]) -> dict[str, Any]:
    """Returns the annotation of each field."""
    hints = get_type_hints(settings, include_extras=True)
    return {each.name: hints[each.name] for each in fields(settings)}  # type: ignore[arg-type]


def _is_python_only(hint: Any) -> bool:
    return any(isinstance(each, opt.PythonOnly) for each in hint.__metadata__)


def _help(hint: Any) -> str:
    return next(each.help for each in hint.__metadata__ if hasattr(each, "help"))


def given(context: typer.Context) -> set[str]:
    """Returns the names of the options that were typed on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def check_resumed(context: typer.Context, command: str, folder: Path, free: set[str]) -> None:
    """Raises UsageError if an option beside --resume differs from what the run was started with.

    free: names of the options that may differ.
    """
    config = read_config(folder)
    before = config.get("arguments", {})
    for name in sorted(given(context) - free - {"resume"} if config else []):
        value, flag = context.params[name], _FLAGS.get(name, "--" + name.replace("_", "-"))
        if not _is_same(value, before.get(name)):
            had = "the default" if before.get(name) is None else before[name]
            was = (
                f"{folder} was started with {had}"
                if name in before
                else "the run keeps the value it was started with"
            )
            raise UsageError(
                f"{flag} {value} cannot be changed on resume: {was}.",
                f"leave it out: clfew {command} --resume {shlex.quote(str(folder))}",
            )


def _is_same(value: Any, before: Any) -> bool:
    """Returns whether an option has the value that the run was started with.

    A run keeps the full path of a file, and an artifact may be named by its run folder.
    """
    value = str(value) if isinstance(value, Path) else value
    if isinstance(value, list):
        before = before if isinstance(before, list) else [before]
        return len(value) == len(before) and all(map(_is_same, value, before))
    if value == before or not (isinstance(value, str) and isinstance(before, str)):
        return bool(value == before)
    return Path(value).resolve() in (Path(before).resolve(), Path(before).resolve().parent)


_FLAGS = {"source": "SOURCE", "origin": "--from"}
