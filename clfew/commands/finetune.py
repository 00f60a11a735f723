"""`clfew finetune`: trains a classifier from an encoder and a few labels."""

import shlex
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clfew import console
from clfew.data.content import check_content, content_of
from clfew.data.find_scale import with_scale
from clfew.data.groups import grouped, groups_of
from clfew.data.held_out import NONE, SPLIT_RULE
from clfew.data.image_cache import cached_images
from clfew.data.labels import parse_labels, sample_labels
from clfew.data.pixel_scale import scale_from
from clfew.data.source import Source
from clfew.data.sources import open_source, say_source
from clfew.data.splits import require_groups_to_test, require_testable
from clfew.errors import UsageError, UserError
from clfew.finetuning.find_start import find_starts, restored_start, start_row
from clfew.finetuning.fit import FullSettings, Task
from clfew.finetuning.label_samples import Fitted, SampleFitting, fit_label_samples
from clfew.finetuning.labelled_data import (
    LabelledData,
    bounded,
    check_other_sources,
    contradiction_rows,
    find_others,
    find_source,
    held_out_of,
    kept_group_by,
    labelled_data,
    lists_all,
    other_sources,
    own_features_of_pool,
    pool_features,
    readable,
    say_groups,
    uses_features,
    with_labels,
)
from clfew.finetuning.metrics import accuracy_interval, deviation, unpacked
from clfew.finetuning.places import known_as, renamed, say_moved
from clfew.finetuning.start import Network, Start, open_starts, relocated, side_by_side
from clfew.models.artifacts import save_classifier
from clfew.models.classifier import neck_width
from clfew.models.init_weights import SCRATCH, InitWeights
from clfew.models.kept_scale import scaled
from clfew.models.metadata import MODES, ArtifactMetadata, read_metadata
from clfew.quality.pixels import say_check
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
from clfew.settings import FinetuneSettings, arguments_of, bands_of, function_of, labels_of
from clfew.training.device import (
    choose_device,
    choose_precision,
    set_threads,
    set_up_as_started,
    without_traces,
)
from clfew.training.saving import resumable, stoppable
from clfew.version import __version__

