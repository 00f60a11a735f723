"""The rooms of clfew, from the ground up, and which of those below each may use.

A room is a folder of `clfew/` or a file beside them. Imports only go down: an arrow that is not in the
table fails here, and so does one in the table that nothing uses any more.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import clfew

ROOT = Path(clfew.__file__).parent

ROOMS = {
    "errors": set(),
    "version": set(),
    "console": {"errors"},
    "group": {"console", "errors", "version"},
    "runs": {"errors", "group"},
    "options": set(),
    "data": {"console", "errors", "group", "runs"},
    "settings": {"data", "errors", "options"},
    "signatures": {"errors", "group", "options", "runs"},
    "training": {"console", "data", "errors", "group", "runs"},
    "models": {"console", "data", "errors", "group", "runs", "training"},
    "methods": {"console", "data", "errors", "group", "models", "training", "version"},
    "finetuning": {"console", "data", "errors", "group", "models", "runs", "training", "version"},
    "distillation": {
        "console",
        "data",
        "errors",
        "finetuning",
        "group",
        "methods",
        "models",
        "runs",
        "settings",
        "training",
    },
    "quality": {"console", "data", "errors", "finetuning"},
    "selection": {
        "console",
        "data",
        "errors",
        "finetuning",
        "models",
        "settings",
    },
    "labelling": {
        "console",
        "data",
        "errors",
        "finetuning",
        "runs",
        "selection",
        "settings",
    },
    "exporting": {"console", "data", "errors", "models"},
    "report": {
        "console",
        "data",
        "finetuning",
        "methods",
        "models",
        "quality",
        "runs",
        "training",
    },
    "commands": {
        "console",
        "data",
        "distillation",
        "errors",
        "exporting",
        "finetuning",
        "group",
        "labelling",
        "methods",
        "models",
        "quality",
        "report",
        "runs",
        "selection",
        "settings",
        "signatures",
        "training",
        "version",
    },
    "output": {"commands", "console", "data", "errors", "models", "report", "runs"},
    "cli": {
        "finetuning",
        "commands",
        "console",
        "data",
        "errors",
        "group",
        "labelling",
        "options",
        "output",
        "runs",
        "selection",
        "settings",
        "signatures",
        "version",
    },
    "__main__": {"cli", "console", "errors", "group"},
    "__init__": {"commands", "methods", "models", "version"},
}


def modules():
    """Every module's dotted name with its file."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(modules())


def imports_of(path):
    """The modules of clfew that a file imports, wherever in it: in functions and for types alone too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "clfew")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "clfew":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def room_of(module):
    """The room a module is in; what `import clfew` runs is a room of its own."""
    return module.split(".")[1] if "." in module else "__init__"


@cache
def arrows():
    """Each room with the rooms that it imports."""
    found = {room_of(module): set() for module in MODULES}
    for module, path in MODULES.items():
        found[room_of(module)] |= {room_of(name) for name in imports_of(path)} - {room_of(module)}
    return found


@pytest.mark.parametrize("room", arrows())
def test_a_room_imports_what_the_table_allows_and_nothing_more(room):
    assert arrows()[room] == ROOMS[room]


def test_every_room_is_in_the_table():
    assert set(arrows()) == set(ROOMS)


def test_every_arrow_of_the_table_goes_down():
    rooms = list(ROOMS)
    for number, (room, below) in enumerate(ROOMS.items()):
        assert below <= set(rooms[:number]), room


def test_no_modules_import_each_other_in_a_circle():
    left = {module: set(imports_of(path)) - {module} for module, path in MODULES.items()}
    while free := [module for module, below in left.items() if not below & set(left)]:
        for module in free:
            del left[module]
    assert left == {}


@pytest.mark.parametrize("room", [room for room in ROOMS if (ROOT / room).is_dir()])
def test_a_room_says_what_lives_there_what_it_may_import_and_which_file_to_open_first(room):
    text = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8")))
    assert "Open first: " in text
    named = text.split("Open first: ")[1].split()[0].strip("`.,")
    assert (ROOT / room / named).is_file()
    said = text.split("It imports ")[1].split(".")[0]
    assert set(re.findall(r"`(\w+)`", said)) == ROOMS[room]
