"""Run folders: where they are, what is in them, and which one a command works from."""

import contextlib
import json
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from clfew.errors import UserError
from clfew.group.launch import Launch, launch
from clfew.runs.files import append_line, digest_of, write_csv, write_json, write_text
from clfew.runs.locks import LOCK, held

RUNS = Path("runs")
ARTIFACTS = {"pretrain": "encoder.safetensors", "finetune": "classifier.safetensors"}
_MAKERS = {"pretrain": ("pretrain",), "finetune": ("finetune", "distill")}
"""For each kind of artifact, the commands whose runs hold one."""

_LAST_FILES = {**ARTIFACTS, "distill": "result.json"}
"""For each command, the file that its runs write last. A comparison has none, as it can always be
resumed: a method that failed is tried again."""


LABELS = "labels.csv"
"""In a fine-tuning run: a CSV path,label,split,how of the images whose labels it uses and of the test
sample of the list that they come from, if it has one; of older runs path,label."""

START = "start.safetensors"
"""In a pretraining run: the pretrained encoder it started from, an artifact like the one it makes."""

BESIDE = "beside"
"""The key of a pretraining run's configuration that names the other of two runs that were made to choose
from; it lies in the same folder."""


class Run:
    """A run folder that a command writes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._has_logged = folder, False

    def write_config(self, config: dict[str, Any]) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="microseconds")
        started = launch()
        launched = {} if started is None else {"launch": started.name, "processes": started.size}
        content = {"created": now, **config, **launched, "versions": versions()}
        write_json(self.folder / "config.json", content)

    def write_bad_images(self, bad: Sequence[tuple[str, str]]) -> None:
        """Writes bad_images.csv, path and reason of each image that cannot be used, if there is any."""
        if bad:
            write_csv(self.folder / "bad_images.csv", ["path", "reason"], bad)

    def log(self, row: dict[str, Any]) -> None:
        """Appends a row to metrics.jsonl. The first call also removes the rows from its step on, which a
        killed process has left."""
        if not self._has_logged and (self.folder / "metrics.jsonl").exists():
            self.keep_metrics_until(row["step"] - 1)
        self._has_logged = True
        append_line(self.folder / "metrics.jsonl", json.dumps(row))

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the rows of metrics.jsonl, up to one that a crash or a full disk left half-written."""
        path = self.folder / "metrics.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        rows = []
        with contextlib.suppress(json.JSONDecodeError):
            for line in lines:
                rows.append(json.loads(line))
        return rows

    def keep_metrics_until(self, step: int) -> None:
        """Removes the rows after `step`, which a resumed training writes again."""
        rows = [json.dumps(row) + "\n" for row in self.metrics() if row["step"] <= step]
        write_text(self.folder / "metrics.jsonl", "".join(rows))


def is_finished(folder: Path) -> bool:
    """Returns whether a run has written its last file."""
    last = _LAST_FILES.get(str(read_config(folder).get("command")))
    return last is not None and (folder / last).exists()


def run_before_restart(command: str, out: Path | None) -> Path | None:
    """Returns the run that this command had begun before torchrun started its processes again, None if
    there is none. out: where the run would be."""
    started = launch()
    if started is None:
        return None
    folders = [out] if out is not None else [path.parent for path in RUNS.glob("*/config.json")]
    begun = [folder for folder in folders if _is_begun(read_config(folder), command, started)]
    unfinished = {LOCK, START, "bad_images.csv"}  # What is there before config.json.
    if started.restarts and out is not None and {path.name for path in out.glob("*")} <= unfinished:
        shutil.rmtree(out, ignore_errors=True)
    # Of two runs to choose from, the first one stands for both.
    return min(begun, key=lambda each: str(read_config(each).get("created")), default=None)


def _is_begun(config: dict[str, Any], command: str, started: Launch) -> bool:
    """Returns whether a run was begun by the command that torchrun has started: a name may be given to
    several, one after the other."""
    if config.get("command") != command or config.get("launch") != started.name:
        return False
    created = datetime.fromisoformat(str(config["created"])).timestamp()
    same_line = config.get("command_line", command_line()) == command_line()
    return same_line and created >= started.began - _CLOCKS


_CLOCKS = 60.0
"""The most seconds by which the clocks of two machines may differ."""


def unfinished(folder: Path, command: str) -> dict[str, Any]:
    """Returns the configuration of a run of `command` that can be resumed.

    Raises UserError if there is no such run or it has finished.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.", "runs are in ./runs, or where --out put them.")
    config = read_config(folder)
    if config.get("command") != command:
        raise UserError(
            f"{folder} is not a run of clfew {command}.",
            f"name its folder, such as runs/{command}-1."
            if not config.get("command")
            else f"it is one of clfew {config['command']}.",
        )
    if is_finished(folder):
        raise UserError(
            f"{folder} has finished: there is nothing to resume.",
            "to train longer, start another run with more --epochs.",
        )
    return config


@contextlib.contextmanager
def resumed_run(folder: Path, command: str) -> Iterator[dict[str, Any]]:
    """Locks a run of `command` for this process to resume it (see `held`); yields its configuration.

    Raises UserError if there is no such run or it has finished.
    """
    if not is_finished(folder):
        unfinished(folder, command)
        with held(folder):
            yield unfinished(folder, command)  # Another process may just have finished it.
        return
    with held(folder):  # A process killed at its very end leaves its state.
        shutil.rmtree(folder / "state", ignore_errors=True)
    unfinished(folder, command)


def check_unchanged(folder: Path, config: dict[str, Any], digest: str) -> None:
    """Raises UserError if a run's images (see `Source.digest`) are not those it was started with."""
    if config.get("digest") != digest:
        raise UserError(
            f"The images in {config.get('source')}, or their labels, have changed since {folder} was "
            "started.",
            f"start a new run: clfew {config['command']} with the same options.",
        )


