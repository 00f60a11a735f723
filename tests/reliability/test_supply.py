"""clfew uses no network and no pickle unless it must, and allows only dependencies that are tested."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from commands import Command
from faults import signal_at
from fuzzing import THOROUGH

ROOT = Path(__file__).parents[2]
TINY = ("--encoder", "resnet8-w8", "--init", "scratch", "--epochs", "2", "--batch", "16")
WRITTEN = {".safetensors", ".json", ".jsonl", ".csv", ".png", ".html", ".md"}
# torch reads its weights files without the functions of the pickle module.
WATCH_TORCH = """
import sys, torch
for name in ("save", "load"):
    sys.modules["sitecustomize"].noting_call(torch, name)
"""

COMMANDS = {
    "pretrain": ("pretrain", "unlabeled", *TINY),
    "pretrain stopped": ("pretrain", "unlabeled", *TINY, "--method", "byol", "--out", "stopped"),
    "pretrain resumed": ("pretrain", "--resume", "stopped"),
    "finetune": ("finetune", "--labels", "2/class", "--mode", "linear", "--from", "runs/pretrain-1"),
    "finetune full": ("finetune", "--labels", "2/class", "--mode", "full", "--epochs", "1"),
    "distill": ("distill", "--epochs", "1", "--keep", "--from", "runs/finetune-1"),
    "eval": ("eval",),
    "predict": ("predict", "unlabeled", "--format", "csv"),
    "embed": ("embed", "unlabeled", "--from", "runs/pretrain-1"),
    "info": ("info", "runs/finetune-1"),
    "compare": ("compare", "unlabeled", "--methods", "simclr", "--labels", "1/class", "--draws", "1",
                "--epochs", "1", "--encoder", "resnet8-w8", "--size", "16"),
    "cache": ("cache",),
    "cache cleared": ("cache", "--clear"),
}  # fmt: skip
if THOROUGH:
    COMMANDS["demo"] = ("demo", "--minutes", "0.2")


class Watched(Command):
    """Runs commands under watch.py; `notes()` returns what it has logged since the last call."""

    def __init__(self, home: Path) -> None:
        self.log = home / "log"
        (home / "site").mkdir()
        shutil.copy(Path(__file__).with_name("watch.py"), home / "site" / "sitecustomize.py")
        # The hub is not switched to offline: clfew itself must not use the network.
        watching = {
            "PYTHONPATH": str(home / "site"),
            "CLFEW_WATCH": str(self.log),
            "HF_HUB_OFFLINE": "0",
        }
        super().__init__(home, watching)

    def notes(self) -> list[str]:
        """Returns the lines since the last call."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines

    def python(self, program: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", program], env=self.env, text=True, capture_output=True, timeout=300
        )


def network(notes: list[str]) -> list[str]:
    return [note for note in notes if note.startswith("network")]


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    command = Watched(tmp_path_factory.mktemp("watched"))
    command.ok("--version", cwd=command.home)  # Afterwards everything is imported.
    assert not network(command.notes()), "importing what the commands need"
    yield command
    command.close()


@pytest.fixture(scope="module")
def done(watched, images, tmp_path_factory):
    """Runs all commands in one folder; for each its result, the watch's notes, and the files then."""
    folder = tmp_path_factory.mktemp("project")
    # There are so many images that other processes decode too, if there are cores for them.
    images(folder / "unlabeled", each=44)
    results = {}
    for name, arguments in COMMANDS.items():
        stop = signal_at(3, 2) if name.endswith("stopped") else ""
        result = watched(*arguments, cwd=folder, faults=WATCH_TORCH + stop)
        notes = watched.notes()
        places = [folder / "runs", folder / "stopped"]
        files = [path for place in places for path in place.rglob("*") if path.is_file()]
        results[name] = result, notes, {path.relative_to(folder) for path in files}
    return results


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.slow
def test_a_command_uses_no_network_and_no_pickle(done, name):
    result, notes, _ = done[name]
    assert result.rc == (130 if name.endswith("stopped") else 0), result.stderr
    assert notes == []


@pytest.mark.slow
def test_everything_that_commands_write_is_of_an_open_format(done):
    files = {path for _, _, then in done.values() for path in then if "images" not in path.parts}
    assert Path("stopped/state/state.safetensors") in files  # Unfinished runs are included.
    assert len(files) > 20 and {path.suffix for path in files} <= WRITTEN


