"""Expected class shares on the command line: what is said, kept and refused."""

import json
import shutil
import signal

import pytest
from commands import TINY
from faults import save_every, signal_at
from marks import rest_is_slow


@pytest.fixture(scope="module")
def folder(clfew, images, tmp_path_factory):
    """A folder of 72 parts, 8 of them defects, with an encoder."""
    folder = tmp_path_factory.mktemp("shares")
    images(folder / "parts", classes=("good",), each=64)
    images(folder / "parts", classes=("none", "defect"), each=8)
    shutil.rmtree(folder / "parts/none")
    clfew.ok("pretrain", "parts", *TINY, cwd=folder)
    return folder


def kept(folder, run):
    """The shares that a run's result and artifact keep."""
    result = json.loads((folder / run / "result.json").read_text())
    return result["draws"][0].get("shares")


def said(result):
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("shares ")]
    return line.removeprefix("shares").strip()


@pytest.mark.parametrize("mode", rest_is_slow(["propagate", "linear", "full", "knn", "auto"], 2))
def test_given_shares_are_said_and_kept(clfew, folder, tmp_path, mode):
    run = tmp_path / mode
    done = clfew.ok(
        *("finetune", "--labels", "3/class", "--mode", mode, "--out", run),
        *("--shares", "defect=12.5%", "--epochs", "2"),
        cwd=folder,
    )
    assert said(done) == "good 88 %, defect 12 %, as given"
    row = kept(folder, run)
    assert row["classes"] == ["defect", "good"] and row["share"] == [0.125, 0.875]
    assert "as given" in clfew.ok("info", run, cwd=folder).stdout
    predicted = clfew.ok("predict", "parts", "--from", run, "--format", "jsonl", cwd=folder).rows()
    assert len(predicted) == 72


def test_labels_that_are_a_share_of_each_class_show_them(clfew, folder, tmp_path):
    done = clfew.ok("finetune", "--labels", "25%", "--out", tmp_path / "a", cwd=folder)
    assert said(done).startswith("good 8") and said(done).endswith("labels, a share of each class")
    done = clfew.ok(
        "finetune", "--labels", "25%", "--shares", "equal", "--out", tmp_path / "b", cwd=folder
    )
    assert said(done) == "equal, as asked for" and kept(folder, tmp_path / "b") is None


def test_a_list_of_random_labels_shows_them(clfew, folder, tmp_path):
    shutil.copytree(folder / "parts/good", tmp_path / "flat")
    command = ("finetune", tmp_path / "flat", "--labels", tmp_path / "labels.csv")
    rows = [f"{n:03d}.png,{'defect' if n < 3 else 'good'},random" for n in range(33)]
    (tmp_path / "labels.csv").write_text("path,label,how\n" + "\n".join(rows) + "\n")
    done = clfew.ok(*command, "--out", tmp_path / "run", cwd=folder)
    assert said(done).endswith("from 33 images labelled at random")
    # Chosen images say nothing.
    (tmp_path / "labels.csv").write_text(
        "path,label,how\n" + "\n".join(row.replace(",random", ",chosen (herding)") for row in rows)
    )
    done = clfew.ok(
        *(
            "finetune",
            tmp_path / "flat",
            "--labels",
            tmp_path / "labels.csv",
            "--out",
            tmp_path / "next",
        ),
        cwd=folder,
    )
    assert "at random" not in said(done)


@pytest.mark.parametrize(
    ("shares", "words", "code"),
    [
        ("good=95,defekt=5", "names the class 'defekt', which there is not", 1),
        ("good=95,defect=95", "add up to 190 per cent", 1),
        ("good=95,defect=x", "no number above 0", 2),
        ("eqal", "cannot be understood", 2),
        ("shares.csv", "There is no file shares.csv", 1),
    ],
)
def test_a_mistake_is_said_and_nothing_is_made(clfew, folder, shares, words, code):
    command = ("finetune", "--labels", "3/class", "--shares", shares, "--out", "mistaken")
    assert words in clfew.refused(*command, cwd=folder, rc=code)


@pytest.mark.slow
def test_a_run_goes_on_with_the_shares_that_it_began_with(clfew, folder, tmp_path):
    (tmp_path / "shares.csv").write_text("class,share\ngood,80\ndefect,20\n")
    command = ("finetune", "--labels", "3/class", "--mode", "full", "--epochs", "4", "--batch", "4")
    command += ("--shares", tmp_path / "shares.csv")
    clfew.ok(*command, "--out", tmp_path / "whole", cwd=folder)
    for run, before in (("same", False), ("before", True)):
        faults = save_every(1) + signal_at(2, signal.SIGTERM)
        assert clfew(*command, "--out", tmp_path / run, cwd=folder, faults=faults).rc == 143
        config = tmp_path / run / "config.json"
        if before:  # Runs knew nothing of shares, and took them to be equal.
            old = json.loads(config.read_text())
            del old["shares"], old["arguments"]["shares"]
            config.write_text(json.dumps(old))
    (tmp_path / "shares.csv").write_text("class,share\ngood,50\ndefect,50\n")
    for run, wanted in (("same", kept(folder, tmp_path / "whole")), ("before", None)):
        clfew.ok("finetune", "--resume", tmp_path / run, cwd=folder)
        assert kept(folder, tmp_path / run) == wanted


@pytest.mark.slow
def test_the_student_of_a_classifier_expects_its_shares(clfew, folder, tmp_path):
    clfew.ok(
        *("finetune", "--labels", "3/class", "--mode", "propagate", "--shares", "defect=11%"),
        *("--out", tmp_path / "teacher"),
        cwd=folder,
    )
    clfew.ok(
        "distill", "--from", tmp_path / "teacher", "--epochs", "1", "--out", tmp_path / "b", cwd=folder
    )
