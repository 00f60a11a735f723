"""`pretrain --init both` and `finetune --from A --from B`, as a user types them."""

import json
import shutil

import pytest
from marks import rest_is_slow

# Stands for pretrained weights that are on the machine: a network with random ones.
WEIGHTS = """
import torch
from clfew.models import pretrained
torch.manual_seed(0)
pretrained.is_here = lambda name: name == "resnet18"
pretrained.fetch = lambda name, encoder: {
    key: value.clone() for key, value in encoder.backbone.state_dict().items()
}
"""
NO_WEIGHTS = "from clfew.models import pretrained\npretrained.is_here = lambda name: False"
BOTH = ("pretrain", "photos", "--init", "both", "--size", "32", "--epochs", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory, clfew, images):
    """A folder after `pretrain --init both`."""
    folder = tmp_path_factory.mktemp("both")
    images(folder / "photos")
    return folder, clfew.ok(*BOTH, cwd=folder, faults=WEIGHTS)


@pytest.fixture
def project(made, tmp_path):
    shutil.copytree(made[0], tmp_path / "project")
    return tmp_path / "project"


def config_of(run):
    return json.loads((run / "config.json").read_text())


def test_two_runs_are_made_to_choose_from(made):
    folder, result = made
    first, second = (config_of(folder / "runs" / n) for n in ("pretrain-1", "pretrain-1-scratch"))
    assert first["encoder"] == "torchvision:resnet18" and second["init"] == "scratch"
    assert first["split_seed"] == second["split_seed"]
    assert result.next == ["clfew finetune --labels 1%"]


def test_time_is_shared_and_epochs_are_not():
    from clfew.commands.pretrain import _half
    from clfew.settings import PretrainSettings

    assert _half(PretrainSettings("x", minutes=3.0)).minutes == 1.5
    assert _half(PretrainSettings("x")).minutes == 5.0
    assert _half(PretrainSettings("x", epochs=7.0)).minutes is None


def test_finetune_takes_both_and_says_what_it_chose(project, clfew):
    done = clfew.ok("finetune", "--labels", "4/class", "--format", "json", cwd=project)
    row = json.loads(done.stdout)["draws"][0]
    choices = ("side by side", "runs/pretrain-1", "runs/pretrain-1-scratch")
    assert row["start"] in choices
    assert all(name in row["reason"] for name in choices)
    assert len(config_of(project / "runs/finetune-1")["chosen_from"]) == 3
    assert clfew.ok("eval", cwd=project).rc == 0
    one = clfew.ok("predict", "photos/ring/000.png", "--format", "json", cwd=project)
    assert json.loads(one.stdout)


def test_a_start_that_is_named_is_taken_alone(project, clfew):
    named = ("--from", "runs/pretrain-1-scratch")
    done = clfew.ok("finetune", "--labels", "2/class", *named, "--format", "json", cwd=project)
    assert "start" not in json.loads(done.stdout)["draws"][0]


def test_the_same_start_named_twice_is_one(project, clfew):
    same = ("--from", "runs/pretrain-1-scratch", "--from", "runs/pretrain-1-scratch/encoder.safetensors")
    done = clfew.ok("finetune", "--labels", "2/class", *same, "--format", "json", cwd=project)
    assert "start" not in json.loads(done.stdout)["draws"][0]


BOTH_NAMED = ("--from", "runs/pretrain-1", "--from", "runs/pretrain-1-scratch")


@pytest.mark.parametrize("mode", rest_is_slow(["linear", "knn", "propagate"]))
def test_starts_are_compared_in_the_mode_that_was_asked_for(project, clfew, mode):
    words = ("finetune", "--labels", "3/class", "--mode", mode, *BOTH_NAMED, "--repeat", "2")
    result = json.loads(clfew.ok(*words, "--format", "json", cwd=project).stdout)
    assert {row["mode"] for row in result["draws"]} == {mode}
    assert all("side by side" in row["reason"] for row in result["draws"])


def test_what_was_made_side_by_side_works_in_every_command(project, clfew):
    """The choice is made for it, as it could fall otherwise on such images."""
    first = (
        "from clfew.finetuning import label_samples\n"
        "best_of = label_samples.best_of\n"
        "label_samples.best_of = lambda *given: ('side by side', *best_of(*given)[1:])"
    )
    clfew.ok("finetune", "--labels", "4/class", *BOTH_NAMED, cwd=project, faults=first)
    chosen = json.loads(
        clfew.ok(
            "info", "runs/finetune-1/classifier.safetensors", "--format", "json", cwd=project
        ).stdout
    )
    assert len(chosen["parts"]) == 2
    assert (
        "side by side" in clfew.ok("info", "runs/finetune-1/classifier.safetensors", cwd=project).stdout
    )
    report = json.loads(clfew.ok("eval", "--format", "json", cwd=project).stdout)
    again = ("predict", "photos/ring/000.png", "photos/cross/000.png", "--format", "json")
    assert clfew.ok(*again, cwd=project).stdout == clfew.ok(*again, cwd=project).stdout
    clfew.ok("embed", "photos", "--from", "runs/finetune-1", cwd=project)
    clfew.ok("finetune", "--from", "runs/finetune-1", "--labels", "4/class", cwd=project)
    clfew.ok("distill", "--from", "runs/finetune-1", "--epochs", "1", cwd=project)
    assert report["n"] == 12


