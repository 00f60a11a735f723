"""`clfew eval`: numbers as JSON, a report page, and counts of test images that were used in training."""

import json
import shutil

import pytest

KEYS = {
    "accuracy", "ci95", "n", "balanced_accuracy", "ece", "per_class", "confusion", "classes",
    "seen_in_pretraining", "seen_in_finetuning",
}  # fmt: skip


def test_json_is_one_object_and_the_figures_agree(clfew, project):
    result = clfew.ok("eval", "--format", "json", cwd=project)
    report = json.loads(result.stdout)
    assert report.keys() >= KEYS
    assert report["classes"] == ["cross", "ring", "stripe"]
    correct = sum(report["confusion"][i][i] for i in range(3))
    assert report["n"] == sum(map(sum, report["confusion"])) == 12
    assert report["accuracy"] == pytest.approx(correct / 12)
    assert report["ci95"][0] <= report["accuracy"] <= report["ci95"][1]
    assert [row["n"] for row in report["per_class"]] == [4, 4, 4]
    assert 0 <= report["ece"] <= 1 and 0 <= report["balanced_accuracy"] <= 1
    run = project / "runs/eval-1"
    assert json.loads((run / "report.json").read_text()) == report
    page = (run / "report.html").read_text()
    # The page needs no network: nothing is fetched from elsewhere.
    assert "stripe" in page and 'src="http' not in page and "<script src" not in page
    assert "runs/eval-1/report.html" in result.stderr


def test_table_names_every_class_and_the_interval(clfew, project):
    result = clfew.ok("eval", "--out", "checked", cwd=project)
    assert all(name in result.stdout for name in ("cross", "ring", "stripe"))
    assert "95 % interval" in result.stdout and "12 images" in result.stdout
    assert "average precision" in result.stdout and "always naming cross: 33.3 %" in result.stdout
    why = "59 test images are needed to show that, and there are 12"
    assert f"no images may be accepted unseen as 95 % right: {why}" in result.stdout
    assert why in (project / "checked/report.html").read_text()
    assert (project / "checked/precision_recall.png").is_file()
    assert (project / "checked/report.html").is_file() and not (project / "runs/eval-1").exists()


def test_seen_images_are_counted_by_content(clfew, project):
    def report(*args):
        return json.loads(clfew.ok("eval", *args, "--format", "json", cwd=project).stdout)

    held_out = report()
    assert (held_out["seen_in_pretraining"], held_out["seen_in_finetuning"]) == (0, 0)
    # The same bytes under other names: recognised by content.
    for index, file in enumerate(sorted((project / "unlabeled").rglob("*.png"))):
        copy = project / "copies" / file.parent.name / f"copy-{index}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    copies = report("copies")
    assert copies["n"] == 60
    assert (copies["seen_in_pretraining"], copies["seen_in_finetuning"]) == (48, 24)
    assert copies["accepted"]["why"] == "labels of these images were learned from"
    table = clfew.ok("eval", "copies", cwd=project).stdout
    assert "48 of these images were seen in pretraining" in table
    assert "24 of these images were seen in finetuning" in table


@pytest.mark.slow
def test_transductive_pretraining_is_reported(clfew, project, tiny):
    clfew.ok("pretrain", "unlabeled", "--transductive", *tiny, cwd=project)
    clfew.ok("finetune", "--labels", "2/class", "--mode", "knn", cwd=project)
    report = json.loads(clfew.ok("eval", "--format", "json", cwd=project).stdout)
    assert (report["n"], report["seen_in_pretraining"], report["seen_in_finetuning"]) == (12, 12, 0)


def test_a_source_with_other_classes_or_none_is_refused(clfew, project, images):
    images(project / "others", classes=["ring", "square"], each=2)
    message = clfew.refused("eval", "others", cwd=project)
    assert "square" in message and "ring" in message
    images(project / "flat", classes=[""], each=2)
    assert "no labels" in clfew.refused("eval", "flat", cwd=project)


def test_a_source_may_lack_some_of_the_classes(clfew, project, images):
    images(project / "some", classes=["stripe", "cross"], each=3)
    report = json.loads(clfew.ok("eval", "some", "--format", "json", cwd=project).stdout)
    assert [row["n"] for row in report["per_class"]] == [3, 0, 3]
    assert report["per_class"][1]["recall"] is None


def test_a_run_can_still_be_tested_where_its_pretraining_run_is_gone(clfew, project):
    shutil.rmtree(project / "runs/pretrain-1")
    clfew.ok("eval", cwd=project)


def test_what_may_be_accepted_unseen(clfew, project, images):
    """Of easy images, all; of a sample that was chosen, none."""
    images(project / "many", each=25, seed=9)
    report = json.loads(clfew.ok("eval", "many", "--format", "json", cwd=project).stdout)
    accepted = report["accepted"]
    assert report["accuracy"] == 1 and (accepted["fraction"], accepted["threshold"]) == (1, 0)
    assert (accepted["right"], accepted["images"]) == (75, 75)
    said = "all images are right at least 95 % of the time, as 75 of 75 test images show"
    assert said in clfew.ok("eval", "many", cwd=project).stdout
    for how in ("chosen (herding)", "random"):
        rows = [f"{name}/{n:03d}.png,{name},train" for name in ("cross", "ring") for n in range(3)]
        rows += [f"{name}/{n:03d}.png,{name},test" for name in ("cross", "ring") for n in range(3, 25)]
        (project / "list.csv").write_text(
            "path,label,split,how\n" + "".join(f"{row},{how}\n" for row in rows)
        )
        out = f"listed-{how[:6]}"
        options = ("--labels", "list.csv", "--mode", "linear", "--out", out)
        clfew.ok("finetune", "many", *options, cwd=project)
        report = json.loads(clfew.ok("eval", "--from", out, "--format", "json", cwd=project).stdout)
        why = "the test images are not known to be drawn at random"
        few = "59 test images are needed to show that, and there are 44"
        assert report["accepted"]["why"] == (few if how == "random" else why)
