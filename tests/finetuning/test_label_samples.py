"""Which of several starts is taken for a label sample."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn

from clfew.finetuning import label_samples, probes
from clfew.finetuning.fit import FullSettings, Task
from clfew.finetuning.label_propagation import mean_entropy, neighbour_graph
from clfew.finetuning.label_samples import SampleFitting, choose, names_of
from clfew.finetuning.start import Start
from clfew.models.metadata import ArtifactMetadata
from clfew.runs.folders import START

CPU = torch.device("cpu")
METADATA = ArtifactMetadata(
    kind="encoder", encoder="resnet8-w8", size=16, side=16, mean=[0.5] * 3, std=[0.25] * 3, dim=16,
    method="simclr", flip=True, clfew_version="0.1.0",
)  # fmt: skip
LABELS = np.arange(120) % 4


@pytest.fixture(autouse=True)
def few_strengths(monkeypatch):
    """One C for each scaling: cross-validation is to tell good features from bad ones, not C from C."""
    monkeypatch.setattr(probes, "STRENGTHS", {"standardised": (0.1,), "unit": (10.0,)})


def features_of(separation, seed=0):
    """Features of four classes whose centres are so far from each other."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(4, 16))
    return (separation * centres[LABELS] + random.normal(size=(120, 16))).astype(np.float32)


def candidate(run, separation, seed=0, file="encoder.safetensors", is_published=False):
    artifact = None if run is None else Path(f"runs/{run}/{file}")
    start = Start(
        nn.Linear(1, 1), nn.Sequential(), True, True, METADATA, is_published, artifact=artifact
    )
    features = features_of(separation, seed)
    nothing = np.zeros((120, 1, 1, 3), np.uint8), np.ones(120, np.float32)
    return start, Task(*nothing, np.arange(120), LABELS, 4, features, CPU, "fp32")


def chosen_of(candidates, labels, mode="auto"):
    fitting = SampleFitting(candidates, None, np.array([]), mode, 0, FullSettings(), None)
    start, task, decision = choose(fitting, np.arange(4 * labels), 0)
    assert any(start is each and task is its_task for each, its_task in candidates)
    return decision


@pytest.mark.slow
@pytest.mark.parametrize("labels", [1, 2, 5])
@pytest.mark.parametrize("order", [1, -1])
def test_it_is_the_one_on_whose_features_labels_spread_most_decidedly(labels, order):
    starts = [candidate("good", 2.0), candidate("bad", 0.3), candidate(None, 1.0)][::order]
    decision = chosen_of(starts, labels)
    assert decision.start == "runs/good" and decision.as_row()["start"] == "runs/good"
    assert all(name in decision.reason for name in ("runs/good", "runs/bad", "side by side"))
    assert ("cross-validated: runs/good" in decision.reason) == (labels > 1)


def test_another_one_is_taken_if_it_clearly_wins_in_cross_validation(monkeypatch):
    """As if the entropy were that of the wrong one."""
    starts = [candidate("good", 2.0), candidate("bad", 0.3)]
    wrong = {id(starts[0][1].graph): 0.6, id(starts[1][1].graph): 0.4}
    monkeypatch.setattr(label_samples, "mean_entropy", lambda graph, *rest: wrong[id(graph)])
    assert chosen_of(starts, 1).start == "runs/bad"
    assert chosen_of(starts, 8).start == "runs/good"


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("fraction", "chosen"), [(0.79, "runs/decided"), (0.81, "runs/published")])
def test_published_weights_come_first_where_labels_spread_undecidedly(
    monkeypatch, order, fraction, chosen
):
    """One label per class: nothing else can be compared. Side by side contains published weights too."""
    published = candidate("published", 1.0, is_published=True)
    both, task = candidate(None, 1.0, is_published=True)
    both = replace(both, metadata=replace(METADATA, parts=[{}, {}])), task
    starts = [candidate("decided", 1.0), both, published][::order]
    given = {id(starts[::order][n][1].graph): f for n, f in enumerate((fraction, 0.82, 0.9))}
    monkeypatch.setattr(label_samples, "mean_entropy", lambda graph, *rest: given[id(graph)] * np.log(4))
    decision = chosen_of(starts, 1)
    assert decision.start == chosen
    assert ("too undecided" in decision.reason) == (chosen == "runs/published")


