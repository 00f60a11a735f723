"""`clfew select`: which images to label, and a random sample to test on."""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from clfew import console
from clfew.commands.selecting import Prepared, class_of, prepare
from clfew.data.content import content_of
from clfew.data.label_lists import CHOSEN, RANDOM, LabelRow, counts_of
from clfew.data.splits import split_to_test
from clfew.errors import UserError
from clfew.group.command import together
from clfew.report.select import write_select_page
from clfew.runs.files import write_csv, write_json
from clfew.runs.folders import Run, check_new, command_line, from_here, new_run
from clfew.selection import asked
from clfew.selection.asked import UNCERTAIN, check_asked
from clfew.selection.classifier import Probabilities, fit_to_codes
from clfew.selection.label_rows import cells_of, numbered
from clfew.selection.pool import MOST_CANDIDATES, Pool, random_sample, to_cover
from clfew.selection.pool_codes import pool_codes
from clfew.selection.strategies import REASONS, Question, chosen, likeliest, reason_of, resolved
from clfew.settings import SelectSettings, arguments_of
from clfew.signatures import function_of
from clfew.training.device import without_traces

TO_LABEL = "to_label.csv"


@dataclass(frozen=True)
class Chosen:
    """What was chosen. rows: new rows of the list, without numbers. strategy: how, as the list says it;
    "" where nothing was. reason: why so, in words."""

    rows: list[LabelRow]
    strategy: str
    reason: str


@together
def run(settings: SelectSettings) -> tuple[Path, dict[str, Any]]:
    """Chooses images to label and draws a random sample to test on; returns the run folder and what is
    in select.json.

    The folder has to_label.csv: path, label (empty), split, order and how. With `labels`, its first rows
    are those of that list. The result has `source`, `strategy`, `reason`, `encoder`, `images` (of the
    source), `pool` (images to choose from, one of each picture), `chosen` and `test` (paths, the test
    sample whole), `so_far` (how many rows had a label, by split), `how` (how many rows came about in
    each way), `own_test` (whether the source has a test split itself), `list` and `page`. No file of the
    source is changed. Raises UserError.
    """
    folder, result = select_in(settings)
    file = from_here(folder / TO_LABEL)
    console.say(f"page       {from_here(folder / 'to_label.html')}")
    console.say(f"list       {file}: fill in its column label, all rows or as many as you like")
    learn = result["chosen"] or result["so_far"]["rows"]
    labels = f"--labels {shlex.quote(str(file))}"
    console.next_command(f"clfew finetune {labels}" if learn else f"clfew select {labels} --budget 40")
    return folder, result


def select_in(settings: SelectSettings) -> tuple[Path, dict[str, Any]]:
    """Does what `run` does, as a part of another command: reports no command to type next."""
    check_asked(settings)
    check_new(settings.out)
    prepared = prepare(settings)
    drawn = test_sample(prepared)
    picked = _picked(prepared, drawn)
    rows = numbered(prepared.rows, picked.rows + drawn)
    run = new_run("select", settings.out)
    result = _result(prepared, picked, rows, run)
    save(run, prepared, rows, result)
    return run.folder, result


select = function_of(SelectSettings, without_traces(run))


def test_sample(prepared: Prepared) -> list[LabelRow]:
    """Returns the rows of a new random test sample, none where none is asked for or the list has it."""
    settings, pool, before = prepared.settings, prepared.pool, prepared.to_test
    if settings.test is None:
        return []
    if before:
        if len(before) != settings.test:
            count = console.plural(len(before), "image")
            raise UserError(
                f"{settings.labels} has its test sample already, {count}, and --test {settings.test} "
                "would change it: then it is random no longer.",
                "leave out --test.",
            )
        return []
    free = ~np.isin(pool.groups, prepared.groups[[row.index for row in prepared.rows]])
    most = len(np.unique(pool.groups[free])) - (1 if settings.budget else 0)
    if settings.test > most:
        of = " beside those to choose" if settings.budget else ""
        raise UserError(
            f"--test {settings.test} is more than the {max(0, most):,} images that can be drawn{of}, "
            "one of each group or picture.",
            f"use --test {most} or less." if most > 0 else "leave out --budget, or add images.",
        )
    rows = random_sample(pool, free, settings.test, settings.seed)
    how = RANDOM
    if prepared.rows:
        how = f"{RANDOM} (of the rest)"
        console.say(
            "note       the test sample is drawn from what the list does not have: its accuracy is that "
            "on such images, and it tells no class shares; drawn in the first round, it tells both"
        )
    return [LabelRow(int(i), "", "test", None, how, "") for i in pool.images[rows]]


def _picked(prepared: Prepared, drawn: list[LabelRow]) -> Chosen:
    """Returns the rows that are chosen."""
    settings, pool = prepared.settings, prepared.pool
    if settings.budget is None:
        return Chosen([], "", "")
    question = _question(prepared, pool, drawn)
    free = len(question.free)
    if settings.budget > free:
        raise UserError(
            f"--budget {settings.budget} is more than the {free:,} images that are left to choose from, "
            "one of each picture.",
            f"use --budget {free} or less." if free else "all are in the list already.",
        )
    if settings.find is None and settings.strategy == asked.RANDOM:
        rows, how, reason = chosen(question, asked.RANDOM), RANDOM, REASONS[asked.RANDOM]
    else:
        most = max(MOST_CANDIDATES, 2 * (settings.budget + len(prepared.rows)))
        if settings.find is None and len(pool) > most:
            console.say(f"pool       {most:,} of them, drawn at random, are compared")
            some = np.union1d(to_cover(pool.groups, most), question.labelled)
            pool = pool.part(some)
            question = _question(prepared, pool, drawn)
        rows, how, reason = _by_features(prepared, question)
    return Chosen([LabelRow(int(i), "", "train", None, how, "") for i in pool.images[rows]], how, reason)


