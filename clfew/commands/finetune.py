"""`clfew finetune`: trains a classifier from an encoder and a few labels."""

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clfew import console
from clfew.commands.finetuning import Prepared, origins_of, prepare
from clfew.data.content import content_of
from clfew.data.label_lists import RANDOM, counts_of, group_cells
from clfew.data.labels import parse_labels
from clfew.data.sources import open_source
from clfew.errors import UsageError
from clfew.finetuning.class_shares import class_shares
from clfew.finetuning.evidence import evidence_of_labels, evidence_of_test
from clfew.finetuning.expected_counts import expected_counts
from clfew.finetuning.find_start import find_starts, restored_start, start_row
from clfew.finetuning.fit import FullSettings
from clfew.finetuning.label_samples import Fitted, SampleFitting, fit_label_samples
from clfew.finetuning.labelled_data import contradiction_rows
from clfew.finetuning.other_sources import other_sources
from clfew.finetuning.places import find_source, group_by_of_list
from clfew.finetuning.tested import report_of_test, summary_of
from clfew.group.command import together
from clfew.models.artifacts import save_classifier
from clfew.models.classifier import neck_width
from clfew.models.init_weights import InitWeights
from clfew.models.metadata import MODES, ArtifactMetadata, read_metadata
from clfew.report.card import write_card
from clfew.runs.files import digest_of, write_csv, write_json
from clfew.runs.folders import (
    ARTIFACTS,
    LABELS,
    Run,
    check_new,
    check_same_file,
    command_line,
    from_option,
    new_run,
    read_config,
    resumed_run,
)
from clfew.runs.locks import held
from clfew.settings import FinetuneSettings, arguments_of, labels_of
from clfew.signatures import function_of
from clfew.training.device import (
    choose_device,
    set_threads,
    set_up_as_started,
    without_traces,
)
from clfew.training.saving import resumable, stoppable
from clfew.version import __version__


@together
def run(settings: FinetuneSettings) -> tuple[Path, dict[str, Any]]:
    """Fine-tunes on a few labels; returns the run folder and its result.

    The classifier of the first label sample is kept, in classifier.safetensors. The result holds
    `test_images`, the `mean`, `std` and `ci95` of the accuracy on them, and `draws` with the accuracy
    and the decisions for each label sample; `baselines`, the means of what a user would think of first
    (see `tested.baselines`); `test_report`, what `metrics.classification_report` says of the classifier
    that is kept; `expected_counts`, how many images each class has (see `expected_counts`);
    where the test images are a random sample of a list, also `class_shares`, the share of each class
    among all images (see `class_shares`). Raises UserError; raises Stopped after a signal.
    """
    folder, result = finetune_in(settings)
    say_next(folder, result)
    return folder, result


finetune = function_of(FinetuneSettings, without_traces(run))


@together
def resume(
    folder: Path, device: str = "auto", threads: int | None = None, source: str | None = None
) -> tuple[Path, dict[str, Any]]:
    """Resumes a run that was stopped and returns what `finetune` returns.

    It runs on the device and threads that it was started with unless others are given. source: where the
    images are now. Raises UserError.
    """
    with resumed_run(folder, "finetune") as config, stoppable(_resume_command(folder)):
        chosen = set_up_as_started(config, device, threads)
        settings = FinetuneSettings(**config["arguments"])
        settings = replace(settings, source=open_source(source).spec) if source else settings
        if config["label_digest"]:
            labels = Path(labels_of(settings))
            check_same_file(labels, config["label_digest"], "the run's label file")
        starts = config["start"] if isinstance(config["start"], list) else [config["start"]]
        found = [restored_start(row, chosen) for row in starts]
        prepared = prepare(settings, found, chosen, folder)
        result = fit_and_save(prepared, Run(folder), is_new=False)
    say_next(folder, result)
    return folder, result


def finetune_in(settings: FinetuneSettings) -> tuple[Path, dict[str, Any]]:
    """Does what `run` does, as a part of another command: reports no command to type next."""
    settings, found, device = resolve(settings)
    prepared = prepare(settings, found, device)
    new = new_run("finetune", settings.out)
    with held(new.folder):
        create(new, prepared, device)
        return new.folder, fit_and_save(prepared, new, is_new=True)


def resolve(
    settings: FinetuneSettings,
) -> tuple[FinetuneSettings, list[Path | InitWeights | None], torch.device]:
    """Checks the settings, and finds where to start and the labelled images. Raises UserError."""
    check_new(settings.out)
    spec = parse_labels(labels_of(settings))
    if settings.mode not in ("auto", *MODES):
        raise UsageError(f"--mode {settings.mode} is not known.", f"choose auto, {', '.join(MODES)}.")
    set_threads(settings.threads)
    device, _ = choose_device(settings.device)
    found = find_starts(origins_of(settings), settings.init, settings.encoder, device)
    if len(found) > 1 and settings.stage:
        raise UsageError(
            "--stage reads the features of one network, and there are several to choose from.",
            "name one with --from.",
        )
    metadata = read_metadata(found[0])[0] if isinstance(found[0], Path) else None
    source = find_source(settings.source, metadata, spec)
    group_by = settings.group_by or group_by_of_list(spec)
    return replace(settings, source=source, group_by=group_by), found, device


