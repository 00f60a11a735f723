"""Saving never destroys: if anything fails at any point, the earlier save is intact."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
from unittest.mock import Mock

import pytest
import torch
from faults import CALLS, in_write, save_every, signal_at
from resuming import PRETRAIN
from torch import nn

from clfew.errors import UserError
from clfew.runs.files import append_line, make_folder, sweep, write_bytes
from clfew.runs.folders import new_run
from clfew.runs.locks import held
from clfew.training.plan import Plan
from clfew.training.state import load_state, save_state, saved_position

POINTS = [(call, after) for call in CALLS for after in (False, True)]
DATA = "a digest of images and labels"
PLAN = Plan(9, 4, "sgd", 0.1, 0.0, 1, 0, "fp32")


def network(value: float) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Returns a network with all weights equal to `value`, and an optimizer with a momentum to save."""
    module = nn.Linear(300, 300)
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)
        parameter.grad = torch.full_like(parameter, value)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0, momentum=0.9)
    optimizer.step()
    return module, optimizer


def save(path, value):
    save_state(path, *network(value), PLAN, {"step": int(value), "seconds": 0.0, "data": DATA})


def saved(path) -> float:
    """Returns the value of a saved network and asserts that all of its weights have it."""
    module, _ = network(0)
    _, states = load_state(path, module, PLAN, DATA)
    values = [p.unique() for p in module.parameters()]
    values += [state["momentum_buffer"].unique() for state in states.values()]
    (value,) = torch.cat(values).unique().tolist()
    return value


def leftovers(folder):
    return [path.name for path in folder.rglob(".*")]


def killed_in_a_save(folder, before, call, after, has_arrived, fraction=0.5):
    """Kills a process while it saves a state, after `before` earlier saves; the last save is intact."""
    path = folder / "state" / "state.safetensors"
    for value in range(1, before + 1):
        save(path, value)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            exec(in_write(path.name, 1, call, after, arrived=fraction), {})
            save(path, before + 1)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert saved_position(path)["step"] == before + has_arrived
    if before + has_arrived:
        assert saved(path) == before + has_arrived
    with held(folder):  # Every command that resumes the run starts with this.
        assert leftovers(folder) == []


@pytest.mark.parametrize("before", [0, 1], ids=["first save", "second save"])
@pytest.mark.parametrize(("call", "after"), POINTS)
def test_a_kill_at_any_point_of_a_save(tmp_path, call, after, before):
    has_arrived = CALLS.index(call) + after > CALLS.index("replace")
    killed_in_a_save(tmp_path, before, call, after, has_arrived)


@pytest.mark.parametrize("before", [0, 1], ids=["first save", "second save"])
@pytest.mark.parametrize("fraction", [0, 0.001, 0.1, 0.3, 0.9, 0.999])
def test_a_kill_while_a_slow_disk_takes_the_bytes(tmp_path, fraction, before):
    killed_in_a_save(tmp_path, before, "write", False, False, fraction)


@pytest.mark.parametrize("kind", ["ENOSPC", "EROFS", "EACCES", "EIO"])
@pytest.mark.parametrize("call", CALLS[:-1])
def test_a_disk_that_does_not_take_a_save(tmp_path, call, kind):
    path = tmp_path / "state.safetensors"
    save(path, 1)
    content = os.urandom(70_001)
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            exec(in_write(path.name, 1, call, False, kind), {})
            from clfew.runs import files

            try:
                files.write_bytes(path, content)
            except UserError as error:
                code = 0 if str(path) in error.message and "70,001 bytes" in error.message else 2
        os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert saved(path) == 1 and leftovers(tmp_path) == []


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, n=name, f=original: (calls.append(n), f(*a))[1])
    write_bytes(tmp_path / "x", b"content")
    # The file is synchronised, then renamed, then the folder with its name is synchronised.
    assert calls == ["fsync", "replace", "fsync"]


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be written \(3 bytes more\)"):
        append_line(tmp_path / "gone" / "metrics.jsonl", "{}")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        make_folder(tmp_path / "file" / "state")


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_of_a_state_follows_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        save(tmp_path / "state.safetensors", 1)
    finally:
        os.umask(before)
    assert (tmp_path / "state.safetensors").stat().st_mode & 0o777 == mode


