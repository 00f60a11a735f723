"""The same images with new times, or at another place, are the same images."""

import json
import os
import shutil
import time

import pytest

TRAIN = "--encoder resnet8-w8 --epochs 1 --init scratch --size 16"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clfew, images):
    folder = tmp_path_factory.mktemp("moved")
    images(folder / "data", ("cross", "ring"), each=15)
    run(clfew, folder, f"pretrain data {TRAIN} --out pretrained")
    run(clfew, folder, "finetune data --labels 4/class --mode linear --from pretrained --out tuned")
    return folder


def run(clfew, folder, words):
    return clfew.ok(*words.split(), cwd=folder)


def copied(folder, name):
    """Copies the images without their times."""
    place = folder / name
    if not place.exists():
        for file in sorted((folder / "data").rglob("*.png"), reverse=True):
            target = place / file.relative_to(folder / "data")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            os.utime(target, (time.time() + 1000, time.time() + 1000))
    return name


def unfinished(folder, name, artifact):
    """Copies a run as it is before its artifact is written."""
    shutil.copytree(folder / name, folder / f"{name}-again", dirs_exist_ok=True)
    (folder / f"{name}-again" / artifact).unlink()
    return f"{name}-again"


def caches(folder):
    return {file.stat().st_ino for file in (folder / "cache").glob("*/pixels.safetensors")}


@pytest.mark.parametrize("place", ["", "elsewhere"])
def test_a_run_is_resumed(clfew, folder, place):
    first = (folder / "pretrained/encoder.safetensors").read_bytes()
    again = unfinished(folder, "pretrained", "encoder.safetensors")
    if place:
        copied(folder, place)
    else:
        for file in (folder / "data").rglob("*.png"):
            os.utime(file, (time.time() + 5000, time.time() + 5000))
    found = run(clfew, folder, f"pretrain --resume {again} {place}")
    assert "the same, elsewhere or with other times" in found.stderr
    found = (folder / again / "encoder.safetensors").read_bytes()
    assert found[-2000:-200] == first[-2000:-200]  # The weights; metadata name the place.
    again = unfinished(folder, "tuned", "classifier.safetensors")
    found = run(clfew, folder, f"finetune --resume {again} {place} --format json")
    assert json.loads(found.stdout)["test_images"] == 6


@pytest.mark.parametrize("change", ["bytes", "name", "removed", "class"])
def test_other_images_are_refused(clfew, folder, change):
    name = copied(folder, f"other-{change}")
    file = next((folder / name / "ring").iterdir())
    if change == "bytes":
        file.write_bytes(file.read_bytes() + b"\0")
    elif change == "name":
        file.rename(file.with_name("other.png"))
    elif change == "removed":
        file.unlink()
    else:
        file.rename(folder / name / "cross" / "other.png")
    again = unfinished(folder, "pretrained", "encoder.safetensors")
    found = clfew("pretrain", "--resume", again, name, cwd=folder)
    assert found.rc == 1 and "have changed" in found.stderr and "hint: " in found.stderr


def test_eval_knows_what_was_held_out_of_the_same_images(clfew, folder):
    report = json.loads(run(clfew, folder, "eval data --from tuned --format json").stdout)
    found = run(clfew, folder, f"eval {copied(folder, 'cloned')} --from tuned --format json")
    moved = json.loads(found.stdout)
    assert "elsewhere" in found.stderr
    assert moved["n"] == report["n"] == 6 and moved["accuracy"] == report["accuracy"]
    assert moved["split"] == report["split"] == "20 % of each class, held out from training"
    assert moved["seen_in_finetuning"] == moved["seen_in_pretraining"] == 0


def test_eval_of_more_images_says_what_was_learned_from(clfew, folder, images):
    name = copied(folder, "more")
    images(folder / name, ("ring",), each=20, seed=5)
    report = json.loads(run(clfew, folder, f"eval {name} --from tuned --format json").stdout)
    assert report["seen_in_finetuning"] > 0
    assert report["split"].endswith(f"{report['seen_in_finetuning']} of which were learned from")


def test_a_cache_of_the_same_images_is_used_again(clfew, folder, tmp_path):
    environment = {"CLFEW_CACHE": str(tmp_path / "cache")}
    words = f"pretrain {{}} {TRAIN} --out {{}}"
    clfew.ok(*words.format("data", "one").split(), cwd=folder, env=environment)
    first = caches(tmp_path)
    assert len(first) == 1
    clfew.ok(*words.format(copied(folder, "third"), "two").split(), cwd=folder, env=environment)
    assert caches(tmp_path) == first and len(list((tmp_path / "cache").glob("*/store.json"))) == 2
    name = copied(folder, "fourth")
    file = next((folder / name / "ring").iterdir())
    shutil.copyfile(next((folder / name / "cross").iterdir()), file)
    clfew.ok(*words.format(name, "three").split(), cwd=folder, env=environment)
    assert len(caches(tmp_path)) == 2
