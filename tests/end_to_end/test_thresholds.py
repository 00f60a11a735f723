"""Classes of unequal size on the command line: what stands beside the result, what may be accepted, and
thresholds of a class."""

import csv
import io
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from commands import TINY
from marks import rest_is_slow

from clfew.models.artifacts import read_evidence
from clfew.runs.checksum import add_checksum


@pytest.fixture(scope="module")
def folder(clfew, images, tmp_path_factory):
    """A folder of 360 parts, 40 of them defects, with an encoder and a classifier of random labels."""
    folder = tmp_path_factory.mktemp("parts")
    images(folder / "parts", classes=("good",), each=320)
    images(folder / "parts", classes=("none", "defect"), each=40)
    shutil.rmtree(folder / "parts/none")
    clfew.ok("pretrain", "parts", *TINY, cwd=folder)
    done = clfew.ok("finetune", "--labels", "60/random", cwd=folder)
    (folder / "said.txt").write_text(done.stdout + done.stderr)
    return folder


def test_the_result_stands_beside_what_one_would_think_of_first(folder):
    said = (folder / "said.txt").read_text()
    for name in ("clfew", "always good", "logistic regression", "class-weighted"):
        assert f"\n {name} " in said
    assert "metric     macro-f1, as classes have unequal shares" in said
    assert "expected of 288 images, from 60 images labelled at random: about good " in said
    result = json.loads((folder / "runs/finetune-1/result.json").read_text())
    rows = {row["name"]: row for row in result["baselines"]}
    assert rows["always the largest class"]["class"] == "good"
    assert rows["always the largest class"]["accuracy"] == pytest.approx(64 / 72)
    assert rows["always the largest class"]["balanced_accuracy"] == pytest.approx(0.5)
    assert result["means"]["accuracy"] == result["mean"]
    counts = {row["class"]: row for row in result["expected_counts"]["classes"]}
    assert counts["defect"]["low"] <= 32 <= counts["defect"]["high"]
    # These images are told apart by their hue.
    assert result["means"]["macro_f1"] > 0.9


def test_the_report_shows_them_too(clfew, folder, tmp_path):
    run = tmp_path / "eval"
    assert "\n always good " in clfew.ok("eval", "--out", run, cwd=folder).stdout
    report = json.loads((run / "report.json").read_text())
    result = json.loads((folder / "runs/finetune-1/result.json").read_text())
    assert report["baselines"] == result["draws"][0]["baselines"]
    assert report["macro_f1"] == pytest.approx(result["means"]["macro_f1"])
    page = (run / "report.html").read_text()
    for words in ("always good", "logistic regression", "class-weighted", "macro F1"):
        assert f">{words}<" in page
    assert "finetune.baselines" not in page
    # Other images than those of then have no such numbers.
    shutil.copytree(folder / "parts", tmp_path / "copied/parts")
    for file in sorted((tmp_path / "copied/parts/good").iterdir())[:100]:
        file.unlink()
    other = clfew.ok(
        *("eval", tmp_path / "copied/parts", "--from", "runs/finetune-1", "--out", tmp_path / "c"),
        *("--format", "json"),
        cwd=folder,
    )
    assert json.loads(other.stdout)["baselines"] == []


@pytest.mark.parametrize("repeat", [2])
def test_several_samples_are_averaged(clfew, folder, tmp_path, repeat):
    run = tmp_path / "run"
    command = ("finetune", "--labels", "10%", "--repeat", repeat, "--out", run)
    done = clfew.ok(*command, "--metric", "ap:defect", "--mode", "auto", cwd=folder)
    assert "average precision" in done.stdout and "metric     ap:defect, as asked for" in done.stderr
    result = json.loads((run / "result.json").read_text())
    for place, row in enumerate(result["baselines"]):
        of_draws = [draw["baselines"][place]["average_precision"] for draw in result["draws"]]
        assert row["average_precision"] == pytest.approx(np.mean(of_draws))
    assert all(draw["metric"] == "ap:defect" for draw in result["draws"])


@pytest.mark.parametrize("mode", rest_is_slow(["weighted", "propagate", "linear", "knn", "full"], 2))
@pytest.mark.parametrize("metric", rest_is_slow(["macro-f1", "balanced"]))
def test_every_mode_is_fitted_for_a_metric(clfew, folder, tmp_path, mode, metric):
    command = ("finetune", "--labels", "20/random", "--mode", mode, "--metric", metric, "--epochs", "3")
    clfew.ok(*command, "--out", tmp_path / "run", cwd=folder)
    rows = clfew.ok(
        "predict", "parts", "--from", tmp_path / "run", "--format", "jsonl", cwd=folder
    ).rows()
    assert len(rows) == 360 and {row["label"] for row in rows} <= {"good", "defect"}
    assert clfew.ok("info", tmp_path / "run", cwd=folder).stdout.count(mode) >= 1


