"""Places that cannot be written, runs that cannot be resumed, commands that do not exist."""

import os

import pytest

pretrain = ("pretrain", "unlabeled", "--encoder", "resnet8-w8", "--epochs", "1")
COMMANDS = ("pretrain", "finetune", "eval", "predict", "embed", "info", "cache", "demo")


@pytest.mark.parametrize(
    "command", [pretrain, ("finetune", "--labels", "all"), ("eval",), ("embed", "unlabeled"), ("demo",)]
)
def test_existing_files_are_never_overwritten(clfew, project, command):
    (project / "precious").mkdir()
    (project / "precious/notes.txt").write_text("mine")
    (project / "file").write_text("mine")
    (project / "link").symlink_to("nowhere")
    for out in ("precious", "file", "link"):
        assert out in clfew.refused(*command, "--out", out, cwd=project)
    # A folder below a file cannot be created either.
    assert "file" in clfew.refused(*command, "--out", "file/below", cwd=project)


def test_a_finished_or_missing_run_is_not_resumed(clfew, project):
    assert "has finished" in clfew.refused("pretrain", "--resume", "runs/pretrain-1", cwd=project)
    for given in (
        ("--compile", "on"),
        ("--precision", "bf16"),
        ("--seed", 1),
        ("--no-flip",),
    ):
        message = clfew.refused("pretrain", "--resume", "runs/pretrain-1", *given, rc=2, cwd=project)
        assert "cannot be changed on resume" in message and "leave it out" in message
    message = clfew.refused("pretrain", "--resume", "runs/pretrain-1", "--lr", 3, rc=2, cwd=project)
    assert "was started with the default" in message
    same = ("--seed", 0, "--encoder", "resnet8-w8")  # The run was started with these values.
    assert "has finished" in clfew.refused("pretrain", "--resume", "runs/pretrain-1", *same, cwd=project)
    for folder in ("runs/pretrain-9", "runs/finetune-1", "unlabeled"):
        assert folder in clfew.refused("pretrain", "--resume", folder, cwd=project)


def test_a_cache_that_cannot_be_written_is_named(clfew, images, tmp_path):
    images(tmp_path / "unlabeled", classes=[""], each=20)
    (tmp_path / "file").write_text("in its place")
    for place in (tmp_path / "file", tmp_path / "file/below"):
        message = clfew.refused(*pretrain, cwd=tmp_path, env={"CLFEW_CACHE": str(place)})
        assert str(place) in message and "CLFEW_CACHE" in message
    assert clfew.ok("cache", cwd=tmp_path, env={"CLFEW_CACHE": str(tmp_path / "none")}).stderr == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_folder_is_named(clfew, project):
    (project / "runs").chmod(0o555)
    try:
        assert "runs" in clfew.refused(*pretrain, cwd=project)
    finally:
        (project / "runs").chmod(0o755)


def test_a_file_called_runs_is_named(clfew, images, tmp_path):
    images(tmp_path / "unlabeled", classes=[""], each=20)
    (tmp_path / "runs").write_text("in its place")
    assert "runs" in clfew.refused(*pretrain, cwd=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretain"], ["pretain"]),
        (["pretrain", "--epoch", "3"], ["--epoch"]),
        (["pretrain", "unlabeled", "--epochs", "0"], ["--epochs"]),
        (["pretrain", "unlabeled", "--batch", "many"], ["--batch"]),
        (["finetune"], ["--labels"]),
        (["finetune", "--labels", "1%", "--repeat", "0"], ["--repeat"]),
        (["predict"], ["images"]),
        (["predict", "x.png", "--format", "xml"], ["xml", "jsonl"]),
        (["info"], ["FILE"]),
        (["eval", "--from", "a", "--from", "b"], ["--from was given 2 times"]),
        (["predict", "x.png", "--from", "a", "--from=a"], ["--from was given 2 times"]),
        (["distill", "--from", "a", "--minutes", "1", "--from", "b"], ["--from was given 2 times"]),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_what(clfew, tmp_path, arguments, words):
    result = clfew(*arguments, cwd=tmp_path)
    assert result.rc == 2 and result.stdout == "" and "Traceback" not in result.stderr
    assert all(word in result.stderr for word in words), result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["finetune", "--labels", "1%", "--from", "a", "--from", "b"],  # It takes several.
        ["pretrain", "a", "--flip", "--flip"],
        ["finetune", "a", "--labels", "1%", "--labels", "5%"],  # The last one counts.
    ],
)
def test_what_may_be_given_twice_may_be_given_twice(clfew, tmp_path, arguments):
    assert "There is no" in clfew.refused(*arguments, cwd=tmp_path)


def test_pretrain_without_images_says_how_to_name_them(clfew, tmp_path):
    assert "clfew pretrain ./unlabeled" in clfew.refused("pretrain", rc=2, cwd=tmp_path)


def test_without_arguments_it_shows_help(clfew, tmp_path):
    result = clfew(cwd=tmp_path, warm=False)
    assert all(name in result.stdout + result.stderr for name in COMMANDS)
    assert clfew.ok("--version", cwd=tmp_path).stdout.startswith("clfew ")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(clfew, tmp_path, command):
    result = clfew.ok(command, "--help", cwd=tmp_path)
    assert f"Example:  clfew {command}" in " ".join(result.stdout.split("\n")).replace("\n", " ")
    assert result.stderr == ""


def test_a_failed_demo_leaves_nothing_behind(clfew, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "cuda" in clfew.refused("demo", "--device", "cuda", "--out", "demo", cwd=tmp_path)
