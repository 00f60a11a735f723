"""`pretrain --init both` and `finetune --from A --from B`, as a user types them."""

import importlib
import json
import shutil

import pytest
from marks import rest_is_slow

from clfew.runs.folders import with_beside
from clfew.settings import PretrainSettings

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
# The choice is made for the images of these tests, on which it could fall otherwise.
SIDE_BY_SIDE = (
    "from clfew.finetuning import label_samples\n"
    "best_of = label_samples.best_of\n"
    "label_samples.best_of = lambda *given: ('side by side', *best_of(*given)[1:])"
)
pretrain_command = importlib.import_module("clfew.commands.pretrain")
BOTH = ("pretrain", "photos", "--init", "both", "--size", "32", "--epochs", "1")
BOTH_NAMED = ("--from", "runs/pretrain-1", "--from", "runs/pretrain-1-scratch")


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


@pytest.fixture(scope="module")
def made_side_by_side(made, tmp_path_factory, clfew):
    """The same folder after `finetune` has put both encoders side by side."""
    folder = tmp_path_factory.mktemp("side-by-side") / "project"
    shutil.copytree(made[0], folder)
    clfew.ok("finetune", "--labels", "4/class", *BOTH_NAMED, cwd=folder, faults=SIDE_BY_SIDE)
    return folder


@pytest.fixture
def side_by_side(made_side_by_side, tmp_path):
    shutil.copytree(made_side_by_side, tmp_path / "side-by-side")
    return tmp_path / "side-by-side"


def config_of(run):
    return json.loads((run / "config.json").read_text())


def test_two_runs_are_made_to_choose_from(made):
    folder, result = made
    first, second = (config_of(folder / "runs" / n) for n in ("pretrain-1", "pretrain-1-scratch"))
    assert first["encoder"] == "torchvision:resnet18" and second["init"] == "scratch"
    assert first["split_seed"] == second["split_seed"]
    assert result.next == ["clfew finetune --labels 1%"]


def test_time_is_shared_and_epochs_are_not(monkeypatch, tmp_path):
    """Without a budget each run has half of the default minutes, and the default epochs at most."""
    made = []

    def pretrain_in(settings, recorded, default_minutes):
        made.append((settings.init, settings.epochs, settings.minutes, default_minutes))
        return tmp_path / "run", None

    monkeypatch.setattr(pretrain_command, "pretrain_in", pretrain_in)
    monkeypatch.setattr(pretrain_command, "_say_next", lambda folder, source: None)
    for budget in ({"minutes": 3.0}, {}, {"epochs": 7.0}):
        pretrain_command.run(PretrainSettings("x", init="both", **budget))
    assert made == [
        (init, epochs, minutes, 5.0)
        for epochs, minutes in ((None, 1.5), (None, None), (7.0, None))
        for init in ("imagenet", "scratch")
    ]


def test_the_epochs_of_two_runs_are_those_of_two_runs(made):
    """Of one run, they are for both."""
    for name in ("pretrain-1", "pretrain-1/encoder.safetensors"):
        settings = PretrainSettings("x", init="both", epochs=str(made[0] / "runs" / name))
        assert pretrain_command._second_epochs(settings) == str(made[0] / "runs/pretrain-1-scratch")
    alone = PretrainSettings("x", init="both", epochs=str(made[0] / "runs/pretrain-1-scratch"))
    assert pretrain_command._second_epochs(alone) == alone.epochs


@pytest.mark.parametrize(
    ("options", "rc"),
    [(("--epochs", "nowhere"), 1), (("--out", "."), 1), (("--out", ".."), 1)],
)
def test_what_the_second_run_cannot_have_is_said_before_the_first(project, clfew, options, rc):
    clfew.refused("pretrain", "photos", "--init", "both", *options, cwd=project, rc=rc)
    assert len(list((project / "runs").iterdir())) == 2