def test_without_published_weights_the_smallest_entropy_remains(monkeypatch):
    starts = [candidate("a", 1.0), candidate("b", 1.0)]
    given = {id(starts[0][1].graph): 1.37, id(starts[1][1].graph): 1.36}
    monkeypatch.setattr(label_samples, "mean_entropy", lambda graph, *rest: given[id(graph)])
    assert chosen_of(starts, 1).start == "runs/b"


def test_a_mode_that_was_asked_for_is_compared_too():
    starts = [candidate("bad", 0.3), candidate("good", 2.0)]
    decision = chosen_of(starts, 5, "linear")
    assert (decision.start, decision.mode) == ("runs/good", "linear")


def test_where_nothing_is_unlabelled_they_are_compared_in_their_order():
    starts = [candidate("good", 2.0), candidate("bad", 0.3)]
    decision = chosen_of(starts, 30, "linear")
    assert decision.start == "runs/good" and "entropy" not in decision.reason


def test_what_pretraining_started_from_is_no_choice_that_was_named():
    starts = [candidate("a", 1.0), candidate("a", 1.0, file=START)]
    decision = chosen_of(starts, 4)
    assert decision.start == "" and "the pretrained encoder" in decision.reason


def test_names_tell_files_of_one_folder_apart():
    files = [candidate("a", 1.0)[0], candidate("a", 1.0, file="other.safetensors")[0]]
    assert names_of(files) == ["runs/a/encoder.safetensors", "runs/a/other.safetensors"]
    assert names_of([files[0], candidate("b", 1.0)[0]]) == ["runs/a", "runs/b"]


def test_no_two_starts_have_one_name(monkeypatch, tmp_path):
    """However their files are written; and the weights of another run are not those from before."""
    monkeypatch.chdir(tmp_path)
    file = candidate("a", 1.0)[0]
    absolute = replace(file, artifact=tmp_path / "runs/a" / START)
    names = names_of([candidate(None, 1.0)[0], file, absolute])
    assert len(set(names)) == 3
    assert names_of([candidate("b", 1.0)[0], absolute]) == ["runs/b", "runs/a"]


def test_an_image_that_no_label_reaches_is_as_undecided_as_can_be():
    """Else the features whose graph falls apart would be the most decided ones."""
    edges = np.zeros((6, 6))
    edges[[0, 2, 1, 3], [2, 0, 3, 1]] = 1  # Images 4 and 5 have no neighbours.
    labels = np.array([0, 1])
    assert mean_entropy(sparse.csr_matrix(edges), labels, labels, 5) == pytest.approx(np.log(2) / 2)


def test_chance_is_that_of_the_classes_that_have_a_label():
    starts = [candidate("good", 2.0), candidate("bad", 0.3)]
    fitting = SampleFitting(starts, None, np.array([]), "auto", 0, FullSettings(), None)
    _, _, decision = choose(fitting, np.array([0, 1, 4, 5]), 0)  # Of the first two of four classes.
    assert f"by chance {np.log(2):.2f}" in decision.reason


def test_the_entropy_is_that_of_images_without_a_label():
    features = features_of(3.0)
    graph = neighbour_graph(features)
    rows = np.arange(4)
    assert 0 <= mean_entropy(graph, rows, LABELS[rows], 4) < 0.2
    undecided = mean_entropy(neighbour_graph(features_of(0.0)), rows, LABELS[rows], 4)
    assert 1 < undecided < np.log(4)
    every = np.arange(120)
    assert mean_entropy(graph, every, LABELS, 4) == 0.0
