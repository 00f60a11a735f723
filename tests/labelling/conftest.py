"""Fixtures of the commands that label: a project, and a running `clfew label` in it."""

import shutil

import pytest
from label_clients import Served


@pytest.fixture
def project(start, tmp_path):
    """A copy of the folder that a test file's own fixture `start` makes."""
    shutil.copytree(start, tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def serve(clfew, project):
    """serve("photos") serves the project; what still runs at the end of a test is killed."""
    running = []

    def begin(*options, **more):
        running.append(Served(clfew, project, *options, **more))
        return running[-1]

    yield begin
    for each in running:
        if each.result is None:
            each.kill()