def test_a_run_may_be_named_by_a_dot(project, clfew):
    for run in ("pretrain-1", "pretrain-1-scratch"):
        said = clfew.refused("pretrain", "--resume", ".", cwd=project / "runs" / run)
        assert "finished" in said
    assert with_beside(project / "runs/pretrain-1-scratch/encoder.safetensors")[0].parent.name == (
        "pretrain-1"
    )


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


@pytest.mark.parametrize("mode", rest_is_slow(["linear", "knn", "propagate"]))
def test_starts_are_compared_in_the_mode_that_was_asked_for(project, clfew, mode):
    words = ("finetune", "--labels", "3/class", "--mode", mode, *BOTH_NAMED, "--repeat", "2")
    result = json.loads(clfew.ok(*words, "--format", "json", cwd=project).stdout)
    assert {row["mode"] for row in result["draws"]} == {mode}
    assert all("side by side" in row["reason"] for row in result["draws"])


@pytest.mark.slow
def test_what_was_made_side_by_side_works_in_every_command(side_by_side, clfew):
    chosen = json.loads(
        clfew.ok(
            "info", "runs/finetune-1/classifier.safetensors", "--format", "json", cwd=side_by_side
        ).stdout
    )
    assert len(chosen["parts"]) == 2
    assert (
        "side by side"
        in clfew.ok("info", "runs/finetune-1/classifier.safetensors", cwd=side_by_side).stdout
    )
    report = json.loads(clfew.ok("eval", "--format", "json", cwd=side_by_side).stdout)
    again = ("predict", "photos/ring/000.png", "photos/cross/000.png", "--format", "json")
    assert clfew.ok(*again, cwd=side_by_side).stdout == clfew.ok(*again, cwd=side_by_side).stdout
    clfew.ok("embed", "photos", "--from", "runs/finetune-1", cwd=side_by_side)
    clfew.ok("finetune", "--from", "runs/finetune-1", "--labels", "4/class", cwd=side_by_side)
    clfew.ok("distill", "--from", "runs/finetune-1", "--epochs", "1", cwd=side_by_side)
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


def test_what_has_learned_from_other_images_holds_nothing_out_of_these(project, clfew, images):
    """Two encoders of ./unlabeled, with other seeds: neither knows a test image of ./photos."""
    images(project / "unlabeled", ("",), each=40, seed=3)
    for seed in ("1", "2"):
        words = ("--init", "scratch", "--encoder", "resnet8-w8", "--epochs", "1", "--seed", seed)
        clfew.ok("pretrain", "unlabeled", *words, "--out", f"runs/seed{seed}", cwd=project)
    named = ("--from", "runs/seed1", "--from", "runs/seed2")
    words = ("finetune", "photos", "--labels", "2/class", "--mode", "propagate", *named)
    done = clfew.ok(*words, "--format", "json", cwd=project)
    assert "runs/seed1" in json.loads(done.stdout)["draws"][0]["reason"]
    other = clfew.ok(*words[:-4], *named[2:], *named[:2], "--format", "json", cwd=project)
    result = json.loads(other.stdout)
    assert result["mean"] == json.loads(done.stdout)["mean"]


@pytest.mark.slow
def test_a_network_that_was_trained_from_one_side_by_side_can_be_distilled(side_by_side, clfew):
    whole = ("finetune", "--labels", "4/class", "--from", "runs/finetune-1", "--mode", "full")
    clfew.ok(*whole, cwd=side_by_side)
    assert config_of(side_by_side / "runs/finetune-2")["from"].endswith("classifier.safetensors")
    done = clfew.ok("distill", "--from", "runs/finetune-2", "--epochs", "1", cwd=side_by_side)
    assert "held-out labels decide" in done.stderr
    said = clfew.refused("distill", "--init", "scratch", "--from", "runs/finetune-1", cwd=side_by_side)
    assert "several networks side by side" in said


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


@pytest.mark.slow
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


@pytest.mark.slow
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
