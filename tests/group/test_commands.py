"""Commands that torchrun starts in two processes: what they write, say and return."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from launched import BESIDE, by_rank, torchrun
from marks import THOROUGH, rest_is_slow
from PIL import Image

from clfew.data.elsewhere import described, found_here
from clfew.data.sources import open_source
from clfew.errors import UserError

TINY = ("--encoder", "resnet8-w8", "--init", "scratch", "--epochs", "1", "--threads", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, images):
    """Images that fill several batches, one of which cannot be read; 270 of them are to test on."""
    folder = tmp_path_factory.mktemp("images")
    images(folder / "images/train", each=30, size=8)
    images(folder / "images/test", each=90, size=8, seed=1)
    (folder / "images/train/ring/007.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def together(folder, clfew):
    """What one process has written with `api.py`, and what two have."""
    for name in ("one", "two"):
        (folder / name).mkdir()
    line = [BESIDE / "api.py", "one", "images"]
    subprocess.run([sys.executable, *line], cwd=folder, env=clfew.env, check=True, capture_output=True)
    line = [BESIDE / "api.py", "two", "images", "one/classifier", "one/encoder-0"]
    code, _, stderr = torchrun(*line, cwd=folder, env=clfew.env)
    assert code == 0, stderr
    (folder / "two/stderr.txt").write_text(stderr)
    return folder


def test_functions_return_the_same_in_all_processes(together):
    first, second = (json.loads((together / f"two/{rank}.json").read_text()) for rank in (0, 1))
    assert first.pop("rows") and not second.pop("rows")  # Predictions come in the first process only.
    assert first == second


def test_the_files_are_those_of_one_process(together):
    """The networks that are trained differ by rounding; files, columns and names do not."""
    two, one = (
        {str(p.relative_to(together / name)) for p in (together / name).rglob("*") if p.is_file()}
        for name in ("two", "one")
    )
    assert two - {"0.json", "1.json", "stderr.txt"} == one - {"alone.json"}
    files = [together / name / "classifier/config.json" for name in ("two", "one")]
    first, second = (json.loads(file.read_text()) for file in files)
    assert first["launch"] and "launch" not in second


def test_rows_are_put_together_in_order(together):
    """Features, tests and predictions of one network are to the byte those of one process."""
    two, one = (json.loads((together / name).read_text()) for name in ("two/0.json", "one/alone.json"))
    assert len(two["rows"]) == 360 and two["rows"] == one["rows"]
    assert [row["path"] for row in two["rows"]] == sorted(row["path"] for row in two["rows"])
    assert sum("error" in row for row in two["rows"]) == 1
    for name in ("features.safetensors", "paths.csv", "bad_images.csv"):
        two, one = ((together / run / "features" / name).read_bytes() for run in ("two", "one"))
        assert two == one, name
    reports = [together / run / "report/report.json" for run in ("two", "one")]
    two, one = (json.loads(file.read_text()) | {"artifact": ""} for file in reports)
    assert two == one


def test_the_same_number_of_processes_gives_the_same_bytes(together):
    first, second = (
        safetensors.numpy.load_file(together / f"two/encoder-{number}/encoder.safetensors")
        for number in (0, 1)
    )
    assert first.keys() == second.keys()
    assert all(np.array_equal(array, second[name]) for name, array in first.items())


def test_the_first_process_alone_speaks_and_says_what_each_takes(together):
    said = (together / "two/stderr.txt").read_text()
    assert said.count("31 (as asked for; 15 in each of 2 processes, 16 in the first)") == 2
    assert said.count("a batch of 3 leaves a remainder: 1 in each of 2 processes, 2 in the first") == 1
    assert said.count("\nsaved ") == 4 and said.count("next: ") == said.count("\nnext: ")


@pytest.mark.slow
@THOROUGH
def test_commands_that_are_not_shared_out_run_once(folder, clfew):
    code, stdout, _ = torchrun("-m", "clfew", "check", "images", cwd=folder, env=clfew.env)
    assert code == 0 and stdout.count("360 with a label") == 1
    code, _, stderr = torchrun("-m", "clfew", "pretrain", "imagess", cwd=folder, env=clfew.env)
    assert code == 1
    assert stderr.count("error: There is no folder or file imagess.") == stderr.count("hint: ") == 1


@pytest.mark.slow
def test_compare_gives_methods_to_processes(folder, clfew, tmp_path):
    """The table is to the byte that of one process."""
    line = ("compare", "images", "--methods", "simclr,counting", "--labels", "1/class,2/class")
    line += ("--draws", "2", "--epochs", "1", "--encoder", "resnet8-w8", "--size", "32")
    line += ("--threads", "1", "--format", "csv", "--out")
    alone = clfew.ok(*line, tmp_path / "one", cwd=folder)
    code, stdout, stderr = torchrun("-m", "clfew", *line, tmp_path / "two", cwd=folder, env=clfew.env)
    assert code == 0, stderr
    assert stdout == alone.stdout
    one, two = (json.loads((tmp_path / name / "cells.json").read_text()) for name in ("one", "two"))
    assert one == two


# Machines of their own, each with its own folders.


def copied(folder, place):
    """Copies images to another place, where their times differ."""
    return Path(shutil.copytree(folder / "images", place, copy_function=shutil.copyfile))


def caches(tmp_path):
    return [{"CLFEW_CACHE": str(tmp_path / name)} for name in ("cache-0", "cache-1")]


def errors_in(stderr):
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_machines_find_the_same_images_in_their_own_folders(folder, clfew, tmp_path):
    own = copied(folder, tmp_path / "other")
    options = [*TINY, "--out", str(tmp_path / "run")]
    first, other = (
        [["pretrain", images, *options], cache]
        for images, cache in zip(("images", str(own)), caches(tmp_path), strict=True)
    )
    code, _, stderr = by_rank(first, other, folder, clfew.env)
    assert code == 0, stderr
    files = [next((tmp_path / f"cache-{n}").glob("*/store.json")) for n in (0, 1)]
    built = [json.loads(file.read_text())["source"] for file in files]
    assert built == [str((folder / "images").resolve()), str(own.resolve())]
    assert not list((tmp_path / "cache-0").glob(".*"))


@pytest.mark.slow
def test_an_image_that_one_machine_cannot_read_is_one_sentence(folder, clfew, tmp_path):
    own = copied(folder, tmp_path / "other")
    file = own / "train/cross/003.png"
    file.write_bytes(bytes(file.stat().st_size))
    options = [*TINY, "--out", str(tmp_path / "run")]
    hidden = {"HIDDEN": str((folder / "images").resolve())}
    first, other = (
        [["pretrain", images, *options], cache]
        for images, cache in zip(("images", str(own)), caches(tmp_path), strict=True)
    )
    code, _, stderr = by_rank(first, [other[0], other[1] | hidden], folder, clfew.env)
    assert code == 1
    (said,) = errors_in(stderr)
    assert "Process 1 on " in said and "1 of 360 differ, such as train/cross/003.png (" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_disk_that_one_machine_cannot_write_is_one_sentence(folder, clfew, tmp_path):
    (tmp_path / "file").write_text("")
    line = ["pretrain", "images", *TINY, "--out", str(tmp_path / "run")]
    first, other = ({"CLFEW_CACHE": str(tmp_path / name)} for name in ("cache", "file"))
    code, _, stderr = by_rank([line, first], [line, other], folder, clfew.env)
    assert code == 1
    (said,) = errors_in(stderr)
    assert "process 1 on " in said and str(tmp_path / "file") in said
    assert not (tmp_path / "run").exists()


def missing(own):
    (own / "train/ring/003.png").unlink()


def another(own):
    Image.new("RGB", (8, 8)).save(own / "train/ring/003.png")


def renamed(own):
    (own / "train/ring/003.png").rename(own / "train/ring/x03.png")


@pytest.mark.parametrize("change", rest_is_slow((missing, another, renamed, shutil.rmtree), 4))
def test_other_images_are_not_taken_for_the_same(folder, tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    hidden = copied(folder, tmp_path / "first")
    parts = described(open_source(str(hidden)))
    own = copied(folder, tmp_path / "own")
    assert found_here(parts, None, str(own)).spec == str(own)
    shutil.rmtree(hidden)
    change(own)
    with pytest.raises(UserError, match="cannot be read as the first process reads it"):
        found_here(parts, None, str(own))
