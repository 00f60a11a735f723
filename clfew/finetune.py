"""`clfew finetune`: a classifier from an encoder and a few labels."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import clfew
from clfew import console
from clfew.artifacts import MODES, read_about, save_classifier
from clfew.classifier import neck_width
from clfew.data.sources import open_source
from clfew.data.splits import draw_labels, parse_labels, require_testable, test_indices
from clfew.decoding import stored
from clfew.draws import fit_draws
from clfew.errors import UsageError
from clfew.files import write_csv, write_json
from clfew.fitting import FullSettings, Task
from clfew.initial import AUTO
from clfew.labelling import bounded, find_source, outside, pool_features, readable, with_labels
from clfew.metrics import mean_interval, wilson_interval
from clfew.origin import find_start, open_start
from clfew.runs import check_new, command_line, from_option, new_run
from clfew.training.device import choose_device, choose_precision, set_threads


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
    start from (see `clfew.initial`); "auto" takes those on this machine where there is no run. stage: of
    the encoder, whose maps features are read from, counted from 1; 0 for its own features. repeat:
    number of label draws; the classifier that is kept is the first one's. encoder, size: of a network
    that does not come from a run. flip: whether mirror images mean the same; None is as in pretraining.
    The result holds `test_images`, the `mean`, `std` and `ci95` of the accuracy on them, and for each of
    `draws` its accuracy and what was decided. Raises UserError; Stopped after a signal.
    """
    check_new(out)
    spec = parse_labels(labels)
    if mode not in ("auto", *MODES):
        raise UsageError(f"--mode {mode} is not known.", f"choose auto, {', '.join(MODES)}.")
    set_threads(threads)
    chosen_device, _ = choose_device(device)
    chosen_precision, _ = choose_precision(chosen_device, precision)
    found = find_start(origin, init, encoder, chosen_device)
    described = read_about(found.artifact)[0] if found.artifact else None
    name = find_source(source, described, spec)
    same_classes = None if found.is_scratch else described
    opened, named = with_labels(open_source(name), spec, same_classes)
    begins = open_start(found, opened, encoder, size, flip, chosen_device, seed, mode == "auto", stage)
    begin = begins[0]
    split_seed = begin.about.data.get("pretrain", {}).get("split_seed", seed)
    if named is None:
        require_testable(opened)
    held_out = test_indices(opened, split_seed) if named is None else outside(opened, named, split_seed)
    store = stored(opened, begin.about.side)
    test = np.intersect1d(held_out[opened.labels[held_out] >= 0], store.good)
    pool = np.setdiff1d(store.good, held_out)
    if named is None:
        known = pool[opened.labels[pool] >= 0]
        draws = [draw_labels(opened, known, spec, seed + i) for i in range(repeat)]
    else:
        draws = [readable(opened, named, pool, spec)]
    console.say(
        f"source     {name}: {len(opened.classes)} classes, {len(draws[0])} labels used of "
        f"{len(pool):,} images, {len(test):,} more held out for testing"
    )
    pool = bounded(pool, np.concatenate(draws))
    candidates = []
    for each in begins:
        arguments = (each, opened, store, pool, test, mode, chosen_device, chosen_precision)
        candidates.append((each, Task(
            store.pixels, store.aspects, pool, opened.labels, len(opened.classes),
            pool_features(*arguments), chosen_device, chosen_precision,
        )))  # fmt: skip
    run = new_run("finetune", out)
    settings = FullSettings(epochs, batch, lr)
    try:
        results, kept = fit_draws(candidates, opened, draws, test, mode, seed, settings, run)
    except BaseException:
        shutil.rmtree(run.folder, ignore_errors=True)  # It holds nothing that could be gone on with.
        raise
    begin, classifier, decided, drawn = kept
    used = {
        "source": opened.spec, "fingerprint": opened.fingerprint, "split_seed": split_seed,
        "labels": len(drawn), "label_file": str(spec.file.resolve()) if spec.file else None,
        "test_images": len(test),
    }  # fmt: skip
    how = {"command": command_line(), "labels": labels, "seed": seed, **decided}
    about = replace(
        begin.about, kind="classifier", classes=opened.classes, mode=decided["mode"],
        neck=neck_width(classifier.neck), flip=begin.start.flip, temperature=classifier.temperature,
        clfew_version=clfew.__version__,
        training={**begin.about.training, "finetune": how},
        data={**({} if found.is_scratch else begin.about.data), "finetune": used},
    )  # fmt: skip
    result = _summary(results, len(test))
    config = {
        "command": "finetune", "from": str(begin.artifact or found.words), "mode": mode, "seed": seed,
        "repeat": len(draws), **used, "labels": labels, "device": str(chosen_device),
        "precision": chosen_precision, "threads": torch.get_num_threads(), "about": asdict(about),
    }  # fmt: skip
    run.write_config(config)
    write_json(run.folder / "result.json", result)
    write_csv(
        run.folder / "labels.csv", ["path", "label"],
        [(opened.identities[i], opened.classes[opened.labels[i]]) for i in drawn],
    )  # fmt: skip
    if store.bad:
        write_csv(run.folder / "bad_images.csv", ["path", "reason"], store.bad)
    path = run.folder / "classifier.safetensors"
    save_classifier(path, classifier, about, begin.seen, store.digests[drawn])
    console.say(f"mode       {decided['mode']} ({decided.get('reason', 'as asked for')})")
    console.say(f"saved      {path}")
    option = from_option(path, "finetune")
    if len(test):
        console.next_command(f"clfew eval{option}")
    console.next_command(f"clfew predict IMAGE{option}")
    return run.folder, result


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