@pytest.mark.parametrize("command", [("embed", "photos"), ("pretrain", "photos", "--epochs", "1")])
@pytest.mark.slow
def test_pretrained_weights_that_are_not_named_are_not_fetched(watched, images, tmp_path, command):
    images(tmp_path / "photos", each=8)
    watched.ok(*command, cwd=tmp_path, faults=WATCH_TORCH)
    # The only pickle is a file of pretrained weights, which is read with weights_only=True.
    assert {note.split(" in ")[0] for note in watched.notes()} <= {"pickle: load True"}


def test_a_local_data_set_of_hugging_face_needs_no_network(watched, images, tmp_path):
    pytest.importorskip("datasets")
    images(tmp_path / "photos", each=4)
    watched.ok("embed", "hf:./photos", "--encoder", "resnet8-w8", "--init", "scratch", cwd=tmp_path)
    assert network(watched.notes()) == []


def test_weights_that_are_named_are_fetched_from_the_network(watched, images, tmp_path):
    # Without this test, those above would also pass if nothing were watched.
    images(tmp_path / "photos", each=4)
    options = ("--init", "imagenet", "--encoder", "torchvision:resnet18")
    result = watched("embed", "photos", *options, cwd=tmp_path)
    assert result.rc == 1 and "error: " in result.stderr and "Traceback" not in result.stderr
    assert network(watched.notes())


@pytest.mark.parametrize(
    ("program", "noted"),
    [
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "network: socket.getaddrinfo"),
        ("import socket; socket.socket().connect(('127.0.0.1', 9))", "network: socket.connect"),
        ("import pickle; pickle.dumps(1)", "pickle: dumps"),
        ("import io, pickle; pickle.Unpickler(io.BytesIO(b'N.')).load()", "pickle: Unpickler"),
        ("import _pickle; _pickle.loads(b'cos\\ngetcwd\\n.')", "pickle: find_class('os', 'getcwd')"),
        (
            "import os, sys; os.system(sys.executable + ' -c \"import pickle; pickle.dumps(1)\"')",
            "pickle: dumps",
        ),
    ],
)
def test_the_watch_notices_what_it_should(watched, program, noted):
    watched.python(program)
    assert noted in "".join(watched.notes())


@pytest.mark.parametrize("call", ["save({}, io.BytesIO())", "load(io.BytesIO(), weights_only=True)"])
def test_the_watch_notices_torchs_own_files(watched, tmp_path, call):
    watched("cache", cwd=tmp_path, faults=f"{WATCH_TORCH}\nimport io\ntorch.{call}")
    name = call.split("(")[0]
    assert any(note.startswith(f"pickle: {name} ") for note in watched.notes())


def requirements() -> dict[str, set[str]]:
    """Returns each package that pyproject.toml names, with its lower bounds."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 cannot read TOML")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds: dict[str, set[str]] = {}
    for line in sum(project["optional-dependencies"].values(), project["dependencies"]):
        if not line.startswith("clfew["):
            match = re.fullmatch(r"([\w.-]+)>=([\d.]+)", line)
            assert match, f"{line} is not a package with a lower bound"
            bounds.setdefault(match[1], set()).add(match[2])
    return bounds


def test_the_lowest_versions_that_are_tested_are_the_lowest_allowed():
    lines = (ROOT / ".ci" / "lowest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert {name: {version} for name, version in pins.items()} == requirements()


def test_no_dependency_calls_home_when_it_is_imported(watched, tmp_path):
    tools = {"pytest", "pytest-xdist", "hypothesis", "ruff", "mypy"}
    wanted = {name.lower() for name in requirements()} - tools | {"clfew"}
    modules = {
        module: {name.lower().replace("_", "-") for name in names}
        for module, names in packages_distributions().items()
    }
    chosen = sorted(module for module, names in modules.items() if names & wanted)
    assert {"torch", "PIL", "sklearn", "datasets", "clfew"} <= set(chosen)
    program = f"""
import importlib, pkgutil, clfew
for name in {chosen!r}:
    importlib.import_module(name)
for module in pkgutil.walk_packages(clfew.__path__, "clfew."):
    importlib.import_module(module.name)
"""
    watched.ok("cache", cwd=tmp_path, faults=program)
    assert network(watched.notes()) == []
