"""`clfew finetune`: trains a classifier from an encoder and a few labels."""

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
    OtherImages,
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
    """The options of a run. They are kept in its config.json, so that the run can be resumed."""

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
    """The images of a run.

    pool: indices of the images to learn from. label_samples: for each label sample, the indices of its
    labelled images. test: indices of the test images. others: pretraining images from another source.
    """

    source: Source
    cache: ImageCache
    split_seed: int
    pool: np.ndarray
    label_samples: list[np.ndarray]
    test: np.ndarray
    others: OtherImages | None


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
    start from (see `clfew.models.init_weights`); if there is no run, "auto" takes pretrained weights
    found on this machine. mode: "auto" or one of MODES. stage: the stage of the encoder whose feature
    maps are the features, counted from 1; 0 for the encoder's output. repeat: number of label samples;
    the classifier of the first one is kept. encoder, size: the network and its input size if it does not
    come from a run. flip: whether mirror images mean the same; None is as in pretraining. The result
    holds `test_images`, the `mean`, `std` and `ci95` of the accuracy on them, and `draws` with the
    accuracy and the decisions for each label sample. Raises UserError; raises Stopped after a signal.
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
    start_spec = find_start(origin, init, encoder, chosen)
    start_metadata = read_metadata(start_spec.artifact)[0] if start_spec.artifact else None
    settings = replace(settings, source=find_source(source, start_metadata, parse_labels(labels)))
    return _run(settings, start_spec, chosen, out, None)


def resume(
    folder: Path, device: str = "auto", threads: int | None = None
) -> tuple[Path, dict[str, Any]]:
    """Resumes a run that was stopped and returns what `finetune` returns.

    It runs on the device and threads that it was started with unless others are given. Raises UserError.
    """
    with resumed_run(folder, "finetune") as config, stoppable(_resume_command(folder)):
        chosen = set_up_as_started(config, device, threads)
        settings = Settings(**config["arguments"])
        if config["label_digest"]:
            check_same_file(Path(settings.labels), config["label_digest"], "the run's label file")
        return _run(settings, restore_start_spec(config["start"], chosen), chosen, None, Run(folder))


def _run(
    settings: Settings,
    start_spec: StartSpec,
    device: torch.device,
    out: Path | None,
    resumed: Run | None,
) -> tuple[Path, dict[str, Any]]:
    spec = parse_labels(settings.labels)
    precision, _ = choose_precision(device, settings.precision)
    start_metadata = read_metadata(start_spec.artifact)[0] if start_spec.artifact else None
    assert settings.source is not None
    same_classes = None if start_spec.is_scratch else start_metadata
    opened, listed = with_labels(open_source(settings.source), spec, same_classes)
    if resumed is not None:
        check_unchanged(resumed.folder, read_config(resumed.folder), opened.digest())
    starts = open_start(
        start_spec,
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
    if listed is None:
        require_testable(opened)
    held_out = (
        test_indices(opened, split_seed) if listed is None else outside(opened, listed, split_seed)
    )
    cache = cached_images(opened, starts[0].metadata.side)
    test = np.intersect1d(held_out[opened.labels[held_out] >= 0], cache.good)
    pool = np.setdiff1d(cache.good, held_out)
    if listed is None:
        known = pool[opened.labels[pool] >= 0]
        label_samples = [
            sample_labels(opened, known, spec, settings.seed + i) for i in range(settings.repeat)
        ]
    else:
        label_samples = [readable(opened, listed, pool, spec)]
    console.say(
        f"source     {settings.source}: {len(opened.classes)} classes, {len(label_samples[0])} labels "
        f"used of {len(pool):,} images, {len(test):,} more held out for testing"
    )
    pool = bounded(pool, np.concatenate(label_samples))
    others = find_others(starts[0], opened, settings.mode, cache.digests[test])
    learned = Learned(opened, cache, split_seed, pool, label_samples, test, others)
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
        return resumed.folder, _fit(settings, start_spec, learned, candidates, resumed, False)
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
                "start": start_spec_row(start_spec),
                "pretrained_on": other_sources(starts, opened),
                "device": str(device),
                "threads": torch.get_num_threads(),
                "label_digest": digest_of(spec.file) if spec.file else None,
                "arguments": asdict(replace(settings, source=opened.spec, labels=labels)),
            }
        )
        return run.folder, _fit(settings, start_spec, learned, candidates, run, True)


def _resume_command(folder: Path) -> str:
    return f"clfew finetune --resume {shlex.quote(str(folder))}"


def _fit(
    settings: Settings,
    start_spec: StartSpec,
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
            learned.label_samples,
            test,
            settings.mode,
            settings.seed,
            full_settings,
            run,
            trainings,
        )
        start, classifier, decided, labelled = kept
        spec = parse_labels(settings.labels)
        used = {
            "source": opened.spec,
            "fingerprint": opened.fingerprint,
            "split_seed": learned.split_seed,
            "labels": len(labelled),
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
            data={**({} if start_spec.is_scratch else start.metadata.data), "finetune": used},
        )
        result = _summary(results, len(test))
        task = candidates[0][1]
        run.write_config(
            config
            | {
                "from": str(start.artifact.resolve() if start.artifact else start_spec.words),
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
        )
        write_csv(
            run.folder / LABELS,
            ["path", "label"],
            [(opened.identities[i], opened.classes[opened.labels[i]]) for i in labelled],
        )
        run.write_bad_images([*cache.bad, *(learned.others.bad if learned.others else [])])
        write_json(run.folder / "result.json", result)
        path = run.folder / "classifier.safetensors"
        seen = start.seen
        if learned.others and decided["mode"] == "propagate":
            # Propagation uses these images even if the start was not trained on them.
            seen = np.union1d(seen, learned.others.cache.digests[learned.others.indices])
        save_classifier(path, classifier, metadata, seen, cache.digests[labelled])
    console.say(f"mode       {decided['mode']} ({decided.get('reason', 'as asked for')})")
    console.say(f"saved      {path}")
    option = from_option(path, "finetune")
    if len(test):
        console.next_command(f"clfew eval{option}")
    console.next_command(f"clfew predict IMAGE{option}")
    return result


def _summary(samples: list[dict[str, Any]], tested: int) -> dict[str, Any]:
    """Returns the mean, standard deviation and 95 % interval of the accuracy over the label samples.

    One label sample has the interval of its own accuracy (see `wilson_interval`).
    """
    summary: dict[str, Any] = {"test_images": tested, "draws": samples}
    if not tested:
        return summary
    accuracies = [sample["accuracy"] for sample in samples]
    mean = float(np.mean(accuracies))
    if len(samples) == 1:
        interval = wilson_interval(round(mean * tested), tested)
        return summary | {"mean": mean, "std": 0.0, "ci95": list(interval)}
    std = float(np.std(accuracies, ddof=1))
    return summary | {"mean": mean, "std": std, "ci95": list(mean_interval(accuracies))}
