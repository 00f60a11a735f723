"""`clfew compare` as a user runs it: its table, its files, and resuming after a stop."""

import csv
import io
import json
import signal
import time

import pytest

QUICK = (
    "--methods",
    "simclr,jigsaw,colorization",
    "--labels",
    "1/class,3/class",
    "--draws",
    "2",
    "--epochs",
    "1",
    "--encoder",
    "resnet8-w16",
)
BASELINES = {"raw-pixels", "random", "scratch"}


@pytest.fixture(scope="module")
def compared(clfew, images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    images(folder / "photos", each=30, size=24)
    return folder, clfew.ok("compare", "photos", *QUICK, cwd=folder)


def test_the_table_has_a_row_for_each_method_and_baseline(compared):
    _, result = compared
    for name in ("simclr", "jigsaw", "colorization", "raw pixels", "random encoder", "from scratch"):
        assert name in result.stdout
    assert (
        "1/class (3)" in result.stdout and "3/class (9)" in result.stdout and "images/s" in result.stdout
    )
    assert "3 pretraining runs of resnet8-w16" in result.stderr and "24 classifiers" in result.stderr
    assert result.next == []  # Its parts print no next command either.


def test_every_number_is_kept_with_its_label_samples(compared):
    folder, _ = compared
    result = json.loads((folder / "runs/compare-1/result.json").read_text())
    assert {row["method"] for row in result["rows"]} == {"simclr", "jigsaw", "colorization"} | BASELINES
    for row in result["rows"]:
        assert len(row["draws"]) == 2 and 0 <= row["mean"] <= 1 and row["ci95"][0] <= row["mean"]
    assert {run["method"] for run in result["pretraining"]} == {"simclr", "jigsaw", "colorization"}
    assert all(run["images_per_second"] > 0 and run["epochs"] > 0 for run in result["pretraining"])


def test_the_page_needs_no_network_and_shows_plot_and_samples(compared):
    folder, _ = compared
    page = (folder / "runs/compare-1/compare.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "http" not in page.split("<body>")[1]
    assert (folder / "runs/compare-1/compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("output", ["json", "jsonl", "csv"])
def test_formats(clfew, compared, output):
    """A finished comparison shows its result again: nothing is measured anew."""
    folder, _ = compared
    started = time.monotonic()
    again = clfew.ok("compare", "--resume", "runs/compare-1", "--format", output, cwd=folder)
    assert "3 runs and 24 classifiers are finished already" in again.stderr
    assert "about 0 min to go" in again.stderr
    out = again.stdout
    assert time.monotonic() - started < 60
    if output == "json":
        rows = json.loads(out)["rows"]
    elif output == "jsonl":
        rows = [json.loads(line) for line in out.splitlines()]
    else:
        rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 12 and {row["method"] for row in rows} >= BASELINES


@pytest.mark.slow
def test_a_stopped_comparison_resumes_to_the_same_numbers(clfew, compared):
    folder, _ = compared
    process = clfew.popen("compare", "photos", *QUICK, "--out", "stopped", cwd=folder)
    while not (folder / "stopped/pretrain-simclr-0/encoder.safetensors").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130, message
    assert message.splitlines()[-1] == "next: clfew compare --resume stopped"
    clfew.ok("compare", "--resume", "stopped", cwd=folder)
    whole, stopped = (
        json.loads((folder / name / "result.json").read_text())["rows"]
        for name in ("runs/compare-1", "stopped")
    )
    assert [row["draws"] for row in whole] == [row["draws"] for row in stopped]


@pytest.mark.parametrize(
    ("options", "rc", "words"),
    [
        (("photos", "--methods", "simclr,moco"), 2, "moco is not known"),
        (("photos", "--labels", "many"), 2, "hint"),
        (("photos", "--mode", "knnn"), 2, "choose linear"),
        (("photos", "--minutes", "1", "--epochs", "1"), 2, "two budgets"),
        (("nowhere",), 1, "nowhere"),
        # These are refused before the training of the other methods, not after it.
        (("photos", "--encoder", "vit_b_16", "--methods", "simclr,jigsaw"), 1, "vit_b_16"),
        (
            ("photos", "--encoder", "vit_b_16", "--size", "32", "--methods", "simclr"),
            1,
            "no feature maps",
        ),
        (("--resume", "photos"), 1, "not a run of clfew compare"),
        (("--resume", "runs/compare-7"), 1, "There is no folder runs/compare-7"),
        ((), 2, "No SOURCE of images"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_before_anything_is_written(clfew, compared, options, rc, words):
    folder, _ = compared
    assert words in clfew.refused("compare", *options, rc=rc, cwd=folder)


BROKEN = """
import clfew.methods.jigsaw as jigsaw
loss = jigsaw.Jigsaw.loss
jigsaw.Jigsaw.loss = lambda self, batch: (loss(self, batch)[0] * float("nan"), {})
"""


@pytest.mark.slow
def test_a_method_that_fails_does_not_stop_the_others(clfew, compared, tmp_path):
    """And is tried again by --resume."""
    folder, _ = compared
    methods = ("--methods", "jigsaw,simclr", "--labels", "1/class", "--seeds", "2")
    out = ("--out", tmp_path / "run")
    done = clfew("compare", "photos", *QUICK, *methods, *out, cwd=folder, faults=BROKEN)
    assert done.rc == 1 and "Traceback" not in done.stderr, done.stderr
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith("error: jigsaw could not be trained: ") and "diverged" in error
    assert f"clfew compare --resume {tmp_path / 'run'}" in hint
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert set(result["failed"]) == {"jigsaw"}
    assert {row["method"] for row in result["rows"]} == {"simclr"} | BASELINES
    page = (tmp_path / "run/compare.html").read_text()
    assert "jigsaw failed: The loss is nan" in page and "jigsaw failed" in done.stdout
    clfew.ok("compare", "--resume", tmp_path / "run", cwd=folder)
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["failed"] == {} and "jigsaw" in {row["method"] for row in result["rows"]}


def test_a_single_method_that_fails_is_one_error(clfew, compared, tmp_path):
    folder, _ = compared
    options = ("--methods", "jigsaw", "--labels", "1/class", "--epochs", "1", "--encoder", "resnet8-w16")
    out = ("--out", tmp_path / "run")
    done = clfew("compare", "photos", *options, *out, cwd=folder, faults=BROKEN)
    assert done.rc == 1 and done.stderr.count("error: ") == 1, done.stderr


def test_a_comparison_is_not_resumed_on_other_images(clfew, compared, images, tmp_path):
    images(tmp_path / "photos", each=12, size=24)
    (tmp_path / "photos/ring/page.jpg").write_text("<html>")
    options = ("--methods", "simclr", "--labels", "1/class", "--epochs", "1", "--encoder", "resnet8-w16")
    clfew.ok("compare", "photos", *options, cwd=tmp_path)
    assert "ring/page.jpg" in (tmp_path / "runs/compare-1/bad_images.csv").read_text()
    (tmp_path / "photos/ring/000.png").unlink()
    assert "have changed" in clfew.refused("compare", "--resume", "runs/compare-1", cwd=tmp_path)