def create(run: Run, prepared: Prepared, device: torch.device) -> None:
    """Writes what a new run needs to be resumed."""
    settings, opened = prepared.settings, prepared.learned.source
    listed = parse_labels(labels_of(settings)).listed
    labels = listed.spec() if listed else settings.labels
    origins = origins_of(settings)
    run.write_config(
        {
            "command": "finetune",
            "command_line": command_line(),
            "source": opened.spec,
            "labels": settings.labels,
            "split_rule": prepared.learned.split_rule,
            "group_by": prepared.group_by,
            "shares": prepared.learned.class_shares,
            "metric": prepared.metric,
            "digest": opened.digest(),
            "content": content_of(opened, prepared.learned.cache),
            "pixels": opened.scale.as_data() if opened.scale else None,
            "start": [start_row(each) for each in prepared.found],
            "pretrained_on": other_sources([start for start, _ in prepared.candidates], opened),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "label_digest": digest_of(listed.file) if listed else None,
            "arguments": arguments_of(
                replace(settings, source=opened.spec, labels=labels, origin=origins or None)
            ),
        }
    )


def _resume_command(folder: Path) -> str:
    return f"clfew finetune --resume {shlex.quote(str(folder))}"


def fit_and_save(prepared: Prepared, run: Run, is_new: bool) -> dict[str, Any]:
    """Fits a classifier to each label sample, saves the first one and returns the result."""
    settings, learned = prepared.settings, prepared.learned
    with resumable(run, _resume_command(run.folder), is_new) as trainings:
        fitting = SampleFitting(
            [(start, replace(task, trainings=trainings)) for start, task in prepared.candidates],
            learned.source,
            learned.test,
            settings.mode,
            settings.seed,
            FullSettings(settings.epochs, settings.batch, settings.lr),
            run,
            learned.class_shares,
            prepared.hows,
            prepared.metric,
        )
        rows, fitted = fit_label_samples(fitting, learned.label_samples, trainings)
        drawn = len(learned.label_samples[0]) / max(1, len(learned.known))
        groups = None if learned.groups is None else learned.groups[learned.test]
        result = summary_of(rows, len(learned.test), drawn, groups)
        result |= {"read_as": learned.source.summary(), **_origins(prepared, fitted.labelled)}
        result |= {"test_sample": len(prepared.test_sample)}
        if _is_random_sample(prepared):
            result["class_shares"] = class_shares(fitting, fitted)
        elif prepared.test_sample:
            console.say(
                "note       no class shares: they need a random sample of all images, all labelled"
            )
        result["expected_counts"] = expected_counts(
            fitted.task,
            fitted.labelled,
            prepared.hows(fitted.labelled),
            learned.source.classes,
            learned.test,
            result.get("class_shares"),
        )
        if fitted.test_logits is not None:
            labels = learned.source.labels[learned.test]
            report = report_of_test(fitted.test_logits, labels, learned.source.classes, groups)
            result["test_report"] = report
        _save(prepared, run, fitted, result)
    decided = fitted.decided
    console.say(f"mode       {decided['mode']} ({decided.get('reason', 'as asked for')})")
    console.say(f"saved      {run.folder / ARTIFACTS['finetune']}")
    return result


def _is_random_sample(prepared: Prepared) -> bool:
    """Returns whether the test images are a whole sample that was drawn at random from all images: if
    some were left out, or it was drawn from what other labels had left, it tells no class shares."""
    good = set(prepared.learned.cache.good.tolist())
    sample = {row.index for row in prepared.test_sample} & good
    is_random = all(row.how == RANDOM for row in prepared.test_sample)
    return bool(sample) and is_random and sample == set(prepared.learned.test.tolist())


