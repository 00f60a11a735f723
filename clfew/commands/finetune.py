"""`clfew finetune`: a classifier from an encoder and a few labels."""

import shlex
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clfew import console
from clfew.data.image_cache import ImageCache, cached_images
from clfew.data.labels import parse_labels, sample_labels
from clfew.data.source import Source
from clfew.data.sources import open_source
from clfew.data.splits import require_testable, test_indices
from clfew.errors import UsageError
from clfew.finetuning.fit import FullSettings, Task
from clfew.finetuning.label_samples import fit_label_samples
from clfew.finetuning.labelled_data import (
    Others,
    bounded,
    check_other_sources,
    find_others,
    find_source,
    other_sources,
    outside,
    pool_features,
    readable,
    with_labels,
)
from clfew.finetuning.metrics import mean_interval, wilson_interval
from clfew.finetuning.start import (
    Start,
    StartSpec,
    find_start,
    open_start,
    restore_start_spec,
    start_spec_row,
)
from clfew.models.artifacts import save_classifier
from clfew.models.classifier import neck_width
from clfew.models.init_weights import AUTO
from clfew.models.metadata import MODES, read_metadata
from clfew.runs.files import digest_of, write_csv, write_json
from clfew.runs.folders import (
    LABELS,
    Run,
    check_new,
    check_same_file,
    check_unchanged,
    command_line,
    from_option,
    new_run,
    read_config,
    resumed_run,
)
from clfew.runs.locks import held
from clfew.training.device import choose_device, choose_precision, set_threads, set_up_as_started
from clfew.training.saving import resumable, stoppable
from clfew.version import __version__


@dataclass(frozen=True)
class Settings:
    """What a run was asked for; kept in its config.json, so that it can be gone on with."""

    source: str | None
    labels: str
    origin: str | None
    init: str
    mode: str
    stage: int
    repeat: int
    encoder: str
    size: int | None
    epochs: float | None
    batch: int | None
    lr: float | None
    flip: bool | None
    seed: int
    precision: str


@dataclass(frozen=True)
class Learned:
    """The images of a run: `pool` to learn from, of which `draws` are labelled, and `test`; and others
    that were pretrained on."""

    source: Source
    cache: ImageCache
    split_seed: int
    pool: np.ndarray
    draws: list[np.ndarray]
    test: np.ndarray
    others: Others | None