@pytest.mark.parametrize(
    ("words", "rc", "sentence"),
    [
        ((*BOTH_NAMED[:2], "--from", "runs/pretrain-7"), 1, "There is no run or file runs/pretrain-7"),
        ((*BOTH_NAMED[:2], "--from", "scratch"), 2, "scratch has no features to compare"),
        ((*BOTH_NAMED, "--init", "imagenet"), 2, "--init imagenet is not"),
        ((*BOTH_NAMED, "--stage", "2"), 2, "--stage reads the features of one network"),
        (("--stage", "2"), 2, "--stage reads the features of one network"),
        (("--init", "both"), 2, "which only pretrain does"),
    ],
)
def test_what_cannot_be_chosen_from_is_said(project, clfew, words, rc, sentence):
    assert sentence in clfew.refused("finetune", "--labels", "2/class", *words, cwd=project, rc=rc)


def test_starts_that_hold_out_different_images_are_refused(project, clfew):
    other = ("pretrain", "photos", "--init", "scratch", "--encoder", "resnet8-w8", "--epochs", "1")
    clfew.ok(*other, "--seed", "1", cwd=project)
    words = ("--from", "runs/pretrain-1-scratch", "--from", "runs/pretrain-2")
    said = clfew.refused("finetune", "--labels", "2/class", *words, cwd=project)
    assert "hold out different images" in said


def test_without_pretrained_weights_nothing_is_begun(tmp_path, clfew, images):
    images(tmp_path / "photos")
    said = clfew.refused(*BOTH, cwd=tmp_path, faults=NO_WEIGHTS)
    assert "pip install 'clfew[lite]'" in said and not (tmp_path / "runs").exists()
    taken = tmp_path / "mine-scratch"
    taken.mkdir()
    said = clfew.refused(*BOTH, "--out", "mine", cwd=tmp_path, faults=WEIGHTS)
    assert "mine-scratch exists already" in said and not (tmp_path / "mine").exists()


def test_a_named_folder_gets_a_neighbour_and_the_next_command_names_both(tmp_path, clfew, images):
    images(tmp_path / "photos")
    done = clfew.ok(*BOTH, "--out", "mine", cwd=tmp_path, faults=WEIGHTS)
    assert done.next == ["clfew finetune --labels 1% --from mine --from mine-scratch"]


STOP_FIRST = (
    WEIGHTS
    + """
from clfew.commands import pretraining
import os, signal
save = pretraining.save
def killed(run, *rest):
    if not run.folder.name.endswith("scratch"):
        save(run, *rest)
    os.kill(os.getpid(), signal.SIGKILL)
pretraining.save = killed
"""
)


def test_a_run_that_was_killed_is_resumed_with_the_one_beside_it(tmp_path, clfew, images):
    images(tmp_path / "photos")
    assert clfew(*BOTH, cwd=tmp_path, faults=STOP_FIRST).rc != 0
    first, second = tmp_path / "runs/pretrain-1", tmp_path / "runs/pretrain-1-scratch"
    assert (first / "encoder.safetensors").exists() and not second.exists()
    resumed = ("pretrain", "--resume", "runs/pretrain-1")
    assert clfew(*resumed, cwd=tmp_path, faults=STOP_FIRST).rc != 0  # Killed in the second one.
    assert second.exists() and not (second / "encoder.safetensors").exists()
    clfew.ok(*resumed, cwd=tmp_path, faults=WEIGHTS)
    assert (second / "encoder.safetensors").exists()
    assert "has finished" in clfew(*resumed, cwd=tmp_path).stderr
    both = clfew.ok("finetune", "--labels", "2/class", "--format", "json", cwd=tmp_path)
    assert "start" in json.loads(both.stdout)["draws"][0]


KILLED = """
import os, signal
from clfew.finetuning import label_samples
row = label_samples._row_of_sample
def killed(fitting, number, labelled):
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return row(fitting, number, labelled)
label_samples._row_of_sample = killed
"""


def test_a_choice_that_was_killed_is_resumed_to_the_same_result(project, clfew):
    words = ("finetune", "--labels", "3/class", "--mode", "linear", *BOTH_NAMED, "--repeat", "3")
    whole = json.loads(clfew.ok(*words, "--format", "json", cwd=project).stdout)
    assert clfew(*words, cwd=project, faults=KILLED).rc != 0
    resumed = ("finetune", "--resume", "runs/finetune-2", "--format", "json")
    other = (*BOTH_NAMED[2:], *BOTH_NAMED[:2])
    assert "cannot be changed on resume" in clfew(*resumed, *other, cwd=project).stderr
    again = json.loads(clfew.ok(*resumed, *BOTH_NAMED, cwd=project).stdout)
    assert again["draws"] == whole["draws"] and again["ci95"] == whole["ci95"]
    first, second = (project / f"runs/finetune-{n}/classifier.safetensors" for n in (1, 2))
    from clfew.models.artifacts import load_classifier

    states = [load_classifier(path)[0].state_dict() for path in (first, second)]
    assert all((states[0][name] == value).all() for name, value in states[1].items())
