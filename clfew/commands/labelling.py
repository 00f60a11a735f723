"""What `clfew label` begins with: the run to go on with, the images that are worked on, the session."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from clfew import console
from clfew.commands.select import test_sample
from clfew.commands.selecting import Prepared, prepare
from clfew.data.content import content_of, same_images
from clfew.data.label_lists import LabelList, LabelRow, run_of_list
from clfew.data.lists import is_list, parse
from clfew.data.source import Source
from clfew.data.splits import split_to_test
from clfew.errors import UsageError, UserError
from clfew.finetuning.find_start import is_from_scratch
from clfew.finetuning.label_propagation import MAX_IMAGES
from clfew.labelling.asked import check_labelling, classes_of
from clfew.labelling.begin import begin
from clfew.labelling.board import Board
from clfew.labelling.log import DecisionLog
from clfew.labelling.session import Session
from clfew.labelling.state import State
from clfew.labelling.upcoming import FIRST
from clfew.labelling.work import Work
from clfew.models.metadata import read_metadata
from clfew.runs.files import digest_of
from clfew.runs.folders import LABELS, RUNS, check_new, find_artifact, from_here, newest, read_config
from clfew.selection.pool import to_cover
from clfew.selection.pool_codes import pool_codes
from clfew.settings import LabelSettings, SelectSettings

TESTS, MOST_TESTED = 50, 1 / 3
"""So many images are drawn to test on where no number was asked for, at most this fraction of all."""

_KEPT = ("bands", "group_by", "seed")
"""Settings that a run keeps when it goes on."""

_REMEMBERED = ("classes", "budget", "test", "origin", "init", "labels")
"""Settings that hold again where they are not given."""


def run_to_go_on(settings: LabelSettings) -> tuple[Path | None, LabelSettings]:
    """Returns the run that goes on, None for a new one, and the settings with what the run keeps. It is
    that of `out`; else the newest one of the same source and the same list. Raises UserError."""
    check_labelling(settings)
    if settings.out is not None:
        if read_config(settings.out).get("command") != "label":
            check_new(settings.out)
            return None, settings
        folder: Path | None = settings.out
        _check_list_of(settings, settings.out)
    else:
        source = _source_of(settings)
        runs = [p.parent for p in RUNS.glob("*/config.json")]
        folder = _newest_run([each for each in runs if _is_of(settings, source, each)])
    if folder is None:
        return None, settings
    config, usual = read_config(folder), LabelSettings()
    before: dict[str, Any] = {**(config.get("arguments") or {}), "group_by": config.get("group_by")}
    kept = {name: before[name] for name in _KEPT if name in before}
    for name, value in kept.items():
        given = getattr(settings, name)
        if given not in (getattr(usual, name), value):
            option = "--" + name.replace("_", "-")
            before_words = f"without {option}" if value is None else f"with {option} {value}"
            raise UsageError(
                f"{from_here(folder)} goes on {before_words}, not with {given}.",
                f"leave out {option}, or begin anew with --out FOLDER.",
            )
    kept |= {
        name: before.get(name, getattr(usual, name))
        for name in _REMEMBERED
        if getattr(settings, name) == getattr(usual, name)
    }
    if settings.origin is not None or settings.init != usual.init:  # Another encoder than before.
        kept |= {"origin": settings.origin, "init": settings.init}
    return folder, replace(settings, source=settings.source or config.get("source"), **kept)


def _source_of(settings: LabelSettings) -> str | None:
    """Returns the source that the settings mean: the one given, else that of the list so far or of the
    encoder, or of the last labelling; None where nothing says it."""
    if settings.source is not None:
        return _whole(settings.source)
    if settings.labels is not None:
        spec = run_of_list(parse(settings.labels).file).get("source")
        if spec:
            return str(spec)
    if settings.origin and not is_from_scratch(settings.origin, settings.init):
        hint = "pretrain first: clfew pretrain FOLDER"
        artifact: Path | None = find_artifact(settings.origin, "pretrain", hint)
    else:
        artifact, last = newest("pretrain"), _newest_run([p.parent for p in RUNS.glob("*/config.json")])
        # What was done last is meant: labelling, or pretraining on other images since.
        if last is not None and (artifact is None or _created(last) > _created(artifact.parent)):
            return str(read_config(last).get("source"))
    data = read_metadata(artifact)[0].data if artifact is not None else {}
    found = (data.get("pretrain") or data.get("finetune") or {}).get("source")
    return None if found is None else str(found)


def _newest_run(folders: list[Path]) -> Path | None:
    """Returns the run of `label` that was begun last."""
    runs = [each for each in folders if read_config(each).get("command") == "label"]
    return max(runs, key=_created, default=None)


def _created(folder: Path) -> str:
    return str(read_config(folder).get("created"))


def _is_of(settings: LabelSettings, source: str | None, folder: Path) -> bool:
    """Returns whether a run of `label` is one that the settings mean. source: None for any."""
    config = read_config(folder)
    if source not in (None, config.get("source")):
        return False
    return settings.labels is None or _digest_of_list(settings) == config.get("label_digest")


def _digest_of_list(settings: LabelSettings) -> str | None:
    file = parse(settings.labels or "").file
    return digest_of(file) if file.is_file() else None


def _check_list_of(settings: LabelSettings, folder: Path) -> None:
    """Raises UsageError if a run that goes on is to begin with another list."""
    if settings.labels is None or _digest_of_list(settings) == read_config(folder).get("label_digest"):
        return
    raise UsageError(
        f"{folder} goes on with the labels that it has, not with {settings.labels}.",
        "leave out --labels, or begin anew with another --out.",
    )


def _whole(spec: str) -> str:
    """Returns the name of a source as configurations keep it."""
    if spec.startswith("hf:"):
        return spec
    spec = os.path.expanduser(spec)
    return parse(spec).spec() if is_list(spec) else str(Path(spec).resolve())


def prepare_labelling(
    settings: LabelSettings, log: DecisionLog | None
) -> tuple[Prepared, list[LabelRow]]:
    """Opens the images, the labels so far and the encoder, and draws the test sample. log: of the run
    that goes on; what it has already is not read or drawn again. Raises UserError."""
    events = log.events if log is not None else []
    done = {event["do"] for event in events}
    labels = None if done & {"listed", "test", "asked"} else settings.labels
    prepared = prepare(
        SelectSettings(
            settings.source,
            bands=settings.bands,
            group_by=settings.group_by,
            budget=FIRST,
            labels=labels,
            origin=settings.origin,
            init=settings.init,
            seed=settings.seed,
            device=settings.device,
            precision=settings.precision,
            threads=settings.threads,
        ),
        "label",
        (lambda source: _list_of(source, log)) if log is not None and "listed" in done else None,
    )
    if log is not None:
        _check_images(prepared, log.path.parent)
    if log is not None and done & {"test", "asked"}:
        _check_test(settings, log)
        return prepared, []
    number = settings.test
    if number is None:
        listed = prepared.groups[[row.index for row in prepared.rows]]
        free = len(np.setdiff1d(prepared.pool.groups, listed))
        has_own = split_to_test(prepared.source) is not None or prepared.to_test
        groups = len(np.unique(prepared.pool.groups))
        number = 0 if has_own else max(0, min(TESTS, int(MOST_TESTED * groups), free - 1))
    if not number:
        return prepared, []
    asked = replace(prepared.settings, test=number, labels=settings.labels)
    return prepared, test_sample(replace(prepared, settings=asked))


def _list_of(source: Source, log: DecisionLog) -> LabelList:
    """Returns the list that a run began with, with what has been decided since. Images that are no
    longer there are left out."""
    state, number_of = State.of(log.events), {name: i for i, name in enumerate(source.identities)}
    rows = []
    for name, _, split, order, how, group in state.listed:
        if name in number_of:
            label = state.label(name)
            text = "" if label is None else state.name_of(label)
            rows.append(LabelRow(number_of[name], text, split, order, how, group))
    return LabelList(log.path, rows, "")


def _check_images(prepared: Prepared, folder: Path) -> None:
    """Raises UserError if a run that goes on elsewhere would find other images there: by their names
    alone, they would have each other's labels."""
    source, config = prepared.source, read_config(folder)
    is_moved = source.spec != config.get("source")
    if is_moved and not same_images(config.get("content"), content_of(source, prepared.cache)):
        raise UserError(
            f"The images of {source.spec} are not those of {from_here(folder)}.",
            f"begin anew, with its labels if the names are the same: --labels {folder / LABELS} "
            "--out FOLDER.",
        )


