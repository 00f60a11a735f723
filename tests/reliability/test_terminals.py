"""Whatever a terminal's encoding is, and whether a user has a home: no traceback, and CSV and JSON in
UTF-8."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from commands import paint

NO_HOME = """
import pwd, tempfile
tempfile.tempdir = None  # It may have been found with another TMPDIR.
def nobody(uid):
    raise KeyError(uid)
pwd.getpwuid = nobody
"""
ENCODINGS = ("cp1252", "cp932")
NAMES = {"été", "日本", "Жук"}


@pytest.fixture(scope="module")
def named(trained, tmp_path_factory) -> Path:
    """A folder with a classifier and with images whose names no single encoding has."""
    folder = tmp_path_factory.mktemp("named")
    shutil.copytree(trained / "runs/finetune-1", folder / "runs/finetune-1")
    paint(folder / "photos", classes=sorted(NAMES), each=2)
    return folder


@pytest.fixture
def run(clfew, named):
    """run(encoding, *command) runs a command in a terminal of this encoding; returns its exit code and
    the bytes of stdout and stderr."""
    return lambda encoding, *command, **options: clfew.in_bytes(
        *command, cwd=named, env={"PYTHONIOENCODING": encoding}, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rows_are_utf_8_whatever_the_terminal_is(run, encoding):
    code, out, err = run(encoding, "predict", "photos", "--format", "csv")
    assert (code, err) == (0, b"")
    rows = list(csv.DictReader(io.StringIO(out.decode("utf-8"))))
    folders = {Path(row["path"]).parent.name for row in rows}
    assert folders == NAMES and len(rows) == 6


@pytest.mark.slow
def test_json_and_tables(run):
    code, out, _ = run("cp932", "predict", "photos", "--format", "jsonl")
    assert code == 0
    assert {Path(json.loads(line)["path"]).parent.name for line in out.splitlines()} == NAMES
    # In a table, what the encoding lacks is replaced and the rest is shown; by a new interpreter, too.
    code, out, _ = run("cp932", "predict", "photos", warm=False)
    shown = out.decode("cp932")
    assert code == 0 and "日本" in shown and "?t?" in shown and "Traceback" not in shown


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_messages_and_help(run, encoding):
    code, _, err = run(encoding, "embed", "photos")
    assert code == 0 and b"read as" in err and b"Traceback" not in err
    assert run(encoding, "--help", warm=False)[0] == 0
    code, _, err = run(encoding, "predict", "日本", warm=False)
    assert code == 1 and b"hint:" in err and b"Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("home", [None, ""])
def test_a_user_without_a_home(clfew, named, tmp_path, home):
    shutil.copytree(named / "photos", tmp_path / "photos")
    shutil.copytree(named / "runs", tmp_path / "runs")
    (tmp_path / "tmp").mkdir()
    env = {"TMPDIR": str(tmp_path / "tmp"), "HOME": home, "CLFEW_CACHE": None, "HF_HOME": None}
    command = ("finetune", "photos", "--labels", "1/class", "--mode", "knn", "--from", "scratch")
    clfew.ok(*command, "--encoder", "resnet8-w8", cwd=tmp_path, env=env, faults=NO_HOME)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "runs", "tmp"]
    (place,) = (tmp_path / "tmp").glob("clfew-home-*")
    assert (place / ".cache/clfew").is_dir() and place.stat().st_mode & 0o777 == 0o700