def _save(prepared: Prepared, run: Run, fitted: Fitted, result: dict[str, Any]) -> None:
    """Writes the settings as they were resolved, the label sample, the result and the classifier."""
    settings, learned, start = prepared.settings, prepared.learned, fitted.start
    opened, cache = learned.source, learned.cache
    listed = parse_labels(labels_of(settings)).listed
    used = {
        "source": opened.spec,
        "fingerprint": opened.fingerprint,
        "content": content_of(opened, cache),
        "pixels": opened.scale.as_data() if opened.scale else None,
        "split_seed": learned.split_seed,
        "split_rule": learned.split_rule,
        "group_by": prepared.group_by,
        "labels": len(fitted.labelled),
        "label_file": str(listed.file.resolve()) if listed else None,
        "label_columns": [listed.path_column, listed.label_column] if listed else [None, None],
        "test_images": len(learned.test),
        "test_sample": len(prepared.test_sample),
        **_origins(prepared, fitted.labelled),
    }
    config = read_config(run.folder)
    labels = config.get("labels", settings.labels)
    metadata = _metadata(
        prepared, fitted, used, {"command": config.get("command_line", ""), "labels": labels}
    )
    task = prepared.candidates[0][1]
    resolved = {
        "from": start.words,
        "chosen_from": [each.words for each, _ in prepared.candidates],
        "mode": settings.mode,
        "seed": settings.seed,
        "repeat": len(learned.label_samples),
        **used,
        "labels": labels,
        "device": str(task.device),
        "precision": task.precision,
        "threads": torch.get_num_threads(),
        "about": asdict(metadata),
    }
    run.write_config(config | resolved)
    write_csv(run.folder / LABELS, *_label_table(prepared, fitted.labelled))
    if rows := contradiction_rows(learned):
        write_csv(run.folder / "contradictions.csv", ["path", "label", "file"], rows)
    run.write_bad_images([*cache.bad, *(learned.others.bad if learned.others else [])])
    write_json(run.folder / "result.json", result)
    write_card(run.folder, metadata, result)
    seen = start.seen
    if fitted.decided["mode"] == "propagate":
        # Propagation uses these images even if the start was not trained on them.
        unlabelled = np.setdiff1d(learned.pool, fitted.labelled)
        seen = np.union1d(seen, cache.digests[unlabelled])
        if learned.others:
            seen = np.union1d(seen, learned.others.cache.digests[learned.others.indices])
    path = run.folder / ARTIFACTS["finetune"]
    taught = np.union1d(start.taught, cache.digests[fitted.labelled])
    origins = set(result["test_origins"])
    evidence = evidence_of_test(fitted.task, fitted.test_logits, learned.test, origins)
    evidence |= evidence_of_labels(fitted.task, fitted.labelled, fitted.held_out)
    save_classifier(path, fitted.classifier, metadata, seen, taught, evidence)


def _origins(prepared: Prepared, labelled: np.ndarray) -> dict[str, dict[str, int]]:
    """Returns how many of the labels that were learned, and of those of a list that were tested on, came
    about in each way."""
    tested = set(prepared.learned.test.tolist())
    of_test = [row.how for row in prepared.test_sample if row.index in tested]
    return {"label_origins": counts_of(prepared.hows(labelled)), "test_origins": counts_of(of_test)}


def _label_table(prepared: Prepared, labelled: np.ndarray) -> tuple[list[str], list[tuple[str, ...]]]:
    """Returns the columns and rows of labels.csv: of the labels that were learned, and of the list's
    test sample. As a list of labels it says the same as the list that was given."""
    source, listed = prepared.learned.source, prepared.listed
    rows: list[tuple[str, ...]] = [
        (source.identities[i], source.classes[source.labels[i]], "train", how)
        for i, how in zip(labelled, prepared.hows(labelled), strict=True)
    ]
    columns = ["path", "label", "split", "how"]
    if listed is None:
        return columns, rows
    learned = {row.index: row for row in listed.to_learn}
    listed_rows = [learned[i] for i in labelled.tolist()]
    is_grouped = prepared.group_by is not None or any(row.group for row in listed.rows)
    # Rows without a label are needed for their groups.
    skipped = [row for row in listed.to_learn if not row.label] if is_grouped else []
    sample = {row.index for row in prepared.test_sample}
    for row in sorted([*skipped, *prepared.test_sample], key=lambda row: row.index):
        split = "test" if row.index in sample else "train"
        rows.append((source.identities[row.index], row.label, split, row.how))
        listed_rows.append(row)
    if not is_grouped:
        return columns, rows
    groups = group_cells(source, listed_rows)
    return [*columns, "group"], [(*row, group) for row, group in zip(rows, groups, strict=True)]


def _metadata(
    prepared: Prepared, fitted: Fitted, used: dict[str, Any], typed: dict[str, Any]
) -> ArtifactMetadata:
    """Returns the metadata of the classifier. used: the data it was fitted to. typed: the command."""
    start, classifier, decided = fitted.start, fitted.classifier, fitted.decided
    training = typed | {"seed": prepared.settings.seed, **decided}
    before = start.metadata.data if start.is_pretrained else {}
    return replace(
        start.metadata,
        kind="classifier",
        classes=prepared.learned.source.classes,
        mode=decided["mode"],
        neck=neck_width(classifier.neck),
        flip=start.flip,
        temperature=classifier.temperature,
        clfew_version=__version__,
        training={**start.metadata.training, "finetune": training},
        data={**before, "finetune": used},
    )


def say_next(folder: Path, result: dict[str, Any]) -> None:
    """Reports the commands to type after a run."""
    option = from_option(folder / ARTIFACTS["finetune"], "finetune")
    if result["test_images"]:
        console.next_command(f"clfew eval{option}")
    console.next_command(f"clfew predict IMAGE{option}")
