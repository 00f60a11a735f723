"""`clfew export` on the command line: one file that answers the same, or none."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from commands import TINY, paint
from marks import rest_is_slow
from PIL import Image

import clfew as api
from clfew.exporting import parity
from clfew.exporting.to_onnx import can_export

pytest.importorskip("onnxruntime", reason="needs the extra clfew[onnx]")
pytestmark = pytest.mark.skipif(not can_export(), reason="needs torch 2.9 or later")

FEW = "from clfew.exporting import parity; parity.IMAGES, parity.BATCHES = 16, {3: 3, 8: 8}\n"
KNOWN = (
    FEW
    + """
import onnx
from clfew.exporting import to_onnx
to_onnx.onnx_model = lambda *_: onnx.load(NETWORK)
"""
)
"""Run before a command, this leaves out the translation of the network, which the fixture has done."""

MODES = ("linear", "weighted", "knn", "propagate", "full", "distilled")


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(parity, "IMAGES", 16)
    monkeypatch.setattr(parity, "BATCHES", {3: 3, 8: 8})


@pytest.fixture(scope="module")
def folder(clfew, tmp_path_factory):
    """A folder of images with an encoder and a classifier of each precision."""
    folder = tmp_path_factory.mktemp("export")
    paint(folder / "images", each=40)
    for precision in ("fp32", "bf16"):
        options = ("--precision", precision, "--out", f"encoder-{precision}", "--init", "scratch")
        clfew.ok("pretrain", "images", *TINY, *options, cwd=folder)
    finetune(clfew, folder, "linear", "fp32", "runs/finetune-1")
    clfew.ok("export", "--out", "network.onnx", cwd=folder, faults=FEW)
    (folder / "folder.onnx").mkdir()
    (folder / "labels.csv").write_text("path,label\n")
    return folder


def finetune(clfew, folder, mode, precision, out):
    if mode == "distilled":
        teacher = finetune(clfew, folder, "linear", precision, f"teacher-{precision}")
        options = ("--epochs", 1, "--keep", "--precision", precision, "--out", out)
        clfew.ok("distill", "--from", teacher, *options, cwd=folder)
    else:
        options = ("--labels", "6/class", "--mode", mode, "--precision", precision, "--out", out)
        clfew.ok("finetune", "images", "--from", f"encoder-{precision}", *options, cwd=folder)
    return out


def known(folder):
    return KNOWN.replace("NETWORK", repr(str(folder / "network.onnx")))


def export(clfew, folder, *options):
    return clfew.ok("export", *options, cwd=folder, faults=known(folder))


def metadata_of(path):
    import onnx

    return {each.key: json.loads(each.value) for each in onnx.load(path).metadata_props}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mode", rest_is_slow(MODES, 0))
def test_each_mode_in_each_precision(clfew, folder, tmp_path, monkeypatch, mode, precision):
    monkeypatch.chdir(folder)
    run = f"{mode}-{precision}"
    finetune(clfew, folder, mode, precision, run)
    result = api.export(origin=run)
    assert result["parity"]["difference"] < 1e-4 and result["parity"]["same_class"] == 1
    assert (folder / run / "classifier.onnx").stat().st_size == result["bytes"]


def test_one_file_a_program_and_what_is_kept(clfew, folder, tmp_path):
    run = folder / "runs/finetune-1"
    (run / "export.json").unlink(missing_ok=True)  # Of the fixture.
    before = {path.name for path in run.iterdir()}
    done = export(clfew, folder)
    assert {path.name for path in run.iterdir()} - before == {
        "classifier.onnx",
        "export.json",
        "predict_onnx.py",
    }
    kept = json.loads((run / "export.json").read_text())[str(run / "classifier.onnx")]
    assert kept["words"] in done.stdout
    assert kept["parity"]["of"] == "of images" and kept["parity"]["images"] == 16
    found = metadata_of(run / "classifier.onnx")
    assert found["classes"] == ["cross", "ring", "stripe"] and found["clfew"] == api.__version__
    assert found["parity"] == kept["parity"]
    assert [row["accuracy"] for row in found["may_be_accepted"]] == [0.9, 0.95, 0.99]
    card = (run / "README.md").read_text()
    assert "python predict_onnx.py classifier.onnx image.jpg" in card
    assert kept["words"] in card
    assert str(folder) not in card and str(folder) not in json.dumps(found)  # They may be published.
    # Once more is no mistake; somebody else's file is.
    export(clfew, folder)
    (folder / "mine.onnx").write_bytes(b"mine")
    said = clfew.refused("export", "--out", "mine.onnx", cwd=folder)
    assert "mine.onnx exists already, and it is no export of this classifier." in said


def test_the_program_gives_predicts_csv(clfew, folder, tmp_path):
    run = folder / "runs/finetune-1"
    odd(tmp_path / "odd")
    for options in ((), ("--accept", "0.9"), ("--min-recall", "ring=0.9")):
        out = tmp_path / "-".join(["out", *options]) / "made.onnx"
        export(clfew, folder, "--out", out, *options)
        plain = ("predict", tmp_path / "odd", "--from", run, "--precision", "fp32")
        _, theirs, _ = clfew.in_bytes(*plain, "--format", "csv", *options, cwd=folder)
        program = out.with_name("predict_onnx.py")
        ours = subprocess.run(
            [sys.executable, program, out, tmp_path / "odd"], capture_output=True, check=True
        )
        assert ours.stderr == b""
        same_rows(ours.stdout.decode(), theirs.decode())


def same_rows(ours, theirs):
    ours, theirs = (list(csv.DictReader(io.StringIO(text))) for text in (ours, theirs))
    assert [list(row) for row in ours] == [list(row) for row in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("path", "label", "decision"):
            assert mine.get(name) == other.get(name), other["path"]
        assert bool(mine["error"]) == bool(other["error"]), other["path"]
        if not mine["error"]:
            tops = [json.loads(row["top"]) for row in (mine, other)]
            assert [name for name, _ in tops[0]] == [name for name, _ in tops[1]]
            np.testing.assert_allclose(
                [p for _, p in tops[0]], [p for _, p in tops[1]], rtol=0, atol=1e-4
            )


def odd(folder):
    """Writes images of many kinds."""
    (folder / "below").mkdir(parents=True)
    random = np.random.default_rng(0)
    spots = random.integers(0, 256, (30, 40, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    image = Image.fromarray(spots)
    image.save(folder / "large.jpg")
    image.save(folder / "=name.png")
    image.save(folder / 'with, ";.bmp')
    image.convert("L").save(folder / "grey.png")
    image.convert("1").save(folder / "black.png")
    image.convert("CMYK").save(folder / "print.jpg")
    image.convert("P").save(folder / "palette.png", transparency=3)
    clear = image.convert("RGBA")
    clear.putalpha(Image.fromarray(random.integers(0, 256, (480, 640), dtype=np.uint8)))
    clear.save(folder / "clear.png")
    clear.convert("LA").save(folder / "grey_and_clear.png")
    turned = Image.Exif()
    turned[274] = 6
    image.save(folder / "turned.jpg", exif=turned)
    Image.fromarray(random.integers(0, 65536, (30, 20), dtype=np.uint16)).save(folder / "deep.png")
    image.resize((5000, 10)).save(folder / "below/line.png")
    image.resize((8, 8)).save(folder / "below/tiny.webp")
    image.save(folder / "below/moving.gif")
    (folder / "broken.jpg").write_bytes((folder / "large.jpg").read_bytes()[:2000])
    (folder / "empty.png").touch()
    Image.fromarray(random.random((20, 30), dtype=np.float32)).save(folder / "float.tif")
    image.save(folder / ".hidden.png")
    os.rename(folder / "grey.png", os.fsencode(folder) + b"/gr\xe4y.png")  # Not UTF-8.
    (folder / "notes.txt").write_text("none")


def test_the_program_is_short_and_needs_three_packages():
    import ast
    from importlib.resources import files

    text = files("clfew.exporting").joinpath("program/predict_onnx.py").read_text()
    assert len(text.splitlines()) <= 40
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "PIL"}


def test_a_model_that_answers_differently_leaves_no_file(clfew, folder):
    wrong = """