def check_same_file(path: Path, digest: str, what: str) -> None:
    """Raises UserError if a file that a run works from is not the one it was started with."""
    with contextlib.suppress(OSError):
        if digest_of(path) == digest:
            return
    raise UserError(f"{path}, {what}, has been removed or changed.", "start a new run.")


def check_new(out: Path | None) -> None:
    """Raises UserError if `out` exists already: a run is never overwritten."""
    if out is not None and (out.exists() or out.is_symlink()):
        raise UserError(
            f"{out} exists already, and a run is never overwritten.",
            "name another folder with --out, or remove this one first.",
        )


def new_run(kind: str, out: Path | None = None) -> Run:
    """Creates a run folder: `out`, or by default the next free runs/KIND-N. Raises UserError."""
    check_new(out)
    try:
        if out is not None:
            out.mkdir(parents=True)
            return Run(out)
        RUNS.mkdir(exist_ok=True)
        # Of pretrain-1-scratch, too, which would be in the way of another pretrain-1.
        numbers = [p.name.removeprefix(f"{kind}-").split("-")[0] for p in RUNS.glob(f"{kind}-*")]
        number = max((int(each) for each in numbers if each.isdigit()), default=0) + 1
        while True:
            folder = RUNS / f"{kind}-{number}"
            try:
                folder.mkdir()
                return Run(folder)
            except FileExistsError:  # Another clfew has just taken this number.
                number += 1
    except OSError as error:
        raise UserError(
            f"The run folder {out or RUNS} cannot be made: {error.strerror}.",
            "name a folder that can be written with --out.",
        ) from None


def read_config(folder: Path) -> dict[str, Any]:
    """Returns a run's config.json, or {} if there is none that can be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


_OWN_FILES = ({"report.json", "report.html"}, {"demo.json"}, {"store.json", "pixels.safetensors"})
"""Files by which a folder that clfew wrote is known, besides a run's config.json: those of a report, of
the demo and of an image cache."""


def is_own_folder(folder: Path, names: set[str]) -> bool:
    """Returns whether clfew wrote a folder, which has files of these names: a run, a report or an image
    cache."""
    if any(own <= names for own in _OWN_FILES):
        return True
    versions = read_config(folder).get("versions") if "config.json" in names else None
    return isinstance(versions, dict) and "clfew" in versions


def newest(kind: str) -> Path | None:
    """Returns the artifact of the newest finished run in ./runs that made this kind, or None."""
    name = ARTIFACTS[kind]
    makers = _MAKERS[kind]
    finished = [
        p.parent for p in RUNS.glob(f"*/{name}") if read_config(p.parent).get("command") in makers
    ]
    if not finished:
        return None
    return max(finished, key=lambda run: str(read_config(run).get("created"))) / name


def with_name(folder: Path) -> Path:
    """Returns the folder by a path that ends in its name, as . and .. do not."""
    return folder if folder.name not in ("", "..") else folder.resolve()


def with_beside(artifact: Path) -> list[Path]:
    """Returns the encoder of a pretraining run, and before it that of the run made beside it, if any."""
    beside = read_config(artifact.parent).get(BESIDE)
    if not isinstance(beside, str) or not beside:
        return [artifact]
    other = with_name(artifact.parent).with_name(Path(beside).name) / artifact.name
    return [other, artifact] if other.is_file() else [artifact]


def find_artifact(named: str | None, kind: str, hint: str) -> Path:
    """Returns the artifact to work from: that of the named run or file, else the newest of `kind`.

    Raises UserError if there is none.
    """
    if named is None:
        found = newest(kind)
        if found is None:
            raise UserError(f"There is no finished {kind} run in {RUNS}{'/'}.", hint)
        return found
    path = Path(named)
    if path.is_dir():
        for name in (ARTIFACTS[kind], *ARTIFACTS.values()):
            if (path / name).is_file():
                return path / name
        is_run = (path / "config.json").exists()
        problem = "holds a run that has not finished" if is_run else "is not a run of clfew"
        raise UserError(f"The folder {path} {problem}: there is no {ARTIFACTS[kind]} in it.", hint)
    if not path.exists():
        raise UserError(f"There is no run or file {path}.", "clfew's own runs are in runs/.")
    return path


def versions() -> dict[str, str]:
    names = ("clfew", "torch", "torchvision", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def command_line() -> str:
    """Returns the running command as it can be typed again, or "" if clfew is used as a library."""
    is_command = Path(sys.argv[0]).name in ("clfew", "__main__.py")
    return shlex.join(["clfew", *sys.argv[1:]]) if is_command else ""


def from_here(path: Path) -> Path:
    """Returns a path as it is shown and typed: relative to the working folder if it lies below that."""
    absolute, here = path.resolve(), Path.cwd().resolve()
    return absolute.relative_to(here) if absolute.is_relative_to(here) else absolute


def from_option(artifact: Path, kind: str) -> str:
    """Returns ` --from RUN` if the next command would not find this artifact by itself, else ""."""
    return "" if newest(kind) == artifact else f" --from {shlex.quote(str(artifact.parent))}"
