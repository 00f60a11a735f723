"""Images that belong together are on one side of the test split and of folds, in every command."""

import csv
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from clfew.data.workers import content_digest

TRAIN = "--encoder resnet8-w8 --epochs 1 --init scratch --size 16"
BURSTS, FRAMES = 16, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory, clfew):
    """Bursts of frames, with labels drawn by lot for each burst: there is nothing to learn."""
    folder, random = tmp_path_factory.mktemp("bursts"), np.random.default_rng(0)
    classes = random.permutation(["a", "b"] * (BURSTS // 2))
    for burst in range(BURSTS):
        scene = Image.fromarray(random.integers(0, 256, (6, 6, 3)).astype(np.uint8)).resize((60, 60))
        for frame in range(FRAMES):
            moved = np.asarray(scene.crop((frame // 3, frame // 4, frame // 3 + 48, frame // 4 + 48)))
            noisy = (moved + random.normal(0, 3, moved.shape)).clip(0, 255).astype(np.uint8)
            for root in ("plain", "named"):
                (folder / root / classes[burst]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy).save(
                folder / f"plain/{classes[burst]}/IMG_{burst * FRAMES + frame:04}.png"
            )
            # Unrelated pictures, which only their names keep together.
            other = random.integers(0, 256, (24, 24, 3)).astype(np.uint8)
            Image.fromarray(other).save(folder / f"named/{classes[burst]}/{burst}_{frame}.png")
    return folder


def run(clfew, folder, words):
    return clfew.ok(*words.split(), cwd=folder)


def digests_in(artifact, step):
    return set(safetensors.numpy.load_file(artifact)[f"seen.{step}"].view("u8").tolist())


def bursts_of(folder, digests, burst_of):
    """Returns the bursts of the files with such digests."""
    return {
        burst_of(file) for file in folder.rglob("*.png") if content_digest(file.read_bytes()) in digests
    }


def by_number(file):
    return int(file.stem.split("_")[1]) // FRAMES


def by_name(file):
    return int(file.stem.split("_")[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "option", "burst_of"),
    [("plain", "", by_number), ("named", "--group-by ([0-9]+)_[0-9]+", by_name)],
)
def test_every_command_keeps_groups_together(clfew, folder, data, option, burst_of):
    found = run(clfew, folder, f"pretrain {data} {TRAIN} {option} --out {data}-p")
    learned = bursts_of(
        folder / data, digests_in(folder / f"{data}-p/encoder.safetensors", "pretraining"), burst_of
    )
    assert 0.6 * BURSTS < len(learned) < BURSTS
    assert ("16 groups by" in found.stderr) == bool(option)
    # finetune knows by what the run grouped; a fifth of the bursts is held out.
    found = run(
        clfew,
        folder,
        f"finetune {data} --labels 50% --mode linear --from {data}-p --out {data}-f --format json",
    )
    assert "160 images in 16 groups stay on one side of every split" in found.stderr
    result = json.loads(found.stdout)
    taught = bursts_of(
        folder / data, digests_in(folder / f"{data}-f/classifier.safetensors", "finetuning"), burst_of
    )
    assert taught == learned  # Half of their frames.
    assert result["test_images"] == FRAMES * (BURSTS - len(learned))
    low, high = result["ci95"]
    assert high - low > 0.5  # Of a few bursts, not of so many images.
    report = json.loads(run(clfew, folder, f"eval --from {data}-f --format json").stdout)
    assert report["seen_in_finetuning"] == report["seen_in_pretraining"] == 0
    assert report["n"] == result["test_images"] and report["ci95"] == pytest.approx(result["ci95"])
    run(clfew, folder, f"distill --from {data}-f --epochs 1 --keep --out {data}-d")
    seen = digests_in(folder / f"{data}-d/classifier.safetensors", "pretraining")
    assert bursts_of(folder / data, seen, burst_of) == learned


def test_from_scratch_the_same_images_are_held_out(clfew, folder, tmp_path):
    """Otherwise the two results could not be compared."""
    data = folder / "named"
    words = f"finetune {data} --labels 4/class --mode full --epochs 1"
    run(clfew, tmp_path, f"pretrain {data} {TRAIN} --group-by ([0-9]+)_[0-9]+")
    run(clfew, tmp_path, f"{words} --out tuned")
    run(clfew, tmp_path, f"{words} --from scratch --out scratch")
    config = json.loads((tmp_path / "scratch/config.json").read_text())
    assert config["group_by"] == "([0-9]+)_[0-9]+"
    labels = [(tmp_path / name / "labels.csv").read_bytes() for name in ("tuned", "scratch")]
    assert labels[0] == labels[1]
    run(clfew, tmp_path, f"{words} --from scratch --group-by (.*)_[0-9]+ --out other")


def test_cross_validation_holds_out_whole_groups(clfew, folder):
    """Otherwise it would predict the labels that were drawn by lot."""
    run(clfew, folder, f"pretrain plain {TRAIN} --out for-cv")
    words = "finetune plain --labels all --from for-cv --mode auto --out cv --format json"
    result = json.loads(run(clfew, folder, words).stdout)
    scores = result["draws"][0]["cross_validation"]
    assert max(scores.values()) < 0.85


def test_a_group_column(clfew, folder):
    rows = [
        (f"named/{file.parent.name}/{file.name}", file.parent.name, by_name(file))
        for file in (folder / "named").rglob("*.png")
    ]
    with open(folder / "list.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "group"), *rows])
    found = run(
        clfew,
        folder,
        "finetune list.csv --labels all --from scratch --mode full --encoder resnet8-w8 --epochs 1 "
        "--size 16",
    )
    assert "16 groups from the list" in found.stderr and "160 images in 16 groups" in found.stderr


def test_one_file_in_two_classes(clfew, folder):
    shutil.copytree(folder / "named", folder / "twice", dirs_exist_ok=True)
    first = next((folder / "twice/a").iterdir())
    shutil.copy(first, folder / "twice/b/other.png")
    found = run(
        clfew,
        folder,
        "finetune twice --labels 4/class --mode full --from scratch --encoder resnet8-w8 --epochs 1 "
        "--size 16 --out two",
    )
    assert f"a/{first.name} and b/other.png" in found.stderr and "two labels" in found.stderr
    with open(folder / "two/contradictions.csv", newline="") as file:
        assert {row["path"] for row in csv.DictReader(file)} == {f"a/{first.name}", "b/other.png"}


@pytest.mark.parametrize(
    ("option", "rc", "said"),
    [
        ("--group-by 9", 1, "finds a group for none"),
        ("--group-by (", 2, "is no regular expression"),
        ("--group-by abc", 2, "has 0 groups in brackets"),
        ("--group-by 0", 2, "counted from 1"),
    ],
)
def test_mistakes_are_one_sentence(clfew, folder, option, rc, said):
    found = clfew("pretrain", "named", *option.split(), *TRAIN.split(), cwd=folder)
    assert found.rc == rc and said in found.stderr and "hint: " in found.stderr


@pytest.mark.parametrize(
    "command",
    [
        f"pretrain named {TRAIN}",
        "finetune named --labels 4/class --mode full --from scratch --encoder resnet8-w8 --epochs 1",
        f"compare named --methods simclr --labels 4/class {TRAIN.replace('--init scratch', '')}",
    ],
)
def test_groups_of_whole_classes_are_refused(clfew, folder, command):
    message = clfew.refused(*command.split(), "--group-by", "1", cwd=folder)
    assert "With --group-by 1 no image of" in message and "hint: group by what differs" in message


def test_whole_classes_may_be_groups_where_nothing_is_held_out(clfew, folder):
    run(clfew, folder, f"pretrain named {TRAIN} --group-by 1 --transductive")
    files = [str(file.relative_to(folder / "named")) for file in (folder / "named").rglob("*.png")]
    with open(folder / "all.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *((name, name[0]) for name in files)])
    words = "finetune named --labels all.csv --from scratch --mode full --encoder resnet8-w8 --epochs 1"
    run(clfew, folder, f"{words} --size 16 --group-by 1")