from clfew.exporting import runtime
real = runtime.Session.probabilities
runtime.Session.probabilities = lambda self, pixels: real(self, pixels) + .01 * (len(pixels) > 1)
"""
    copy = folder / "copy"
    shutil.copytree(folder / "runs/finetune-1", copy, dirs_exist_ok=True)
    for name in ("classifier.onnx", "export.json", "predict_onnx.py"):
        (copy / name).unlink(missing_ok=True)
    said = clfew.refused("export", "--from", "copy", cwd=folder, faults=known(folder) + wrong)
    assert "does not answer as the classifier: probabilities of the same pixels differ by" in said
    assert "No file was written." in said


@pytest.mark.parametrize(
    "typed, says",
    [
        (("--out", "model"), "--out model does not name an ONNX file"),
        (("--out", "images"), "--out images does not name an ONNX file"),
        (("--out", "folder.onnx"), "folder.onnx exists already"),
        (("--out", "no/such/made.onnx"), "made.onnx cannot be written: there is no such folder."),
        (("--out", "labels.csv/made.onnx"), "made.onnx cannot be written: "),
        (("--from", "network.onnx"), "network.onnx is not a whole safetensors file"),
        (("--from", "encoder-fp32"), "is an encoder, not a classifier"),
        (("--from", "runs/finetune-9"), "runs/finetune-9"),
        (("nowhere",), "There is no folder or file nowhere"),
        (("--accept", "1.5x"), "--accept"),
        (("--min-recall", "rign=0.9"), "rign"),
        (("--int8", "--accept", "0.9"), "Thresholds come from the classifier's own probabilities"),
    ],
)
def test_mistakes_are_one_sentence(clfew, folder, typed, says):
    rc = 2 if says.startswith(("--", "Thresholds")) else 1
    assert says in clfew.refused("export", *typed, cwd=folder, faults=known(folder), rc=rc)


def test_without_the_extra_it_says_what_to_install(clfew, folder):
    gone = "import sys; sys.modules['onnxruntime'] = None\n"
    said = clfew.refused("export", cwd=folder, faults=gone)
    assert "the package onnxruntime, which is not installed" in said
    assert "pip install 'clfew[onnx]'" in said


def test_without_its_images_it_is_tried_on_generated_ones(clfew, folder):
    (folder / "images").rename(folder / "elsewhere")
    try:
        done = clfew.ok(
            *("export", "--format", "json", "--out", "made.onnx"), cwd=folder, faults=known(folder)
        )
    finally:
        (folder / "elsewhere").rename(folder / "images")
    result = json.loads(done.stdout)
    assert result["parity"]["of"] == "generated"
    assert "images: it is tried on generated images" in done.stderr
    assert result["file"] == "made.onnx" and (folder / "made.onnx").exists()
    # Named, they are found again.
    again = export(clfew, folder, "images", "--out", "made.onnx")
    assert "(of images)" in again.stdout


def test_a_card_that_somebody_has_changed_stays(clfew, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder / "runs/finetune-1", copy)
    card = copy / "README.md"
    card.write_text(card.read_text().replace("# ", "# Mine: ", 1))
    (copy / "predict_onnx.py").write_text("print('mine')\n")
    before = card.read_text()
    done = export(clfew, folder, "--from", copy, "--out", copy / "other.onnx")
    assert card.read_text() == before and (copy / "predict_onnx.py").read_text() == "print('mine')\n"
    assert "README.md is not as clfew wrote it: it stays as it is" in done.stderr
    assert "predict_onnx.py is not what clfew writes: it stays as it is" in done.stderr


def test_the_program_in_a_folder_or_unreadable_is_left_alone(clfew, folder, tmp_path):
    (tmp_path / "predict_onnx.py").mkdir()
    done = export(clfew, folder, "--out", tmp_path / "made.onnx")
    assert "predict_onnx.py is not what clfew writes" in done.stderr
    assert (tmp_path / "predict_onnx.py").is_dir() and (tmp_path / "made.onnx").exists()


def test_another_artifact_in_a_run_does_not_change_the_runs_card(clfew, folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder / "runs/finetune-1", copy)
    (copy / "export.json").unlink(missing_ok=True)
    shutil.copy(copy / "classifier.safetensors", copy / "other.safetensors")
    before = (copy / "README.md").read_bytes()
    export(clfew, folder, "--from", copy / "other.safetensors", "--out", copy / "other.onnx")
    assert (copy / "README.md").read_bytes() == before and not (copy / "export.json").exists()


def test_what_a_kill_has_left_is_removed(clfew, folder, tmp_path):
    leftover = tmp_path / ".made.onnx.abc.unfinished"
    leftover.write_bytes(b"half")
    other = tmp_path / ".other.onnx.abc.unfinished"
    other.write_bytes(b"half")
    export(clfew, folder, "--out", tmp_path / "made.onnx")
    assert not leftover.exists() and other.exists()


def test_a_runtime_that_cannot_run_it_is_one_sentence(clfew, folder):
    broken = """