SEEN = 0.1
"""Starts that hold out the same images may still have seen a few of them, by copies elsewhere. Of those
that hold out others, one has seen most of the other's."""


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to fit, new or resumed. found: where the starts are (see
    `find_starts`). group_by: see `groups.grouped`. candidates: the starts to choose from, with their
    tasks."""

    settings: FinetuneSettings
    found: list[Path | InitWeights | None]
    learned: LabelledData
    group_by: str | None
    candidates: list[tuple[Start, Task]]


def run(settings: FinetuneSettings) -> tuple[Path, dict[str, Any]]:
    """Fine-tunes on a few labels; returns the run folder and its result.

    The classifier of the first label sample is kept, in classifier.safetensors. The result holds
    `test_images`, the `mean`, `std` and `ci95` of the accuracy on them, and `draws` with the accuracy
    and the decisions for each label sample. Raises UserError; raises Stopped after a signal.
    """
    folder, result = finetune_in(settings)
    _say_next(folder, result)
    return folder, result


finetune = function_of(FinetuneSettings, without_traces(run))


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
    _say_next(folder, result)
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
    return replace(settings, source=find_source(settings.source, metadata, spec)), found, device


def prepare(
    settings: FinetuneSettings,
    found: list[Path | InitWeights | None],
    device: torch.device,
    resumed: Path | None = None,
) -> Prepared:
    """Opens the images and loads the starts. resumed: the folder of a run that is resumed, whose images
    must be those that it was started with. Raises UserError."""
    spec = parse_labels(labels_of(settings))
    split_rule = read_config(resumed).get("split_rule", 1) if resumed else SPLIT_RULE
    precision, _ = choose_precision(device, settings.precision)
    from_scratch = SCRATCH in (*origins_of(settings), settings.init)
    before = [read_metadata(file)[0] for file in found if isinstance(file, Path)]
    opened = open_source(settings.source or "", split_rule)
    config = read_config(resumed) if resumed else {}
    known = known_as(opened, before)
    say_moved(opened, known)
    before = [renamed(each, known, opened.spec) for each in before]
    group_by = _group_by(settings, config, before, opened, from_scratch)
    before = [] if from_scratch else before
    opened, listed = with_labels(grouped(opened, group_by), spec, before)
    if resumed is None:
        if not lists_all(opened, listed):
            require_groups_to_test(opened, group_by)
        opened = scaled(opened, bands_of(settings), before)
    elif kept := scale_from(read_config(resumed).get("pixels")):
        opened = with_scale(opened, kept=kept)
    say_source(opened)
    if resumed is not None:
        check_content(resumed, read_config(resumed), opened)
    network = Network(
        settings.encoder,
        settings.size,
        settings.flip,
        settings.stage,
        settings.seed,
        split_rule=split_rule,
        from_scratch=from_scratch,
    )
    starts = open_starts(found, opened, network, device, compare=settings.mode == "auto")
    # A run that is resumed has checked its images, also where its start does not tell their content.
    known |= {config["source"]} if resumed else set()
    starts = [relocated(start, known, opened.spec) for start in starts]
    if resumed is not None:
        check_other_sources(resumed, starts, opened)
    learned = _open_images(settings, starts, opened, listed, split_rule)
    if len(found) > 1:
        _check_held_out(starts, learned)
    if len(found) > 1 and settings.mode != "full":
        # In mode "full" it is one network that is trained.
        own = partial(own_features_of_pool, learned=learned, device=device, precision=precision)
        starts = [side_by_side(starts, own), *starts]
    candidates = [(each, _task(each, learned, settings.mode, device, precision)) for each in starts]
    return Prepared(settings, found, learned, group_by, candidates)


def _group_by(
    settings: FinetuneSettings,
    config: dict[str, Any],
    before: list[ArtifactMetadata],
    opened: Source,
    from_scratch: bool,
) -> str | None:
    """Returns by what the images are grouped: as they were before, else as the user says. From scratch,
    they are grouped as for the pretrained network, to compare with, unless the user says otherwise.
    config: of a run that is resumed. before: of the artifacts found. Raises UsageError."""
    kept_by = config["group_by"] if "group_by" in config else kept_group_by(before, opened)
    if kept_by and settings.group_by not in (None, kept_by) and not from_scratch:
        raise UsageError(
            f"--group-by {settings.group_by} holds out other images than those that {opened.spec} was "
            f"grouped by before ({kept_by}).",
            "leave out --group-by, or pretrain with the same one.",
        )
    return settings.group_by or kept_by


def _task(start: Start, learned: LabelledData, mode: str, device: torch.device, precision: str) -> Task:
    """Returns what classifiers from a start are fitted to."""
    features = pool_features(start, learned.cache, learned.pool, learned.others, mode, device, precision)
    return Task(
        learned.cache.pixels,
        learned.cache.aspects,
        learned.pool,
        learned.source.labels,
        len(learned.source.classes),
        features,
        device,
        precision,
        is_scaled=bool(start.metadata.parts),
        groups=learned.groups,
    )


def _open_images(
    settings: FinetuneSettings,
    starts: list[Start],
    opened: Source,
    listed: np.ndarray | None,
    split_rule: int,
) -> LabelledData:
    """Returns the images to learn from and to test on, and the label samples. listed: the images that a
    label CSV lists. Raises UserError."""
    spec = parse_labels(labels_of(settings))
    start = starts[0]
    # Where several are named, that of one which has learned from this source.
    split_seed = _split_seed(
        settings, next((s for s in starts if opened.spec in _sources_of(s)), start), opened
    )
    if listed is None:
        require_testable(opened)
    cache = cached_images(opened, max(each.metadata.side for each in starts))
    held_out = held_out_of(opened, split_seed, listed, groups_of(opened, cache))
    if listed is not None:
        listed = readable(opened, listed, np.setdiff1d(cache.good, held_out), spec)
    learned = NONE if listed is None else listed
    data = labelled_data(opened, cache, held_out, split_seed, split_rule, learned)
    label_samples = (
        [listed]
        if listed is not None
        else [sample_labels(opened, data.known, spec, settings.seed + i) for i in range(settings.repeat)]
    )
    always = np.concatenate(label_samples)
    console.say(
        f"source     {settings.source}: {len(opened.classes)} classes, {len(label_samples[0])} labels "
        f"used of {len(data.pool):,} images, {len(data.test):,} more held out for testing"
    )
    say_groups(data)
    say_check(opened, cache, settings.source or "")
    if learned_too := int(
        np.isin(cache.digests[data.test], np.unique(np.concatenate([s.seen for s in starts]))).sum()
    ):
        console.say(
            f"note       {learned_too:,} of the images held out for testing were learned from, without "
            "labels, by what is started from: it held out others"
        )
    # Mode "full" looks at no image without a label.
    has_use = uses_features(start, settings.mode)
    pool = bounded(data.pool, always, "for their features") if has_use else data.pool
    return replace(
        data,
        pool=pool,
        label_samples=label_samples,
        others=find_others(starts, opened, settings.mode, cache.digests[data.test]),
    )


def _check_held_out(starts: list[Start], learned: LabelledData) -> None:
    """Raises UserError if some starts have learned from the images to test on and others have not: then
    they have held out different images, under one name or another."""
    test = learned.cache.digests[learned.test]
    if not len(test):
        return
    seen = {s.words: float(np.isin(test, np.union1d(s.seen, s.taught)).mean()) for s in starts}
    most, least = max(seen, key=seen.__getitem__), min(seen, key=seen.__getitem__)
    if seen[most] - seen[least] > SEEN:
        raise UserError(
            f"{most} and {least} hold out different images of {learned.source.spec} for testing: "
            f"{seen[most]:.0%} of those of the second were learned from by the first.",
            "pretrain both with the same --seed, or name a source with a test split of its own.",
        )


def _sources_of(start: Start) -> set[str]:
    """Returns the sources that a start has learned from."""
    return {step["source"] for step in start.metadata.data.values() if "source" in step}


def _split_seed(settings: FinetuneSettings, start: Start, opened: Source) -> int:
    """Returns the seed of the test split: that with which the start held images out, of this source with
    labels or of any without, else the seed of the run."""
    before = start.metadata.data
    of_labels = before.get("finetune", {})
    if "pretrain" not in before and of_labels.get("source") == opened.spec:
        return int(of_labels["split_seed"])
    return int(before.get("pretrain", {}).get("split_seed", settings.seed))


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
        )
        rows, fitted = fit_label_samples(fitting, learned.label_samples, trainings)
        drawn = len(learned.label_samples[0]) / max(1, len(learned.known))
        groups = None if learned.groups is None else learned.groups[learned.test]
        result = _summary(rows, len(learned.test), drawn, groups)
        result |= {"read_as": learned.source.summary()}
        _save(prepared, run, fitted, result)
    decided = fitted.decided
    console.say(f"mode       {decided['mode']} ({decided.get('reason', 'as asked for')})")
    console.say(f"saved      {run.folder / ARTIFACTS['finetune']}")
    return result


def origins_of(settings: FinetuneSettings) -> list[str]:
    """Returns what `--from` names: from Python it may be one name, too."""
    origin = settings.origin or []
    return [str(origin)] if isinstance(origin, (str, Path)) else [str(each) for each in origin]


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
    names = [(opened.identities[i], opened.classes[opened.labels[i]]) for i in fitted.labelled]
    write_csv(run.folder / LABELS, ["path", "label"], names)
    if rows := contradiction_rows(learned):
        write_csv(run.folder / "contradictions.csv", ["path", "label", "file"], rows)
    run.write_bad_images([*cache.bad, *(learned.others.bad if learned.others else [])])
    write_json(run.folder / "result.json", result)
    seen = start.seen
    if fitted.decided["mode"] == "propagate":
        # Propagation uses these images even if the start was not trained on them.
        unlabelled = np.setdiff1d(learned.pool, fitted.labelled)
        seen = np.union1d(seen, cache.digests[unlabelled])
        if learned.others:
            seen = np.union1d(seen, learned.others.cache.digests[learned.others.indices])
    path = run.folder / ARTIFACTS["finetune"]
    taught = np.union1d(start.taught, cache.digests[fitted.labelled])
    save_classifier(path, fitted.classifier, metadata, seen, taught)


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


def _say_next(folder: Path, result: dict[str, Any]) -> None:
    """Reports the commands to type after a run."""
    option = from_option(folder / ARTIFACTS["finetune"], "finetune")
    if result["test_images"]:
        console.next_command(f"clfew eval{option}")
    console.next_command(f"clfew predict IMAGE{option}")


def _summary(
    samples: list[dict[str, Any]], tested: int, drawn: float, groups: np.ndarray | None
) -> dict[str, Any]:
    """Returns the mean, standard deviation and 95 % interval of the accuracy over the label samples, of
    which each holds the fraction `drawn` of all labels (see `metrics.accuracy_interval`). groups: of the
    test images."""
    correct = [
        unpacked(sample.pop("correct", None), sample["accuracy"], tested) for sample in samples if tested
    ]
    summary: dict[str, Any] = {"test_images": tested, "draws": samples}
    if not tested:
        return summary
    accuracies = [sample["accuracy"] for sample in samples]
    return summary | {
        "mean": float(np.mean(accuracies)),
        "std": deviation(np.array(accuracies)),
        "ci95": list(accuracy_interval(np.stack(correct), drawn, groups)),
    }
