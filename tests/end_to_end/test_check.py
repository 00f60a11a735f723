"""`clfew check`: what it prints and writes, what it leaves alone, and what it refuses."""

import csv
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from commands import digest, paint
from PIL import Image

TRAIN = "--encoder resnet8-w8 --epochs 1 --init scratch --size 16 --out pretrained"


def picture(seed, size=48):
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clfew):
    """An untidy source and a tidy one, and a run that was pretrained on the first."""
    folder = tmp_path_factory.mktemp("check")
    for i in range(60):
        place = folder / f"photos/{'test' if i % 5 == 0 else 'train'}/{('ant', 'bee')[i % 2]}"
        place.mkdir(parents=True, exist_ok=True)
        picture(i).save(place / f"{i * 37 % 61}.png")
    train = folder / "photos/train"
    shutil.copy(train / "ant/13.png", train / "bee/again.png")
    picture(1).resize((40, 40)).save(folder / "photos/test/bee/small.jpg", quality=60)
    (train / "bee/broken.png").write_bytes((train / "ant/13.png").read_bytes()[:300])
    (train / "bee/raw.CR2").write_text("raw")
    (train / "Bee").mkdir()
    picture(99).save(train / "Bee/1.png")
    paint(folder / "tidy", each=6, size=24)
    clfew.ok(*f"pretrain photos {TRAIN}".split(), cwd=folder)
    return folder


@pytest.fixture
def here(folder, tmp_path):
    """The folder's content in a place of the test's own."""
    shutil.copytree(folder, tmp_path / "own", symlinks=True)
    return tmp_path / "own"


def found_in(result):
    return {row["name"]: row for row in json.loads(result.stdout)["findings"]}


def test_the_listing_is_looked_at_without_torch_and_without_a_trace(here):
    before = digest(here)
    code = (
        "import sys; from clfew.__main__ import main; sys.argv = ['clfew', 'check', 'photos']\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "looked at names and headers: 3 findings are yours to decide" in done.stdout
    assert "capitals alone" in done.stdout and ".cr2" in done.stdout and "small.jpg" not in done.stdout
    assert digest(here) == before


def test_all_images_are_looked_at_and_shown(clfew, here):
    before = digest(here / "photos")
    done = clfew.ok("check", "photos", "--full", "--format", "json", cwd=here)
    found, result = found_in(done), json.loads(done.stdout)
    assert found["contradictions"]["images"] == [["train/ant/13.png", "train/bee/again.png"]]
    assert found["unreadable"]["images"] == [["train/bee/broken.png"]]
    assert ["test/bee/small.jpg", "train/bee/37.png"] in found["across_splits"]["images"]
    assert {"class_names", "untested", "not_read"} <= set(found) and "no_image" not in found
    assert result["needs_person"] == sum(row["needs_person"] for row in found.values())
    assert result["looked_at"] == "pixels" and result["images"] == 64
    assert result["run"] == "runs/check-1" and "check.html" in done.stderr
    run = here / "runs/check-1"
    assert json.loads((run / "check.json").read_text()) == {
        k: v for k, v in result.items() if k != "run"
    }
    page = (run / "check.html").read_text()
    assert (
        page.count("<img ") == 4
        and "train/bee/again.png" in page
        and "http" not in page.split("</head>")[1]
    )
    assert digest(here / "photos") == before
    # What clfew has written there is no image of the user's, even inside the source.
    again = clfew.ok("check", ".", "--format", "json", cwd=here)
    assert json.loads(again.stdout)["images"] == 64 + 18


def test_a_tidy_source_has_no_findings(clfew, folder, tmp_path):
    done = clfew.ok("check", str(folder / "tidy"), "--strict", cwd=tmp_path)
    assert "nothing that you have to decide" in done.stdout and not (tmp_path / "runs").exists()
    done = clfew.ok("check", str(folder / "tidy"), "--out", "page", cwd=tmp_path)
    assert "Nothing was found" in (tmp_path / "page/check.html").read_text()


def test_strict_ends_with_1_where_a_person_is_needed(clfew, folder, tmp_path):
    result = clfew("check", str(folder / "photos"), "--strict", "--format", "json", cwd=tmp_path)
    assert result.rc == 1 and "3 of the findings" in result.stderr and "hint: " in result.stderr
    assert len(found_in(result)) == 3
    result = clfew("check", str(folder / "photos"), cwd=tmp_path)
    assert result.rc == 0


def test_the_list_without_the_problems_is_learned_from(clfew, here):
    before = digest(here / "photos")
    done = clfew.ok("check", "photos", "--fix", "mended.csv", cwd=here)
    assert digest(here / "photos") == before
    rows = list(csv.DictReader((here / "mended.csv").open()))
    names = {row["path"].split("photos/")[1]: row for row in rows}
    assert len(rows) == 64 - 1 - 1 - 1 and "train/bee/broken.png" not in names
    assert "train/bee/37.png" not in names and names["test/bee/small.jpg"]["split"] == "test"
    assert [row["label"] for row in rows].count("") == 1
    assert "the list holds 61 images; left out: images that cannot be read (1)" in done.stdout
    assert "left to you: names of classes that look like mistakes" in done.stdout
    assert done.next == ["clfew finetune mended.csv --labels all"]
    again = clfew.ok("check", "mended.csv", "--full", "--format", "json", cwd=here)
    assert set(found_in(again)) <= {"class_names", "untested", "single"}
    tuned = "finetune mended.csv --from scratch --labels 1/class --mode linear --encoder resnet8-w8"
    assert "accuracy" in clfew.ok(*tuned.split(), cwd=here).stdout


def test_an_encoder_s_features_are_looked_at(clfew, here):
    done = clfew.ok("check", "--from", "pretrained", "--format", "json", cwd=here)
    result = json.loads(done.stdout)
    assert result["looked_at"] == "features" and result["encoder"].endswith("encoder.safetensors")
    assert result["source"].endswith("photos") and "contradictions" in found_in(done)
    # All are of unlabelled images' kinds but these.
    shutil.copytree(here / "photos", here / "flat-photos")
    plain = here / "plain"
    plain.mkdir()
    for i, file in enumerate(sorted((here / "photos").rglob("*.png"))):
        shutil.copy(file, plain / f"{i}.png")
    bare = clfew.ok("check", "plain", "--from", "pretrained", "--format", "json", cwd=here)
    assert "suspicious_labels" not in found_in(bare) and "copies" in found_in(bare)


def test_pretraining_and_fine_tuning_say_it_in_one_line(clfew, here):
    done = clfew.ok(*f"pretrain photos {TRAIN.replace('pretrained', 'again')}".split(), cwd=here)
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("check ")]
    assert "images that cannot be read (1)" in line and "clfew check photos --full" in line
    assert "two labels" not in line  # Pretraining reads no label.
    words = "finetune photos --from again --labels 1/class --mode linear"
    done = clfew.ok(*words.split(), cwd=here)
    (line,) = [each for each in done.stderr.splitlines() if each.startswith("check ")]
    assert "files with two labels (2)" in line and "clfew check photos --full" in line
    done = clfew.ok(*words.replace("photos", "tidy").replace("again", "scratch").split(), cwd=here)
    assert "check      nothing was found" in done.stderr


