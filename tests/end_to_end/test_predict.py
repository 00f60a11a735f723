"""`clfew predict`: rows on stdout, for people and for pipes."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from marks import rest_is_slow
from PIL import Image

from clfew.commands.predict import predict
from clfew.errors import UserError

CLASSES = {"cross", "ring", "stripe"}
ANSI = re.compile(r"\x1b\[")


@pytest.fixture(scope="module")
def photos(trained, images, tmp_path_factory):
    """A folder with the trained runs and 310 pictures to predict."""
    folder = tmp_path_factory.mktemp("photos")
    shutil.copytree(trained / "runs", folder / "runs")
    images(folder / "many", classes=[""], each=310)
    images(folder / "few", classes=["x", "y"], each=2)
    return folder


def test_files_folders_patterns_and_stdin_name_images(clfew, photos):
    def paths(*args, stdin=""):
        return [
            row["path"]
            for row in clfew.ok("predict", *args, "--format", "jsonl", cwd=photos, stdin=stdin).rows()
        ]

    four = ["few/x/000.png", "few/x/001.png", "few/y/000.png", "few/y/001.png"]
    assert paths("few/y/001.png", "few/x/000.png") == ["few/y/001.png", "few/x/000.png"]
    assert paths("few") == paths("few/") == paths("few/*/*.png") == paths("few/**/*.png") == four
    assert paths("-", stdin="few/y/000.png\n\nfew/x/001.png\r\n") == ["few/y/000.png", "few/x/001.png"]
    assert paths("few/x/001.png", "-", stdin="few/y/000.png") == ["few/x/001.png", "few/y/000.png"]
    # An image that is named twice is predicted once, at its first place.
    assert paths("few/y/000.png", "few", "few/*/*.png") == ["few/y/000.png", *four[:2], four[3]]


def test_a_file_comes_once_however_it_is_spelled(clfew, photos):
    rows = clfew.ok(
        "predict",
        "few/x/000.png",
        "./few/x/000.png",
        photos / "few/x/000.png",
        "--format",
        "jsonl",
        cwd=photos,
    ).rows()
    assert len(rows) == 1


@pytest.mark.parametrize("output", ["json", "jsonl", "csv"])
def test_rows_have_path_label_probability_and_top(clfew, photos, output):
    text = clfew.ok("predict", "few", "--top", 2, "--format", output, cwd=photos).stdout
    if output == "csv":
        rows = list(csv.DictReader(io.StringIO(text)))
    else:
        rows = json.loads(text) if output == "json" else [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 4
    for row in rows:
        assert row.keys() >= {"path", "label", "probability", "top"}
        top = json.loads(row["top"]) if output == "csv" else row["top"]
        assert len(top) == 2 and top[0][0] == row["label"] and top[0][1] >= top[1][1]
        assert float(row["probability"]) == pytest.approx(top[0][1])
        assert row["label"] in CLASSES


def test_table_shows_as_many_labels_as_asked_for_and_exist(clfew, photos):
    for settings, shown in ((1, 1), (2, 2), (99, 3)):
        (line,) = clfew.ok("predict", "few/x/000.png", "--top", settings, cwd=photos).stdout.splitlines()
        assert line.count(" %") == shown


@pytest.mark.parametrize("output", ["table", "json", "jsonl", "csv"])
def test_an_unreadable_image_has_a_row_and_the_others_are_predicted(clfew, photos, output):
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    names = "few/x/000.png\nbroken.png\nnowhere.png\nfew/y/000.png\n"
    result = clfew("predict", "-", "--format", output, cwd=photos, stdin=names)
    assert result.rc == 1 and "Traceback" not in result.stderr
    assert re.search(r"^error: 2 .*\nhint: ", result.stderr, re.MULTILINE)
    if output == "table":
        lines = result.stdout.splitlines()
        assert [line.split("  ")[0] for line in lines] == names.split()
        assert ["cannot be read" in line for line in lines] == [False, True, True, False]
        return
    if output == "csv":
        rows = list(csv.DictReader(io.StringIO(result.stdout)))
    else:
        rows = json.loads(result.stdout) if output == "json" else result.rows()
    assert [row["path"] for row in rows] == names.split()
    assert [bool(row.get("error")) for row in rows] == [False, True, True, False]
    assert [bool(row["label"]) for row in rows] == [True, False, False, True]


@pytest.mark.parametrize("output", ["table", "json", "jsonl", "csv"])
def test_where_no_image_can_be_read_each_has_a_row(clfew, photos, output):
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    result = clfew("predict", "broken.png", "--format", output, cwd=photos)
    assert result.rc == 1 and "Traceback" not in result.stderr
    assert "broken.png" in result.stdout and re.search(r"^error: ", result.stderr, re.MULTILINE)


def test_names_on_stdin_are_bytes(clfew, photos):
    """Of another encoding, or separated by null bytes as `find -print0` does."""
    name = b"\xe9t\xe9.png"
    shutil.copy(photos / "few/x/000.png", os.fsencode(photos) + b"/" + name)
    environment = clfew.env | {"PYTHONIOENCODING": "utf-8:strict"}  # As in most locales.
    command = [Path(sys.executable).parent / "clfew", "predict", "-", "--format", "jsonl"]
    named = name + b"\nfew/x/000.png\0few/x/001.png\0"
    done = subprocess.run(command, cwd=photos, env=environment, capture_output=True, input=named)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert rows[0]["label"] in CLASSES and rows[1]["error"]


def test_hundreds_of_images_keep_their_order(clfew, photos):
    names = [f"many/{i:03d}.png" for i in range(310)]
    rows = clfew.ok("predict", "many", "--format", "jsonl", cwd=photos).rows()
    assert [row["path"] for row in rows] == names
    backwards = clfew.ok(
        "predict", "-", "--format", "jsonl", cwd=photos, stdin="\n".join(names[::-1])
    ).rows()
    assert [row["path"] for row in backwards] == names[::-1]
    # An image's row does not depend on which others it was computed with.
    assert all(
        a["label"] == b["label"] and a["probability"] == pytest.approx(b["probability"], abs=1e-5)
        for a, b in zip(rows, backwards[::-1], strict=True)
    )


def test_an_image_in_another_format_gets_the_same_label(clfew, photos):
    image = Image.open(photos / "few/x/000.png")
    image.save(photos / "same.bmp")
    image.convert("RGBA").save(photos / "same.webp", lossless=True)
    image.resize((200, 200), Image.Resampling.NEAREST).save(photos / "large.tiff")
    rows = clfew.ok(
        "predict",
        "few/x/000.png",
        "same.bmp",
        "same.webp",
        "large.tiff",
        "--format",
        "jsonl",
        cwd=photos,
    ).rows()
    assert len({row["label"] for row in rows}) == 1
    assert rows[0]["probability"] == rows[1]["probability"] == rows[2]["probability"]


def test_before_any_finetune_the_hint_names_it(clfew, images, tmp_path):
    images(tmp_path, classes=[""], each=1)
    message = clfew.refused("predict", "000.png", cwd=tmp_path, warm=False)
    assert "clfew finetune --labels 1%" in message


def test_what_is_not_there_is_refused_at_once(clfew, photos):
    assert "nowhere.jpg" in clfew.refused("predict", "nowhere.jpg", cwd=photos)
    assert "*.gif" in clfew.refused("predict", "few/*.gif", cwd=photos)
    (photos / "nothing").mkdir(exist_ok=True)
    assert "nothing" in clfew.refused("predict", "nothing", cwd=photos)


def test_predict_in_python_takes_a_run_a_file_or_the_newest_classifier(photos, monkeypatch):
    monkeypatch.chdir(photos)
    images, run = ["few/x/000.png", "nowhere.png"], Path("runs/finetune-1")
    first, missing = predict(images, top=2, device="cpu", threads=1)
    assert first.path == images[0] and len(first.top) == 2 and first.error is None
    assert missing.path == images[1] and missing.top == [] and missing.error
    for origin in (run, str(run), run / "classifier.safetensors"):
        assert list(predict(images, origin, top=2, device="cpu", threads=1)) == [first, missing]


def test_predict_in_python_refuses_a_missing_classifier_when_it_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for origin in (None, "nowhere", tmp_path):
        with pytest.raises(UserError):
            predict([], origin)


@pytest.mark.parametrize("output", rest_is_slow(["table", "jsonl", "csv"]))
def test_a_reader_that_goes_away_is_no_error(clfew, photos, output):
    # Like `clfew predict many | head -1`: the pipe closes while rows are still to come, or, where
    # they were buffered, before the first.
    process = clfew.popen("predict", "many", "--format", output, cwd=photos)
    if output != "csv":
        assert process.stdout.readline()
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    process.wait(60)
    # As a shell reports a process that SIGPIPE ended.
    assert stderr == "" and process.returncode == 128 + signal.SIGPIPE


def test_nothing_on_stdout_but_rows_and_no_colours_in_a_pipe(clfew, photos):
    result = clfew("predict", "few", cwd=photos, warm=False, env={"TERM": "xterm-256color"})
    assert result.rc == 0 and len(result.stdout.splitlines()) == 4 and result.stderr == ""
    for environment in ({"TERM": "xterm-256color"}, {"TERM": "xterm-256color", "NO_COLOR": "1"}):
        failed = clfew("predict", "nowhere.png", cwd=photos, env=environment)
        assert not ANSI.search(result.stdout + failed.stdout + failed.stderr)


def test_no_color_is_honoured_on_a_terminal(clfew, photos):
    pty = pytest.importorskip("pty")
    printed = {}
    for no_color in ("", "1"):
        ours, theirs = pty.openpty()
        env = {"TERM": "xterm-256color", "NO_COLOR": no_color}
        process = clfew.popen(
            "predict", "nowhere.png", cwd=photos, env=env, stdout=theirs, stderr=theirs
        )
        process.wait(60)
        os.close(theirs)
        printed[no_color] = os.read(ours, 65536).decode()
        os.close(ours)
    # Bold is no colour; the colours of `error:` (31) and `hint:` (36) are gone.
    assert re.search(r"\x1b\[[0-9;]*3[16]m", printed[""]), printed[""]
    assert not re.search(r"\x1b\[[0-9;]*3[16]m", printed["1"]), printed["1"]


def test_control_characters_in_a_name_do_not_reach_the_terminal(clfew, photos):
    name = "bad\x1b[2J\nname.png"
    (photos / name).write_bytes((photos / "few/x/000.png").read_bytes())
    result = clfew.ok("predict", name, cwd=photos)
    assert "\x1b" not in result.stdout and len(result.stdout.splitlines()) == 1
    (row,) = clfew.ok("predict", name, "--format", "jsonl", cwd=photos).rows()
    assert row["path"] == name
