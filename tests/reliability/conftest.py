"""Fixtures for tests of interrupted runs and of artifacts: uninterrupted runs and intact files."""

import pytest
from faults import COUNT_STEPS
from made_artifacts import save_classifier_at, save_encoder_at

from clfew.models.artifacts import load_classifier, load_encoder


@pytest.fixture(scope="module")
def folder(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    images(folder / "unlabeled", classes=[""], each=40)
    images(folder / "labeled", each=16)
    return folder


@pytest.fixture(scope="module")
def whole(clfew, folder):
    """whole(name, *arguments) returns the run of the command, uninterrupted."""

    def run(name, *arguments):
        out = folder / f"whole-{name}"
        if not out.exists():
            stderr = clfew.ok(*arguments, "--out", out.name, cwd=folder, faults=COUNT_STEPS).stderr
            (folder / f"{out.name}.stderr").write_text(stderr)
        return out

    return run


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    path = save_classifier_at(tmp_path_factory.mktemp("artifact") / "classifier.safetensors")
    load_classifier(path)  # The first load takes memory that is not due to the file.
    return path


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory):
    path = save_encoder_at(tmp_path_factory.mktemp("encoder") / "encoder.safetensors")
    load_encoder(path)
    return path
