"""Whatever a terminal's encoding is, and whether a user has a home: no traceback, and CSV and JSON in
UTF-8."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import CLFEW, paint

NO_HOME = """
import pwd, sys
def nobody(uid):
    raise KeyError(uid)
pwd.getpwuid = nobody
from clfew.__main__ import main
sys.argv = ["clfew", *sys.argv[1:]]
main()
"""
ENCODINGS = ("cp1252", "cp932")


@pytest.fixture(scope="module")
def named(trained, tmp_path_factory) -> Path:
    """A folder with a classifier and with images whose names no single encoding has."""
    folder = tmp_path_factory.mktemp("named")
    shutil.copytree(trained / "runs/finetune-1", folder / "runs/finetune-1")
    paint(folder / "photos", classes=("été", "日本", "Жук"), each=2)
    return folder


def run(folder: Path, *command: str, encoding: str = "utf-8", **env: str) -> subprocess.CompletedProcess:
    environment = {
        "PATH": os.environ["PATH"],
        "CLFEW_CACHE": str(folder / "cache"),
        "HOME": str(folder),
        "LANG": "C.UTF-8",
        "PYTHONIOENCODING": encoding,
        "OMP_NUM_THREADS": "1",
    } | env
    return subprocess.run(
        [CLFEW, *command], cwd=folder, env=environment, capture_output=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rows_are_utf_8_whatever_the_terminal_is(named, encoding):
    done = run(named, "predict", "photos", "--format", "csv", encoding=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode("utf-8"))))
    folders = {Path(row["path"]).parent.name for row in rows}
    assert folders == {"été", "日本", "Жук"} and len(rows) == 6


@pytest.mark.slow
def test_json_and_tables(named):
    done = run(named, "predict", "photos", "--format", "jsonl", encoding="cp932")
    assert {Path(json.loads(line)["path"]).parent.name for line in done.stdout.splitlines()} == {
        "été",
        "日本",
        "Жук",
    }
    # In a table, what the encoding lacks is replaced and the rest is shown.
    done = run(named, "predict", "photos", encoding="cp932")
    shown = done.stdout.decode("cp932")
    assert done.returncode == 0 and "日本" in shown and "?t?" in shown and "Traceback" not in shown


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_messages_and_help(named, encoding):
    done = run(named, "embed", "photos", encoding=encoding)
    assert done.returncode == 0 and b"read as" in done.stderr and b"Traceback" not in done.stderr
    assert run(named, "--help", encoding=encoding).returncode == 0
    done = run(named, "predict", "日本", encoding=encoding)
    assert done.returncode == 1 and b"hint:" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("home", [None, ""])
def test_a_user_without_a_home(named, tmp_path, home):
    shutil.copytree(named / "photos", tmp_path / "photos")
    shutil.copytree(named / "runs", tmp_path / "runs")
    env = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path / "tmp"), "OMP_NUM_THREADS": "1"}
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-c", NO_HOME, "finetune", "photos", "--labels", "1/class"]
    command += ["--mode", "knn", "--from", "scratch", "--encoder", "resnet8-w8"]
    env |= {} if home is None else {"HOME": home}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "runs", "tmp"]
    (place,) = (tmp_path / "tmp").glob("clfew-home-*")
    assert (place / ".cache/clfew").is_dir() and place.stat().st_mode & 0o777 == 0o700