def finetune(
    source: str | None = None,
    *,
    labels: str,
    origin: str | None = None,
    init: str = AUTO,
    mode: str = "auto",
    stage: int = 0,
    repeat: int = 1,
    encoder: str = "auto",
    size: int | None = None,
    epochs: float | None = None,
    batch: int | None = None,
    lr: float | None = None,
    flip: bool | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    out: Path | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Fine-tunes on a few labels; returns the run folder and its result.

    source: folder, CSV or hf:NAME; None finds one (see `find_source`). labels: see `parse_labels`.
    origin: a run or artifact, "scratch", or None for the newest pretraining run. init: other weights to
    start from (see `clfew.models.init_weights`); "auto" takes those on this machine where there is no run. stage: of
    the encoder, whose maps features are read from, counted from 1; 0 for its own features. repeat:
    number of label draws; the classifier that is kept is the first one's. encoder, size: of a network
    that does not come from a run. flip: whether mirror images mean the same; None is as in pretraining.
    The result holds `test_images`, the `mean`, `std` and `ci95` of the accuracy on them, and for each of
    `draws` its accuracy and what was decided. Raises UserError; Stopped after a signal.
    """
    check_new(out)
    settings = Settings(
        source,
        labels,
        origin,
        init,
        mode,
        stage,
        repeat,
        encoder,
        size,
        epochs,
        batch,
        lr,
        flip,
        seed,
        precision,
    )
    parse_labels(labels)
    if mode not in ("auto", *MODES):
        raise UsageError(f"--mode {mode} is not known.", f"choose auto, {', '.join(MODES)}.")
    set_threads(threads)
    chosen, _ = choose_device(device)
    found = find_start(origin, init, encoder, chosen)
    described = read_metadata(found.artifact)[0] if found.artifact else None
    settings = replace(settings, source=find_source(source, described, parse_labels(labels)))
    return _run(settings, found, chosen, out, None)


def resume(
    folder: Path, device: str = "auto", threads: int | None = None
) -> tuple[Path, dict[str, Any]]:
    """Goes on with a run that was stopped, on the device and threads it was started with unless others
    are named; returns what `finetune` returns. Raises UserError."""
    with resumed_run(folder, "finetune") as config, stoppable(_resume_command(folder)):
        chosen = set_up_as_started(config, device, threads)
        settings = Settings(**config["arguments"])
        if config["label_digest"]:
            check_same_file(
                Path(settings.labels), config["label_digest"], "whose labels the run was given"
            )
        return _run(settings, restore_start_spec(config["start"], chosen), chosen, None, Run(folder))


def _run(
    settings: Settings, found: StartSpec, device: torch.device, out: Path | None, resumed: Run | None
) -> tuple[Path, dict[str, Any]]:
    spec = parse_labels(settings.labels)
    precision, _ = choose_precision(device, settings.precision)
    described = read_metadata(found.artifact)[0] if found.artifact else None
    assert settings.source is not None
    same_classes = None if found.is_scratch else described
    opened, named = with_labels(open_source(settings.source), spec, same_classes)
    if resumed is not None:
        check_unchanged(resumed.folder, read_config(resumed.folder), opened.digest())
    starts = open_start(
        found,
        opened,
        settings.encoder,
        settings.size,
        settings.flip,
        device,
        settings.seed,
        settings.mode == "auto",
        settings.stage,
    )
    if resumed is not None:
        check_other_sources(resumed.folder, starts, opened)
    split_seed = starts[0].metadata.data.get("pretrain", {}).get("split_seed", settings.seed)
    if named is None:
        require_testable(opened)
    held_out = test_indices(opened, split_seed) if named is None else outside(opened, named, split_seed)
    cache = cached_images(opened, starts[0].metadata.side)
    test = np.intersect1d(held_out[opened.labels[held_out] >= 0], cache.good)
    pool = np.setdiff1d(cache.good, held_out)
    if named is None:
        known = pool[opened.labels[pool] >= 0]
        draws = [sample_labels(opened, known, spec, settings.seed + i) for i in range(settings.repeat)]
    else:
        draws = [readable(opened, named, pool, spec)]
    console.say(
        f"source     {settings.source}: {len(opened.classes)} classes, {len(draws[0])} labels used of "
        f"{len(pool):,} images, {len(test):,} more held out for testing"
    )
    pool = bounded(pool, np.concatenate(draws))
    others = find_others(starts[0], opened, settings.mode, cache.digests[test])
    learned = Learned(opened, cache, split_seed, pool, draws, test, others)
    candidates = []
    for each in starts:
        arguments = (each, cache, pool, others, settings.mode, device, precision)
        candidates.append(
            (
                each,
                Task(
                    cache.pixels,
                    cache.aspects,
                    pool,
                    opened.labels,
                    len(opened.classes),
                    pool_features(*arguments),
                    device,
                    precision,
                ),
            )
        )
    if resumed is not None:
        return resumed.folder, _fit(settings, found, learned, candidates, resumed, False)
    run = new_run("finetune", out)
    labels = str(spec.file.resolve()) if spec.file else settings.labels
    with held(run.folder):
        run.write_config(
            {
                "command": "finetune",
                "command_line": command_line(),
                "source": opened.spec,
                "labels": settings.labels,
                "digest": opened.digest(),
                "start": start_spec_row(found),
                "pretrained_on": other_sources(starts, opened),
                "device": str(device),
                "threads": torch.get_num_threads(),
                "label_digest": digest_of(spec.file) if spec.file else None,
                "arguments": asdict(replace(settings, source=opened.spec, labels=labels)),
            }
        )
        return run.folder, _fit(settings, found, learned, candidates, run, True)


def _resume_command(folder: Path) -> str:
    return f"clfew finetune --resume {shlex.quote(str(folder))}"


def _fit(
    settings: Settings,
    found: StartSpec,
    learned: Learned,
    candidates: list[tuple[Start, Task]],
    run: Run,
    is_new: bool,
) -> dict[str, Any]:
    opened, cache, test = learned.source, learned.cache, learned.test
    with resumable(run, _resume_command(run.folder), is_new) as trainings:
        full_settings = FullSettings(settings.epochs, settings.batch, settings.lr)
        results, kept = fit_label_samples(
            candidates,
            opened,
            learned.draws,
            test,
            settings.mode,
            settings.seed,
            full_settings,
            run,
            trainings,
        )
        start, classifier, decided, drawn = kept
        spec = parse_labels(settings.labels)
        used = {
            "source": opened.spec,
            "fingerprint": opened.fingerprint,
            "split_seed": learned.split_seed,
            "labels": len(drawn),
            "label_file": str(spec.file.resolve()) if spec.file else None,
            "test_images": len(test),
        }
        config = read_config(run.folder)
        labels = config.get("labels", settings.labels)
        typed = {"command": config.get("command_line", ""), "labels": labels}
        metadata = replace(
            start.metadata,
            kind="classifier",
            classes=opened.classes,
            mode=decided["mode"],
            neck=neck_width(classifier.neck),
            flip=start.flip,
            temperature=classifier.temperature,
            clfew_version=__version__,
            training={**start.metadata.training, "finetune": typed | {"seed": settings.seed, **decided}},
            data={**({} if found.is_scratch else start.metadata.data), "finetune": used},
        )
        result = _summary(results, len(test))
        task = candidates[0][1]
        run.write_config(
            config
            | {
                "from": str(start.artifact.resolve() if start.artifact else found.words),
                "mode": settings.mode,
                "seed": settings.seed,
                "repeat": len(learned.draws),
                **used,
                "labels": labels,
                "device": str(task.device),
                "precision": task.precision,
                "threads": torch.get_num_threads(),
                "about": asdict(metadata),
            }
        )
        write_csv(
            run.folder / LABELS,
            ["path", "label"],
            [(opened.identities[i], opened.classes[opened.labels[i]]) for i in drawn],
        )
        run.write_bad_images([*cache.bad, *(learned.others.bad if learned.others else [])])
        write_json(run.folder / "result.json", result)
        path = run.folder / "classifier.safetensors"
        seen = start.seen
        if learned.others and decided["mode"] == "propagate":  # Weights as they were have seen none.
            seen = np.union1d(seen, learned.others.cache.digests[learned.others.indices])
        save_classifier(path, classifier, metadata, seen, cache.digests[drawn])
    console.say(f"mode       {decided['mode']} ({decided.get('reason', 'as asked for')})")
    console.say(f"saved      {path}")
    option = from_option(path, "finetune")
    if len(test):
        console.next_command(f"clfew eval{option}")
    console.next_command(f"clfew predict IMAGE{option}")
    return result


def _summary(draws: list[dict[str, Any]], tested: int) -> dict[str, Any]:
    """Mean, spread and 95 % interval of the accuracy over the draws; of one draw, its own interval."""
    summary: dict[str, Any] = {"test_images": tested, "draws": draws}
    if not tested:
        return summary
    accuracies = [draw["accuracy"] for draw in draws]
    mean = float(np.mean(accuracies))
    if len(draws) == 1:
        interval = wilson_interval(round(mean * tested), tested)
        return summary | {"mean": mean, "std": 0.0, "ci95": list(interval)}
    spread = float(np.std(accuracies, ddof=1))
    return summary | {"mean": mean, "std": spread, "ci95": list(mean_interval(accuracies))}