def test_a_run_is_one_process_s_at_a_time(clfew, images, tmp_path):
    images(tmp_path / "unlabeled", classes=[""], each=40)
    clfew(*PRETRAIN, "--out", "run", cwd=tmp_path, faults=signal_at(4, signal.SIGINT))
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with held(tmp_path / "run"):
        message = clfew.refused("pretrain", "--resume", "run", cwd=tmp_path)
    assert "Another clfew is working in run" in message
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    # A lock ends with its process, also if that is killed.
    child = os.fork()
    if child == 0:
        with held(tmp_path / "run"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    clfew.ok("pretrain", "--resume", "run", cwd=tmp_path)


def test_a_run_is_held_from_its_first_file_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = new_run("pretrain")
    with held(run.folder), pytest.raises(UserError, match="Another clfew"), held(run.folder):
        pass


def test_a_lock_that_its_holder_has_just_removed_is_no_lock(tmp_path, monkeypatch):
    flock, calls = fcntl.flock, []

    def late(descriptor, how):
        calls.append(1)
        if len(calls) == 1:  # The other process ends between this one's opening and locking.
            (tmp_path / "lock").unlink()
        flock(descriptor, how)

    monkeypatch.setattr("fcntl.flock", late)
    with held(tmp_path):
        assert len(calls) == 2 and (tmp_path / "lock").exists()
        with pytest.raises(UserError, match="Another clfew"), held(tmp_path):
            pass


def test_without_locks_nothing_is_swept_that_another_may_be_writing(tmp_path, monkeypatch):
    half = tmp_path / ".state.safetensors.k3j2.unfinished"
    half.write_text("half")
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", Mock(side_effect=OSError(errno.EBADF, "no locks")))
        with held(tmp_path):
            assert half.exists()
    with held(tmp_path):
        assert not half.exists()
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_what_was_left_half_written_is_swept(tmp_path):
    mine = [".hidden", "unfinished", "a.unfinished", ".git"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".state.safetensors.k3j2.unfinished").write_text("half")
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(mine)


def test_a_damaged_state_or_one_of_another_run_is_refused_and_kept(clfew, images, tmp_path):
    images(tmp_path / "unlabeled", classes=[""], each=40)
    clfew(*PRETRAIN, "--out", "run", cwd=tmp_path, faults=signal_at(4, signal.SIGINT))
    path = tmp_path / "run/state/state.safetensors"
    whole = path.read_bytes()
    for place in (3, 40, len(whole) // 2, len(whole) - 1):
        changed = bytearray(whole)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        message = clfew.refused("pretrain", "--resume", "run", cwd=tmp_path)
        assert "state.safetensors cannot be used" in message
    other = tmp_path / "other/state/state.safetensors"
    clfew(*PRETRAIN, "--batch", "8", "--out", "other", cwd=tmp_path, faults=signal_at(4, signal.SIGINT))
    path.write_bytes(other.read_bytes())
    message = clfew.refused("pretrain", "--resume", "run", cwd=tmp_path)
    assert "it was saved with steps 30, not 12" in message
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be used" in clfew.refused("pretrain", "--resume", "run", cwd=tmp_path)
    shutil.rmtree(path.parent)
    assert "from its beginning" in clfew.ok("pretrain", "--resume", "run", cwd=tmp_path).stderr


def test_a_change_that_prevents_resuming_is_named(clfew, images, tmp_path):
    images(tmp_path / "unlabeled", classes=[""], each=40)
    clfew(*PRETRAIN, "--out", "run", cwd=tmp_path, faults=signal_at(4, signal.SIGINT))
    resume = ("pretrain", "--resume", "run")
    for option, was in (
        (("--method", "byol"), "simclr"),
        (("--encoder", "resnet8-w16"), "resnet8-w8"),
        (("--batch", "8"), "16"),
        (("--seed", "1"), "0"),
    ):
        message = clfew.refused(*resume, *option, rc=2, cwd=tmp_path)
        assert option[-1] in message and was in message
    (tmp_path / "unlabeled/003.png").unlink()
    assert "have changed" in clfew.refused(*resume, cwd=tmp_path)
    images(tmp_path / "others", classes=[""], each=40, seed=1)
    assert "have changed" in clfew.refused(*resume, "others", cwd=tmp_path)
    assert "no folder or file nowhere" in clfew.refused(*resume, "nowhere", cwd=tmp_path)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["arguments"]["method"] == "simclr"
    images(tmp_path / "unlabeled", classes=[""], each=40)  # The same bytes, written at another time.
    assert "with other times" in clfew.ok(*resume, cwd=tmp_path).stderr


def test_a_changed_list_of_labels_is_noticed(clfew, images, tmp_path):
    images(tmp_path / "labeled/train", each=6)
    images(tmp_path / "labeled/test", each=2)
    rows = [
        f"train/{path.parent.name}/{path.name},{path.parent.name}"
        for path in sorted((tmp_path / "labeled/train").rglob("*.png"))
    ]
    (tmp_path / "some.csv").write_text("\n".join(["path,label", *rows[::2]]))
    begin = ("finetune", "labeled", "--labels", "some.csv", "--from", "scratch", "--epochs", "2")
    faults = save_every(1) + signal_at(2, signal.SIGINT)
    assert clfew(*begin, "--out", "run", cwd=tmp_path, faults=faults).rc == 130
    (tmp_path / "some.csv").write_text("\n".join(["path,label", *rows[1::2]]))
    message = clfew.refused("finetune", "--resume", "run", cwd=tmp_path)
    assert "some.csv" in message and "removed or changed" in message
    (tmp_path / "some.csv").write_text("\n".join(["path,label", *rows[::2]]))
    clfew.ok("finetune", "--resume", "run", cwd=tmp_path)
