"""Commands that compute nothing start fast: they do not import torch."""

import os
import subprocess
import sys

import pytest
import torch

from clfew.methods.simclr import projector
from clfew.models.artifacts import save_encoder
from clfew.models.encoder import Encoder
from clfew.models.metadata import ArtifactMetadata

HEAVY = ("torch", "torchvision", "sklearn", "scipy", "matplotlib", "datasets", "pandas")
PROGRAM = f"""
import sys
code = 0
try:
    from clfew.__main__ import main
    if sys.argv[1:]:
        main()
except SystemExit as error:
    code = error.code
print("IMPORTED", *[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def clfew(tmp_path):
    """clfew(*arguments) runs the command: its exit code, stdout, and the heavy modules it imported."""

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        word, *imported = done.stderr.splitlines()[-1].split()
        assert word == "IMPORTED", done.stderr
        return done.returncode, done.stdout, imported

    return run


@pytest.fixture
def artifact(tmp_path):
    torch.manual_seed(0)
    encoder = Encoder("resnet8-w8", 16, [0.5] * 3, [0.2] * 3)
    metadata = ArtifactMetadata(
        "encoder", "resnet8-w8", 16, 16, [0.5] * 3, [0.2] * 3, 32, "simclr", True, "0.1.0", 64
    )
    path = tmp_path / "encoder.safetensors"
    save_encoder(path, encoder, projector(32, 64, 128), metadata, torch.arange(3).numpy())
    return path


def test_importing_the_command_line_imports_nothing_heavy(clfew):
    assert clfew() == (0, "", [])


@pytest.mark.parametrize("arguments", [("--help",), ("pretrain", "--help"), ("--version",), ("cache",)])
def test_help_version_and_cache_import_nothing_heavy(clfew, arguments):
    code, out, imported = clfew(*arguments)
    assert code == 0 and out and imported == []


def test_info_reads_an_artifact_without_torch(clfew, artifact):
    code, out, imported = clfew("info", artifact)
    assert code == 0 and "resnet8-w8" in out and imported == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("pretrain", "--no-such-option"), 2),
        (("no-such-command",), 2),
        (("pretrain",), 2),
        (("finetune",), 2),
        (("predict", "image.jpg"), 1),  # There is no classifier.
        (("info", "missing.safetensors"), 1),
    ],
)
def test_a_wrong_command_line_is_refused_before_torch_is_imported(clfew, arguments, expected):
    code, _, imported = clfew(*arguments)
    assert code == expected and imported == []


def test_a_command_that_computes_shows_up_here(clfew, artifact):
    # Otherwise the tests above could not fail.
    code, _, imported = clfew("embed", "missing-folder", "--from", artifact)
    assert code == 1 and "torch" in imported


@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_waiting_threads_give_their_core_away_unless_the_user_says_otherwise(own, expected):
    program = (
        "import os\nfrom clfew.__main__ import main\ntry:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(os.environ.get('GOMP_SPINCOUNT'))"
    )
    inherited = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", program, "--version"],
        env=inherited | own,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.splitlines()[-1] == expected, done.stderr
