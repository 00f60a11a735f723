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
from clfew.data.label_lists import LabelRow
from clfew.data.lists import is_list, parse
from clfew.data.splits import split_to_test
from clfew.errors import UsageError, UserError
from clfew.finetuning.label_propagation import MAX_IMAGES
from clfew.labelling.asked import check_labelling, classes_of
from clfew.labelling.begin import begin
from clfew.labelling.board import Board
from clfew.labelling.log import DecisionLog
from clfew.labelling.session import Session
from clfew.labelling.state import State
from clfew.labelling.upcoming import FIRST
from clfew.labelling.work import Work
from clfew.runs.files import digest_of
from clfew.runs.folders import RUNS, check_new, from_here, read_config
from clfew.selection.pool import to_cover
from clfew.selection.pool_codes import pool_codes
from clfew.settings import LabelSettings, SelectSettings

TESTS, MOST_TESTED = 50, 1 / 3
"""So many images are drawn to test on where no number was asked for, at most this fraction of all."""

_KEPT = ("bands", "group_by", "seed")
"""Settings that a run keeps when it goes on."""


def run_to_go_on(settings: LabelSettings) -> tuple[Path | None, LabelSettings]:
    """Returns the run that goes on, None for a new one, and the settings with what the run keeps. It is
    that of `out`; else the newest one of the same source and the same list. Raises UserError."""
    check_labelling(settings)
    if settings.out is not None:
        if read_config(settings.out).get("command") != "label":
            check_new(settings.out)
            return None, settings
        folder: Path | None = settings.out
    else:
        found = [each.parent for each in RUNS.glob("*/config.json") if _is_of(settings, each.parent)]
        folder = max(found, key=lambda each: str(read_config(each).get("created")), default=None)
    if folder is None:
        return None, settings
    config = read_config(folder)
    before: dict[str, Any] = config.get("arguments") or {}
    kept = {name: before[name] for name in _KEPT if name in before}
    for name, value in kept.items():
        given, usual = getattr(settings, name), getattr(LabelSettings(), name)
        if given not in (usual, value):
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{from_here(folder)} goes on with {option} {value or 'as it was'}, not {given}.",
                f"leave out {option}, or begin anew with --out FOLDER.",
            )
    source = settings.source or config.get("source")
    labels = settings.labels or before.get("labels")
    return folder, replace(settings, source=source, labels=labels, **kept)


def _is_of(settings: LabelSettings, folder: Path) -> bool:
    """Returns whether a run is one of `label` that the settings mean."""
    config = read_config(folder)
    if config.get("command") != "label":
        return False
    if settings.source is not None and _whole(settings.source) != config.get("source"):
        return False
    if settings.labels is None:
        return True
    file = parse(settings.labels).file
    return file.is_file() and digest_of(file) == config.get("label_digest")


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
    done = {event["do"] for event in log.events} if log is not None else set()
    labels = None if done & {"test", "asked"} else settings.labels
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
    )
    if log is not None and done & {"test", "asked"}:
        _check_test(settings, log)
        return prepared, []
    number = settings.test
    if number is None:
        groups = len(np.unique(prepared.pool.groups))
        has_own = split_to_test(prepared.source) is not None or prepared.to_test
        number = 0 if has_own else min(TESTS, int(MOST_TESTED * groups))
    if not number:
        return prepared, []
    asked = replace(prepared.settings, test=number, labels=settings.labels)
    return prepared, test_sample(replace(prepared, settings=asked))


def _check_test(settings: LabelSettings, log: DecisionLog) -> None:
    state = State()
    for event in log.events:
        state.apply(event)
    if settings.test is not None and settings.test != len(state.tests):
        raise UserError(
            f"The test sample has been drawn already, {console.plural(len(state.tests), 'image')}, and "
            f"--test {settings.test} would change it: then it is random no longer.",
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
    tested = tested or [row.index for row in [*prepared.to_test, *drawn]]
    work = _work(prepared, np.array(tested, np.int64), _named(log, indices))
    board = Board(source.identities, work, settings.budget)
    session = Session(_name_of(source.spec), board, log)
    begin(session, source, classes_of(settings), prepared.rows, drawn)
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