def _check_test(settings: LabelSettings, log: DecisionLog) -> None:
    """Raises UserError if --test would change the test sample."""
    drawn = len(State.of(log.events).tests)
    if settings.test is not None and settings.test != drawn:
        has = f"a test sample of {console.plural(drawn, 'image')}" if drawn else "no test sample"
        folder = from_here(log.path.parent)
        raise UserError(
            f"{folder} has {has}, and --test {settings.test} would change that: then it is random no "
            "longer.",
            "leave out --test, or begin anew with --out FOLDER.",
        )


def session_of(
    settings: LabelSettings, prepared: Prepared, drawn: list[LabelRow], log: DecisionLog
) -> Session:
    """Returns the session, with the first images to ask for."""
    if log.damaged:
        lines = console.plural(log.damaged, "line")
        console.say(f"note       {lines} of {from_here(log.path)} cannot be read and are passed over")
    source = prepared.source
    indices = {name: i for i, name in enumerate(source.identities)}
    kept = [name for event in log.events if event["do"] == "test" for name in event["images"]]
    tested = [indices[name] for name in kept if name in indices]
    to_test = [*prepared.to_test, *drawn]
    tested = tested or [row.index for row in to_test]
    work = _work(prepared, np.array(tested, np.int64), _named(log, indices))
    board = Board(source.identities, work, settings.budget)
    session = Session(_name_of(source.spec), board, log)
    begin(session, source, classes_of(settings), prepared.rows, to_test)
    return session