def test_accepted_images_are_those_of_which_it_is_surer(clfew, folder):
    command = ("predict", "parts", "--format", "jsonl", "--accept")
    done = clfew.ok(*command, "0.9", cwd=folder)
    rows = done.rows()
    assert done.stderr.startswith("accept     ") and "right at least 90 %" in done.stderr
    by = {
        decision: [row["probability"] for row in rows if row["decision"] == decision]
        for decision in ("accept", "review")
    }
    assert by["accept"] and len(by["accept"]) + len(by["review"]) == 360
    assert min(by["accept"]) > max(by["review"], default=0)
    again = clfew.ok(*command, "90%", cwd=folder)
    assert again.rows() == rows
    # 72 test images, of which some are alike, cannot show 99 %.
    strict = clfew.ok(*command, "0.99", cwd=folder)
    assert {row["decision"] for row in strict.rows()} == {"review"}
    assert "299 test images are needed to show that, and there are 64" in strict.stderr


def test_the_column_is_there_only_where_it_is_asked_for(clfew, folder, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = ["parts/good/000.png", tmp_path / "broken.png"]

    def table(*options):
        done = clfew("predict", *images, "--format", "csv", *options, cwd=folder)
        assert done.rc == 1  # One of the images cannot be read.
        return list(csv.DictReader(io.StringIO(done.stdout)))

    assert list(table()[0]) == ["path", "label", "probability", "top", "error"]
    rows = table("--accept", "0.9")
    assert list(rows[0]) == ["path", "label", "probability", "top", "decision", "error"]
    assert rows[0]["decision"] == "accept" and rows[1]["decision"] == "review"
    assert clfew.ok("predict", images[0], "--accept", "0.9", cwd=folder).stdout.endswith("   accept\n")


def test_thresholds_trade_precision_for_recall(clfew, folder):
    def called(*options):
        done = clfew.ok("predict", "parts", "--format", "jsonl", *options, cwd=folder)
        return done.stderr, {row["path"] for row in done.rows() if row["label"] == "defect"}, done.rows()

    _, usual, _ = called()
    said, few, rows = called("--min-precision", "defect=0.99")
    assert "threshold  defect from a probability of" in said and "labels that were held out" in said
    said, many, _ = called("--min-recall", "defect=99%")
    assert few <= many and few <= usual | many
    for row in rows:
        names = [name for name, _ in row["top"]]
        assert row["label"] == names[0] and sorted(names) == ["defect", "good"]
    _, both, _ = called("--min-recall", "defect=0.9", "--min-precision", "good=0.9")
    assert both


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        (("--accept", "2%%"), "not between 0 and 1", 2),
        (("--accept", "most"), "not between 0 and 1", 2),
        (("--accept", "0.9", "--min-recall", "defect=0.9"), "leave out --min-precision", 2),
        (("--min-recall", "0.9"), "names no class", 2),
        (("--min-recall", "defekt=0.9"), "did you mean defect", 1),
        (("--min-recall", "defect=.9", "--min-precision", "defect=.9"), "both name the class", 2),
    ],
)
def test_a_mistake_is_named_before_anything_is_predicted(clfew, folder, options, words, code):
    assert words in clfew.refused("predict", "parts/good", *options, cwd=folder, rc=code)


def test_a_classifier_without_evidence_promises_nothing(clfew, folder, tmp_path):
    """One label in some class: nothing can be held out. A version that kept nothing. A damaged file."""
    clfew.ok("finetune", "--labels", "1/class", "--out", tmp_path / "few", cwd=folder)
    hint = "fine-tune with two labels or more"
    refused = clfew.refused(
        "predict", "parts/good", "--from", tmp_path / "few", "--min-recall", "defect=.9", cwd=folder
    )
    assert hint in refused
    file = folder / "runs/finetune-1/classifier.safetensors"
    tensors = safetensors.numpy.load_file(file)
    with safetensors.safe_open(file, "numpy") as opened:
        metadata = {"clfew": opened.metadata()["clfew"]}
    old = {name: each for name, each in tensors.items() if not name.startswith("evidence.")}
    cut = {n: v[:-1] if n == "evidence.labels.classes" else v for n, v in tensors.items()}
    for name, content in (("old", old), ("cut", cut)):
        (tmp_path / f"{name}.safetensors").write_bytes(
            add_checksum(safetensors.numpy.save(content, metadata))
        )
    done = clfew.ok(
        *("predict", "parts/good/000.png", "--from", tmp_path / "old.safetensors", "--accept", "0.9"),
        cwd=folder,
    )
    assert "no images may be accepted unseen" in done.stderr and done.stdout.endswith("review\n")
    damaged = ("predict", "parts/good", "--from", tmp_path / "cut.safetensors", "--accept", "0.9")
    assert "its evidence is damaged" in clfew.refused(*damaged, cwd=folder)
    assert set(read_evidence(tmp_path / "old.safetensors")) == set()


@pytest.mark.slow
def test_a_student_has_evidence_of_its_own(clfew, folder, tmp_path):
    clfew.ok("distill", "--epochs", "1", "--keep", "--out", tmp_path / "student", cwd=folder)
    found = read_evidence(tmp_path / "student/classifier.safetensors")
    assert found["test.right"].shape == (64,) and found["labels.probabilities"].shape == (60, 2)
    of_teacher = read_evidence(folder / "runs/finetune-1/classifier.safetensors")
    assert not np.array_equal(found["test.confidence"], of_teacher["test.confidence"])
    options = ("--from", tmp_path / "student", "--min-recall", "defect=0.9", "--format", "jsonl")
    assert clfew.ok("predict", "parts/good", *options, cwd=folder).rows()