import onnxruntime
def fails(*_, **__):
    raise onnxruntime.capi.onnxruntime_pybind11_state.Fail("Unsupported\\nIR version")
onnxruntime.InferenceSession = fails
"""
    said = clfew.refused("export", "--out", "new.onnx", cwd=folder, faults=known(folder) + broken)
    assert "ONNX Runtime cannot run the model (Unsupported IR version)." in said


def test_a_file_on_its_own_is_exported_beside_itself(clfew, folder, tmp_path):
    shutil.copy(folder / "runs/finetune-1/classifier.safetensors", tmp_path / "mine.safetensors")
    export(clfew, folder, "--from", tmp_path / "mine.safetensors")
    assert sorted(os.listdir(tmp_path)) == ["classifier.onnx", "mine.safetensors", "predict_onnx.py"]


@pytest.mark.slow
def test_a_smaller_file_is_kept_or_said_why_not(clfew, folder, tmp_path):
    for faster in (True, False):
        seconds = "((2.0, 2.0), (1.0, 1.0))" if faster else "((1.0, 1.0), (2.0, 1.0))"
        timed = f"\nfrom clfew.commands import exporting; exporting._timed = lambda *_: {seconds}\n"
        out = tmp_path / f"{faster}.onnx"
        done = clfew.ok("export", "--int8", "--out", out, cwd=folder, faults=known(folder) + timed)
        assert (tmp_path / f"{faster}.int8.onnx").exists() == faster
        assert ("8 bits: kept: " if faster else "8 bits: no file: ") in done.stdout
        assert metadata_of(out)["classes"] == ["cross", "ring", "stripe"]
        if faster:
            found = metadata_of(out.with_suffix(".int8.onnx"))
            assert found["classes"] == ["cross", "ring", "stripe"]
            # Its figures are its own.
            assert found["parity"]["accuracy_int8"] <= 1 and found["may_be_accepted"] == []
    # What is not worth having any more goes, and without --int8 it is said that one is there.
    first = tmp_path / "True.onnx"
    assert "True.int8.onnx is of an earlier export" in export(clfew, folder, "--out", first).stderr
    clfew.ok("export", "--int8", "--out", first, cwd=folder, faults=known(folder) + timed)
    assert first.exists() and not first.with_suffix(".int8.onnx").exists()