def _named(log: DecisionLog, indices: dict[str, int]) -> list[int]:
    """Returns the images that a run has asked for, or had labels of."""
    names: list[str] = []
    for event in log.events:
        names += event["images"] if event["do"] == "asked" else []
        names += [row[0] for row in event["rows"]] if event["do"] == "listed" else []
        names += event["labels"] if event["do"] == "page" else []
    return [indices[name] for name in names if name in indices]


def _work(prepared: Prepared, tested: np.ndarray, named: Iterable[int]) -> Work:
    """Returns the images that are worked on: all that do not belong together with the test sample, or a
    sample of them."""
    pool, groups, pictures = prepared.pool, prepared.groups, prepared.pictures
    good = set(prepared.cache.good.tolist())
    tested = np.array([i for i in tested.tolist() if i in good], np.int64)
    is_free = ~np.isin(pool.groups, groups[tested])
    rows = np.flatnonzero(is_free)
    if len(rows) > MAX_IMAGES:
        some = rows[to_cover(pool.groups[rows], MAX_IMAGES)]
        first = [row.index for row in prepared.rows] + list(named)
        listed = np.flatnonzero(np.isin(pictures[pool.images], pictures[first]) & is_free)
        rows = np.union1d(some, listed)
        console.say(f"pool       {len(rows):,} of them, drawn at random, are worked on")
    if not len(rows):
        raise UserError(
            f"No image of {prepared.source.spec} is left to learn from beside the test sample.",
            "draw a smaller one, such as --test 10, or none: --test 0.",
        )
    worked = pool.part(rows)
    row_of = np.full(len(prepared.source), -1)
    row_of[pictures[worked.images]] = np.arange(len(worked))
    rows_of_all = row_of[pictures]
    names = prepared.source.identities
    assert prepared.start is not None
    images = np.concatenate([worked.images, tested])
    arrays = (prepared.cache, prepared.source.scale, images)
    codes = pool_codes(prepared.start, *arrays, prepared.device, prepared.precision)
    return Work(
        worked,
        {names[i]: int(rows_of_all[i]) for i in np.flatnonzero(rows_of_all >= 0)},
        codes(np.arange(len(worked))),
        [names[i] for i in tested],
        codes(np.arange(len(worked), len(images))),
        prepared.settings.seed,
    )


def _name_of(spec: str) -> str:
    return spec if spec.startswith("hf:") else Path(spec).name or spec
