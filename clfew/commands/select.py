"""`clfew select`: which images to label, and a random sample to test on."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clfew import console
from clfew.commands.selecting import Prepared, prepare
from clfew.data.label_lists import CHOSEN, LabelRow, counts_of
from clfew.errors import UsageError, UserError
from clfew.runs.files import write_csv, write_json
from clfew.runs.folders import Run, check_new, command_line, from_here, new_run
from clfew.selection.label_rows import RANDOM, cells_of, numbered
from clfew.selection.strategies import (
    AUTO,
    REASONS,
    STRATEGIES,
    UNCERTAIN,
    Question,
    chosen,
    likeliest,
    reason_of,
    resolved,
)
from clfew.settings import SelectSettings, function_of
from clfew.training.device import without_traces

TO_LABEL = "to_label.csv"


@dataclass(frozen=True)
class Chosen:
    """What was chosen. rows: new rows of the list, without numbers. strategy: how, as the list says it;
    "" where nothing was. reason: why so, in words."""

    rows: list[LabelRow]
    strategy: str
    reason: str


def run(settings: SelectSettings) -> tuple[Path, dict[str, Any]]:
    """Chooses images to label and draws a random sample to test on; returns the run folder and what is
    in select.json.

    The folder has to_label.csv: path, label (empty), split, order and how. With `labels`, its first rows
    are those of that list. The result has `source`, `strategy`, `reason`, `encoder`, `images` (of the
    source), `pool` (images to choose from, one of each picture), `chosen` and `test` (paths, the test
    sample whole), `so_far` (how many rows had a label, by split), `how` (how many rows came about in each
    way), `list` and `page`. No file of the source is changed. Raises UserError.
    """
    _check(settings)
    prepared = prepare(settings)
    drawn = _drawn(prepared)
    picked = _picked(prepared, drawn)
    new = picked.rows + drawn
    run = new_run("select", settings.out)
    rows = numbered(prepared.rows, new)
    result = _result(prepared, picked, rows, run)
    save(run, prepared, rows, result)
    return run.folder, result


select = function_of(SelectSettings, without_traces(run))


def _check(settings: SelectSettings) -> None:
    """Raises UsageError for options that do not go together, UserError if the folder exists."""
    example = "for example: clfew select ./photos --budget 40 --test 50"
    check_new(settings.out)
    if settings.budget is None and settings.test is None:
        raise UsageError("Neither --budget nor --test was given: how many images?", example)
    if settings.strategy not in STRATEGIES:
        raise UsageError(
            f"--strategy {settings.strategy} is not known.", f"choose {', '.join(STRATEGIES)}."
        )
    if settings.find is not None and settings.budget is None:
        raise UsageError("--find was given without --budget: how many images?", "add --budget 40.")
    if settings.find is not None and settings.strategy != AUTO:
        raise UsageError(
            "--find and --strategy are two ways to choose.", "leave out one of them."
        )
    if settings.labels is None and (settings.find is not None or settings.strategy == UNCERTAIN):
        option = "--find" if settings.find is not None else f"--strategy {UNCERTAIN}"
        raise UsageError(
            f"{option} asks a classifier, which needs labels, and no --labels was given.",
            "label some first: clfew select --budget 40, then name the list: --labels to_label.csv",
        )


def _drawn(prepared: Prepared) -> list[LabelRow]:
    """Returns the rows of a new random test sample, none where none is asked for or the list has it."""
    from clfew.selection.pool import random_sample

    settings, pool, before = prepared.settings, prepared.pool, prepared.to_test
    if settings.test is None:
        return []
    if before:
        if len(before) != settings.test:
            raise UserError(
                f"{settings.labels} has its test sample already, {console.plural(len(before), 'image')}, "
                f"and --test {settings.test} would change it: then its numbers mean nothing.",
                "leave out --test.",
            )
        return []
    free = ~np.isin(pool.groups, prepared.groups[[row.index for row in prepared.rows]])
    most = len(np.unique(pool.groups[free])) - (1 if settings.budget else 0)
    if settings.test > most:
        raise UserError(
            f"--test {settings.test} is more than the {most:,} images that can be drawn, one of each "
            "group or picture.",
            f"use --test {most} or less." if most > 0 else "add images.",
        )
    rows = random_sample(pool, free, settings.test, settings.seed)
    return [LabelRow(int(i), "", "test", None, RANDOM, "") for i in pool.images[rows]]


def _picked(prepared: Prepared, drawn: list[LabelRow]) -> Chosen:
    """Returns the rows that are chosen."""
    settings, pool = prepared.settings, prepared.pool
    if settings.budget is None:
        return Chosen([], "", "")
    listed = [row.index for row in prepared.rows]
    tested = [row.index for row in [*prepared.to_test, *drawn]]
    is_free = ~np.isin(prepared.pictures[pool.images], prepared.pictures[listed])
    is_free &= ~np.isin(pool.groups, prepared.groups[tested])
    order = pool.order(settings.seed)
    free = order[is_free[order]]
    if settings.budget > len(free):
        raise UserError(
            f"--budget {settings.budget} is more than the {len(free):,} images that are left to choose "
            "from, one of each picture.",
            f"use --budget {len(free)} or less." if len(free) else "all are in the list already.",
        )
    asked = prepared.groups[[row.index for row in prepared.to_learn]]
    labelled = np.flatnonzero(
        np.isin(
            prepared.pictures[pool.images],
            prepared.pictures[[row.index for row in prepared.to_learn]],
        )
    )
    question = Question(pool, free, labelled, np.unique(asked), settings.budget, settings.seed)
    if settings.find is None and settings.strategy == RANDOM:
        rows, how, reason = chosen(question, RANDOM), RANDOM, REASONS[RANDOM]
    else:
        rows, how, reason = _by_features(prepared, question)
    return Chosen([LabelRow(int(i), "", "train", None, how, "") for i in pool.images[rows]], how, reason)
