"""Fixtures for tests of whole commands: the installed command, tiny images, one trained run."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLFEW = Path(sys.executable).parent / "clfew"
CLASSES = ("cross", "ring", "stripe")
TINY = ("--encoder", "resnet8-w8", "--epochs", "1")
SHORT = """
from clfew.finetuning import fit, probes
fit.EPOCHS, fit.LEAST_STEPS = 2, 8
probes.STRENGTHS = {"standardised": (0.1,), "unit": (10.0,)}
"""
"""Run before a command, this makes trainings of mode `full` short where no option says how long, and
leaves one C for each scaling to cross-validation."""


@dataclass(frozen=True)
class Result:
    rc: int
    stdout: str
    stderr: str

    @property
    def next(self) -> list[str]:
        """The commands that were printed as the next ones to run."""
        return re.findall(r"^next: (.*)$", self.stderr, re.MULTILINE)

    def rows(self) -> list[dict]:
        return [json.loads(line) for line in self.stdout.splitlines()]


def paint(folder: Path, classes=CLASSES, each=20, size=16, seed=0, ext="png") -> Path:
    """Writes class folders of noise images, each class of another hue. Class "" is the folder itself."""
    random = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(each):
            pixels = random.integers(0, 60, (size, size, 3))
            pixels[..., number % 3] += 120 - 30 * (number // 3)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index:03d}.{ext}")
    return folder


def digest(folder: Path) -> dict[str, str]:
    """Returns every file below a folder with a digest of its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


class Command:
    """`clfew(*args, cwd=…)` runs the installed command.

    It runs in a fork of a process that has imported torch (see warm.py), because importing it for each
    of hundreds of commands would take too long; with `warm=False` it runs in a new process, and fits as
    long as a user's does (see SHORT).
    """

    def __init__(self, home: Path, env: dict[str, str] | None = None) -> None:
        self.home = home
        # The machine's settings are left out. One thread makes tests independent of busy cores.
        self.env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "COLUMNS": "100",
            "CLFEW_CACHE": str(home / "cache"),
            "HF_HOME": str(home / "hf"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            **(env or {}),
        }
        script = Path(__file__).with_name("warm.py")
        self._server = subprocess.Popen(
            [sys.executable, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.env,
        )

    def __call__(self, *args: object, cwd: Path, stdin="", env=None, warm=True, faults="") -> Result:
        """env: variables to set, or with None to unset. faults: code that the process runs before the
        command (see reliability/faults.py)."""
        code, out, err = self.in_bytes(*args, cwd=cwd, stdin=stdin, env=env, warm=warm, faults=faults)
        return Result(code, out.decode(), err.decode())

    def in_bytes(self, *args: object, cwd: Path, stdin="", env=None, warm=True, faults="") -> tuple:
        """Runs the command; returns its exit code and the bytes of stdout and stderr."""
        argv = [str(CLFEW), *map(str, args)]
        full = {n: value for n, value in (self.env | (env or {})).items() if value is not None}
        if not warm:
            options = {"cwd": cwd, "env": full, "capture_output": True, "timeout": 120}
            done = subprocess.run(argv, input=stdin.encode(), **options)
            return done.returncode, done.stdout, done.stderr
        streams = [self.home / name for name in ("stdin", "stdout", "stderr")]
        streams[0].write_text(stdin)
        request = {
            "argv": argv,
            "cwd": str(cwd),
            "env": full,
            "streams": [str(s) for s in streams],
            "faults": SHORT + faults,
        }
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        code = int(self._server.stdout.readline())
        return code, streams[1].read_bytes(), streams[2].read_bytes()

    def popen(self, *args: object, cwd: Path, env=None, **options) -> subprocess.Popen:
        argv = [str(CLFEW), *map(str, args)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen(argv, cwd=cwd, env=self.env | (env or {}), text=True, **pipes)

    def ok(self, *args: object, cwd: Path, **options) -> Result:
        """Runs a command that must succeed."""
        result = self(*args, cwd=cwd, **options)
        assert result.rc == 0, f"clfew {' '.join(map(str, args))}\n{result.stderr}"
        return result

    def refused(self, *args: object, cwd: Path, rc: int = 1, **options) -> str:
        """Runs a command that must fail with one sentence and one hint and create nothing.

        Returns both lines.
        """
        before = digest(cwd)
        result = self(*args, cwd=cwd, **options)
        lines = result.stderr.splitlines()
        said = [line for line in lines if line.startswith(("error: ", "hint: "))]
        assert "Traceback" not in result.stderr, result.stderr
        assert [line.split(": ")[0] for line in said] == ["error", "hint"], result.stderr + result.stdout
        # Progress may come before. The two lines come last, and the error ends as a sentence does.
        assert lines[-2:] == said, result.stderr
        assert said[0].endswith((".", "?")), said[0]
        assert result.rc == rc, result.stderr
        assert digest(cwd) == before, "a refused command left something behind"
        return "\n".join(said)

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(120)


@pytest.fixture(scope="session")
def clfew(tmp_path_factory):
    command = Command(tmp_path_factory.mktemp("home"))
    yield command
    command.close()


@pytest.fixture(scope="session")
def images():
    """`images(folder, classes, each, size, seed)` writes tiny images: see `paint`."""
    return paint


@pytest.fixture(scope="session")
def digests():
    return digest


@pytest.fixture(scope="session")
def tiny():
    """Options of a pretraining that takes a second."""
    return TINY


@pytest.fixture(scope="session")
def trained(tmp_path_factory, clfew) -> Path:
    """A folder after pretraining and fine-tuning on ./unlabeled, three class folders. Read only."""
    folder = tmp_path_factory.mktemp("trained")
    paint(folder / "unlabeled")
    Image.open(folder / "unlabeled/ring/000.png").save(folder / "image.jpg")
    clfew.ok("pretrain", "./unlabeled", *TINY, cwd=folder)
    clfew.ok("finetune", "--labels", "50%", "--mode", "linear", cwd=folder)
    return folder


@pytest.fixture
def project(trained, tmp_path) -> Path:
    """A copy of the trained folder that a test may change. Its runs still name the original's images."""
    return Path(shutil.copytree(trained, tmp_path / "project"))