def test_sources_of_every_kind_are_looked_at(clfew, here):
    (here / "list.csv").write_text(
        "path,label,group\n"
        + "".join(f"photos/train/ant/{i}.png,x{i % 2},g{i // 9}\n" for i in (13, 26, 39))
    )
    done = clfew.ok("check", "list.csv", "--full", "--format", "json", cwd=here)
    assert json.loads(done.stdout)["images"] == 3
    for name in ("photos/train/bee/raw.CR2", "photos/train/bee/broken.png"):
        (here / name).unlink()
    done = clfew.ok("check", "hf:./tidy", "--full", "--format", "json", cwd=here)
    assert json.loads(done.stdout)["images"] == 18
    result = clfew("check", "hf:./tidy", "--fix", "mended.csv", cwd=here)
    assert result.rc == 1 and "not files" in result.stderr and not (here / "mended.csv").exists()


@pytest.mark.parametrize(
    ("words", "rc", "said"),
    [
        ("check", 2, "No SOURCE"),
        ("check photoz", 1, "no folder or file photoz"),
        ("check empty", 1, "no images in"),
        ("check photos --fix there.csv", 1, "exists already"),
        ("check photos --fix none/there.csv", 1, "no folder none"),
        ("check photos --fix there.txt", 2, "is no CSV"),
        ("check photos --fix photos/list.csv", 1, "in which nothing is changed"),
        ("check photos --from nowhere", 1, "no run or file nowhere"),
        ("check photos --from a --init b", 2, "both name a start"),
        ("check photos --from scratch", 2, "random weights"),
        ("check photos --out photos", 1, "exists already"),
        ("check photos --group-by (", 2, "no regular expression"),
        ("check photos --ful", 2, "No such option"),
    ],
)
def test_mistakes_are_one_sentence_and_a_hint(clfew, folder, tmp_path, words, rc, said):
    (tmp_path / "photos").symlink_to(folder / "photos")
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.csv").write_text("mine")
    result = clfew(*words.split(), cwd=tmp_path)
    assert result.rc == rc and said in result.stderr and "Traceback" not in result.stderr
    assert (tmp_path / "there.csv").read_text() == "mine"
    assert not (tmp_path / "runs").exists()


def test_the_source_may_be_left_out_where_it_is_known(clfew, here):
    assert json.loads(clfew.ok("check", "--from", "pretrained", "--format", "json", cwd=here).stdout)
    (here / "photos").rename(here / "labeled")
    done = clfew.ok("check", "--format", "json", cwd=here)
    assert json.loads(done.stdout)["source"].endswith("labeled")


def test_hostile_names_do_no_harm(clfew, tmp_path):
    for i, name in enumerate(["<script>alert(1)</script>", "a\x1b[31mb", "=cmd", "[bold]x"]):
        place = tmp_path / "photos" / name.replace("/", "∕")
        place.mkdir(parents=True)
        for k in range(3):
            picture(10 * i + k).save(place / f"{name.replace('/', '∕')}{k}.png")
        shutil.copy(place / f"{name.replace('/', '∕')}0.png", tmp_path / "photos" / "loose.png")
    done = clfew.ok("check", "photos", "--full", "--fix", "mended.csv", cwd=tmp_path)
    page = (tmp_path / "runs/check-1/check.html").read_text()
    assert "<script" not in page and "\x1b" not in page and "\x1b[31mb" not in done.stdout
    again = clfew.ok("check", "mended.csv", "--format", "json", cwd=tmp_path)
    assert {row["class"] for row in json.loads(again.stdout)["classes"]} >= {"=cmd", "[bold]x"}