def _question(prepared: Prepared, pool: Pool, drawn: list[LabelRow]) -> Question:
    """Returns what is asked for, before any features are looked at: copies of images in the list are
    not, nor what belongs together with the test sample."""
    settings, pictures, groups = prepared.settings, prepared.pictures, prepared.groups
    listed = [row.index for row in prepared.rows]
    to_learn = [row.index for row in prepared.to_learn]
    tested = [row.index for row in [*prepared.to_test, *drawn]]
    is_free = ~np.isin(pictures[pool.images], pictures[listed])
    is_free &= ~np.isin(pool.groups, groups[tested])
    order = pool.order(settings.seed)
    return Question(
        pool,
        order[is_free[order]],
        np.flatnonzero(np.isin(pictures[pool.images], pictures[to_learn])),
        np.unique(groups[to_learn]),
        settings.budget or 0,
        settings.seed,
    )


def _by_features(prepared: Prepared, question: Question) -> tuple[np.ndarray, str, str]:
    """Returns the rows that are chosen by their features, how, and why so."""
    settings, pool, start = prepared.settings, question.pool, prepared.start
    assert start is not None
    known, is_clear = prepared.known, len(prepared.known.classes) > 1
    if not is_clear and (settings.strategy == UNCERTAIN or settings.find is not None):
        option = "--find" if settings.find is not None else f"--strategy {UNCERTAIN}"
        number = "one" if known.classes else "no"
        raise UserError(
            f"{prepared.labels_in} has labels of {number} class: there is nothing to tell apart yet.",
            f"label images of two classes at least, or leave out {option}.",
        )
    label = class_of(prepared, settings.find) if settings.find is not None else None
    arrays = (prepared.cache, prepared.source.scale, pool.images)
    codes = pool_codes(start, *arrays, prepared.device, prepared.precision)
    question = replace(question, codes=codes)
    if is_clear:
        question = replace(question, probabilities=_classifier(prepared, question))
    elif known.classes:
        console.say("note       labels of one class make no classifier: images are chosen without one")
    if label is not None:
        how, reason = f"{CHOSEN} (find {settings.find})", f"those likeliest to be {settings.find}"
        return likeliest(question, label), how, reason
    strategy = resolved(settings.strategy, is_clear)
    return chosen(question, strategy), f"{CHOSEN} ({strategy})", reason_of(settings.strategy, strategy)


def _classifier(prepared: Prepared, question: Question) -> Probabilities:
    """Fits a classifier to the labels so far, on a sample of the pool."""
    assert prepared.start is not None and question.codes is not None
    pool, pictures, known = question.pool, prepared.pictures, prepared.known
    # A label may be of another copy of a picture than the one that is in the pool.
    row_of = np.zeros(len(pictures), np.int64)
    row_of[pictures[pool.images]] = np.arange(len(pool))
    rows = row_of[pictures[known.images]]
    sample = question.free[to_cover(pool.groups[question.free])]
    sample = np.union1d(sample, rows)
    probabilities, words = fit_to_codes(
        prepared.start,
        prepared.cache,
        replace(known, images=pool.images[rows]),
        pool.images[sample],
        question.codes(sample),
        prepared.groups,
        prepared.settings.seed,
    )
    console.say(f"classifier {words}")
    return probabilities


def _result(prepared: Prepared, picked: Chosen, rows: list[LabelRow], run: Run) -> dict[str, Any]:
    """Returns the content of select.json."""
    source, names = prepared.source, prepared.source.identities
    new = {row.index for row in picked.rows}
    old = {row.index for row in prepared.rows}
    return {
        "source": source.spec,
        "read_as": source.summary(),
        "strategy": picked.strategy,
        "reason": picked.reason,
        "encoder": prepared.start.words if prepared.start else None,
        "images": len(source),
        "pool": len(prepared.pool),
        "chosen": [names[row.index] for row in rows if row.index in new],
        "test": [names[row.index] for row in rows if _is_tested(prepared, row)],
        "drawn": sum(_is_tested(prepared, row) and row.index not in old for row in rows),
        "so_far": {
            "rows": len(prepared.to_learn),
            "labelled": sum(bool(row.label) for row in prepared.to_learn),
            "test_rows": len(prepared.to_test),
            "test_labelled": sum(bool(row.label) for row in prepared.to_test),
        },
        "own_test": split_to_test(source) is not None,
        "how": counts_of([row.how for row in rows]),
        "list": str(run.folder / TO_LABEL),
        "page": str(run.folder / "to_label.html"),
    }


def _is_tested(prepared: Prepared, row: LabelRow) -> bool:
    """Returns whether a row is of the test sample, of the list so far or drawn now."""
    split = prepared.listed.tested_split if prepared.listed is not None else None
    return row.split == (split or "test")


def save(run: Run, prepared: Prepared, rows: list[LabelRow], result: dict[str, Any]) -> None:
    """Writes to_label.csv, to_label.html, select.json, config.json and bad_images.csv."""
    source, settings = prepared.source, prepared.settings
    config = {
        "command": "select",
        "command_line": command_line(),
        "source": source.spec,
        "group_by": prepared.group_by,
        "content": content_of(source, prepared.cache),
        "split_rule": source.rule,
        "from": result["encoder"],
        "arguments": arguments_of(replace(settings, source=source.spec)),
    }
    run.write_config(config)
    run.write_bad_images(prepared.cache.bad)
    is_grouped = prepared.group_by is not None or any(row.group for row in prepared.rows)
    write_csv(run.folder / TO_LABEL, *cells_of(source, rows, is_grouped))
    write_json(run.folder / "select.json", result)
    write_select_page(run.folder / "to_label.html", source, prepared.cache, rows, result)
