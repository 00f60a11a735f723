"""`clfew embed`, `clfew info` and `clfew cache`."""

import csv
import json
import re

import numpy as np
import pytest
import safetensors.numpy


def features(folder):
    return safetensors.numpy.load_file(folder / "features.safetensors")["features"]


def paths(folder, name="paths.csv"):
    with open(folder / name, newline="", encoding="utf-8") as file:
        return [row["path"] for row in csv.DictReader(file)]


def test_embed_writes_a_row_of_features_for_each_path(clfew, project):
    originals = {p: p.read_bytes() for p in (project / "unlabeled").rglob("*.png")}
    made = clfew.ok("embed", "unlabeled", cwd=project)
    run = project / "runs/embed-1"
    matrix, names = features(run), paths(run)
    metadata = json.loads(clfew.ok("info", "runs/pretrain-1", "--format", "json", cwd=project).stdout)
    assert matrix.dtype == np.float32 and matrix.shape == (60, metadata["dim"])
    assert names == sorted(str(p.relative_to(project / "unlabeled")) for p in originals)
    assert "60 × " in made.stdout and np.isfinite(matrix).all()
    assert all(p.read_bytes() == content for p, content in originals.items())
    # Row and path belong together: one image embedded alone has the features it had among others.
    (project / "alone").mkdir()
    (project / "alone/x.png").write_bytes((project / "unlabeled/ring/007.png").read_bytes())
    clfew.ok("embed", "alone", "--out", "one", cwd=project)
    assert features(project / "one")[0] == pytest.approx(matrix[names.index("ring/007.png")], abs=1e-5)
    # A classifier made of frozen features has the same encoder.
    clfew.ok("embed", "alone", "--from", "runs/finetune-1", "--out", "two", cwd=project)
    assert (features(project / "two") == features(project / "one")).all()


def test_embed_leaves_out_what_cannot_be_read(clfew, project, images):
    images(project / "mixed", classes=[""], each=5)
    (project / "mixed/002.png").write_bytes(b"broken")
    result = clfew.ok("embed", "mixed", "--out", "features", cwd=project)
    assert "1 image" in result.stderr and "5 × " not in result.stdout
    run = project / "features"
    assert paths(run) == ["000.png", "001.png", "003.png", "004.png"] and len(features(run)) == 4
    assert paths(run, "bad_images.csv") == ["002.png"]
    for file in (project / "mixed").iterdir():
        file.write_bytes(b"broken")
    assert "None of the 5 images" in clfew.refused("embed", "mixed", "--out", "none", cwd=project)


def test_embed_before_any_pretraining_names_it(clfew, images, tmp_path):
    images(tmp_path / "images", classes=[""], each=2)
    # Without --encoder, it would use the weights that clfew[lite] installs.
    message = clfew.refused("embed", "images", "--encoder", "resnet18", cwd=tmp_path)
    assert "clfew pretrain" in message and "--init imagenet" in message


def test_info_describes_files_and_runs_alike(clfew, project):
    for run, name, kind in (
        ("runs/pretrain-1", "encoder.safetensors", "encoder"),
        ("runs/finetune-1", "classifier.safetensors", "classifier"),
    ):
        of_run = json.loads(clfew.ok("info", run, "--format", "json", cwd=project).stdout)
        of_file = json.loads(clfew.ok("info", f"{run}/{name}", "--format", "json", cwd=project).stdout)
        assert of_file.items() <= of_run.items()
        assert (of_file["kind"], of_file["encoder"], of_file["size"]) == (kind, "resnet8-w8", 16)
        assert of_file["bytes"] == (project / run / name).stat().st_size
        table = clfew.ok("info", run, cwd=project).stdout
        assert kind in table and "resnet8-w8" in table
    assert of_file["classes"] == ["cross", "ring", "stripe"] and of_file["mode"] == "linear"
    assert of_file["training"]["finetune"]["labels"] == "50%"
    # The metadata has the command that made it.
    assert of_file["training"]["pretrain"]["command"].startswith("clfew pretrain ./unlabeled")


def test_cache_lists_and_clears_the_image_caches(clfew, images, tmp_path):
    env = {"CLFEW_CACHE": str(tmp_path / "cache")}
    images(tmp_path / "unlabeled", classes=[""], each=20)
    options = ("pretrain", "unlabeled", "--encoder", "resnet8-w8", "--epochs", "1")
    clfew.ok(*options, cwd=tmp_path, env=env)
    before = clfew.ok("cache", cwd=tmp_path, env=env | {"COLUMNS": "200"}).stdout
    assert str(tmp_path / "unlabeled") in before and "20" in before and "16 px" in before
    # The same images use the same cache again, at a later minute perhaps; changed ones a second one.
    clfew.ok(*options, cwd=tmp_path, env=env)
    after = clfew.ok("cache", cwd=tmp_path, env=env | {"COLUMNS": "200"}).stdout
    assert re.search(r"\d\d:\d\d", before)
    assert re.sub(r"[\d-]+ \d\d:\d\d", "", after) == re.sub(r"[\d-]+ \d\d:\d\d", "", before)
    images(tmp_path / "unlabeled", classes=[""], each=24)
    clfew.ok(*options, cwd=tmp_path, env=env)
    assert len(list((tmp_path / "cache").glob("*/store.json"))) == 2
    assert "removed 2 image caches" in clfew.ok("cache", "--clear", cwd=tmp_path, env=env).stdout
    assert list((tmp_path / "cache").iterdir()) == []
    assert "removed 0 image caches" in clfew.ok("cache", "--clear", cwd=tmp_path, env=env).stdout
