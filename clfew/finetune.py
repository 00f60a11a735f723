"""`clfew finetune`: a classifier from an encoder and a few labels."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import clfew
from clfew import console
from clfew.artifacts import MODES, About, read_about, save_classifier
from clfew.calibration import fit_temperature
from clfew.classifier import Classifier, neck_width
from clfew.data.sources import LABELLED_FOLDERS, Source, open_source
from clfew.data.splits import (
    LabelSpec,
    apply_label_csv,
    draw_labels,
    parse_labels,
    require_testable,
    test_indices,
)
from clfew.data.store import Store
from clfew.drift import alarm
from clfew.errors import UsageError, UserError
from clfew.features import apply_to_store
from clfew.files import write_csv, write_json
from clfew.fitting import FullSettings, Task, fit, pool_logits, predict_store
from clfew.initial import AUTO
from clfew.metrics import mean_interval, wilson_interval
from clfew.origin import Origin, find_start, open_start, other_images
from clfew.pretrain import stored
from clfew.propagation import MAX_IMAGES
from clfew.runs import Run, check_new, command_line, from_option, new_run
from clfew.selection import Decision, decide
from clfew.training.device import choose_device, choose_precision, set_threads


def finetune(
    source: str | None = None,
    *,
    labels: str,
    origin: str | None = None,
    init: str = AUTO,
    mode: str = "auto",
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
    start from (see `clfew.initial`); "auto" takes those on this machine where there is no run. repeat:
    number of label draws; the classifier that is kept is the first one's. encoder, size: of a network
    that does not come from a run. flip: whether mirror images mean the same; None is as in pretraining. The result holds
    `test_images`, the `mean`, `std` and `ci95` of the accuracy on them, and for each of `draws` its
    accuracy and what was decided. Raises UserError; Stopped after a signal.
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
    opened, named = _with_labels(open_source(name), spec, same_classes)
    begins = open_start(found, opened, encoder, size, flip, chosen_device, seed, compare=mode == "auto")
    begin = begins[0]
    split_seed = begin.about.data.get("pretrain", {}).get("split_seed", seed)
    if named is None:
        require_testable(opened)
    held_out = test_indices(opened, split_seed) if named is None else _outside(opened, named, split_seed)
    store = stored(opened, begin.about.side)
    test = np.intersect1d(held_out[opened.labels[held_out] >= 0], store.good)
    pool = np.setdiff1d(store.good, held_out)
    if named is None:
        candidates = pool[opened.labels[pool] >= 0]
        draws = [draw_labels(opened, candidates, spec, seed + i) for i in range(repeat)]
    else:
        draws = [_readable(opened, named, pool, spec)]
    console.say(
        f"source     {name}: {len(opened.classes)} classes, {len(draws[0])} labels used of "
        f"{len(pool):,} images, {len(test):,} more held out for testing"
    )
    candidates = []
    for each in begins:
        arguments = (each, opened, store, pool, test, mode, chosen_device, chosen_precision)
        candidates.append((each, Task(
            store.pixels, store.aspects, pool, opened.labels, len(opened.classes),
            _pool_features(*arguments), chosen_device, chosen_precision,
        )))  # fmt: skip
    run = new_run("finetune", out)
    settings = FullSettings(epochs, batch, lr)
    try:
        results, kept = _fit_draws(candidates, opened, draws, test, mode, seed, settings, run)
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


def _fit_draws(
    candidates: list[tuple[Origin, Task]], source: Source, draws: list[np.ndarray], test: np.ndarray,
    mode: str, seed: int, settings: FullSettings, run: Run,
) -> tuple[list[dict[str, Any]], tuple[Origin, Classifier, dict[str, Any], np.ndarray]]:  # fmt: skip
    """A row for each draw of the labels; and the first draw's start, classifier, decisions and images."""
    results, kept = [], []
    with console.progress_bar("finetune") as update:
        for number, drawn in enumerate(draws):
            update(number, len(draws), f"draw {number + 1} of {len(draws)}")
            log = run.log if number == 0 else lambda row: None
            begin, task, decision = _decide(candidates, mode, drawn, seed + number, settings)
            classifier, extra = fit(
                begin.start, task, drawn, decision.mode, seed + number, settings, log
            )
            decided = decision.as_row() | extra
            if decision.accuracy is not None:
                classifier.temperature = fit_temperature(
                    pool_logits(classifier, task), decision.accuracy
                )
            decided["temperature"] = classifier.temperature
            accuracy = None
            if len(test):
                hits = predict_store(classifier, task, test).argmax(1) == source.labels[test]
                accuracy = float(hits.mean())
            results.append(
                {"seed": seed + number, "labels": len(drawn), "accuracy": accuracy, **decided}
            )
            if number == 0:
                kept.append((begin, classifier, decided, drawn))
        update(len(draws), len(draws))
    return results, kept[0]


def _decide(
    candidates: list[tuple[Origin, Task]], mode: str, drawn: np.ndarray, seed: int,
    settings: FullSettings,
) -> tuple[Origin, Task, Decision]:  # fmt: skip
    """The start and the mode that do best in cross-validation on the labels drawn. Where that is not
    possible, the pretrained encoder, unless its drift raised the alarm."""
    choices = [
        (begin, task, decide(mode, begin.start, task, drawn, seed, settings))
        for begin, task in candidates
    ]
    first = choices[0]
    if len(choices) == 1:
        return first
    before = choices[1]
    if first[2].accuracy is None or before[2].accuracy is None:
        drifted = first[0].about.training.get("pretrain", {}).get("drift")
        return before if drifted and alarm(drifted) else first
    worse = before[2].accuracy > first[2].accuracy
    chosen, other = (before, first) if worse else (first, before)
    name = "the weights that pretraining started from" if worse else "the pretrained encoder"
    reason = f"{chosen[2].reason}; {name}: {chosen[2].accuracy:.2f} against {other[2].accuracy:.2f}"
    return chosen[0], chosen[1], replace(chosen[2], reason=reason)


def find_source(named: str | None, about: About | None, spec: LabelSpec | None = None) -> str:
    """The source by name, else ./labeled or ./labelled, else the source of the artifact `about`
    where it has labels (or a label CSV gives it some). Raises UserError."""
    if named is not None:
        return named
    for folder in LABELLED_FOLDERS:
        if Path(folder).is_dir():
            return folder
    hint = "name one: a folder with a subfolder for each class, a CSV of path,label, or hf:NAME."
    data = about.data if about else {}
    before = (data.get("pretrain") or data.get("finetune") or {}).get("source")
    if before is None:
        raise UserError("No labelled images were named, and there is no folder ./labeled.", hint)
    if spec is not None and spec.file is not None:
        return before
    if not open_source(before).is_labelled:
        raise UserError(
            f"No labelled images were named, there is no folder ./labeled, and {before}, "
            "which was pretrained on, has no class folders.",
            hint,
        )
    return before


def _with_labels(
    source: Source, spec: LabelSpec, about: About | None
) -> tuple[Source, np.ndarray | None]:
    """The source with its labels, and the images a label CSV names. Checks the classes."""
    named = None
    if spec.file is not None:
        source, named = apply_label_csv(source, spec.file)
    if not source.is_labelled:
        raise UserError(
            f"{source.spec} has no labels.",
            "put each class into its own subfolder, or list path,label in a CSV: --labels FILE.csv",
        )
    if len(source.classes) < 2:
        raise UserError(
            f"{source.spec} has one class only, '{source.classes[0]}'.",
            "a classifier needs two: put each class into its own subfolder.",
        )
    if about is not None and about.kind == "classifier" and about.classes != source.classes:
        differ = sorted(set(about.classes) ^ set(source.classes))
        raise UserError(
            f"The classes differ from those of the classifier to start from ({', '.join(differ[:4])}).",
            "start from the encoder instead, such as --from runs/pretrain-1.",
        )
    return source, named


def _outside(source: Source, named: np.ndarray, split_seed: int) -> np.ndarray:
    """The test split beside a label CSV: none where the CSV holds all the labels there are."""
    if (source.labels >= 0).sum() == len(named) and not (source.splits == "test").any():
        return np.array([], dtype=np.int64)
    return test_indices(source, split_seed)


def _readable(source: Source, named: np.ndarray, pool: np.ndarray, spec: LabelSpec) -> np.ndarray:
    """The images of a label CSV, none of which may be tested on or unreadable."""
    outside = np.setdiff1d(named, pool)
    if len(outside):
        raise UserError(
            f"{spec.file} names {source.identities[outside[0]]}, which is in the test split or "
            "cannot be read.",
            "remove it from the list: what is tested on is never learned from.",
        )
    return np.sort(named)


def _pool_features(
    origin: Origin, source: Source, store: Store, pool: np.ndarray, test: np.ndarray, mode: str,
    device: torch.device, precision: str,
) -> np.ndarray | None:  # fmt: skip
    """Features of the pool and, where pretraining had another source, of its images; None where
    nothing will read them."""
    start = origin.start
    if mode == "full" or (mode == "auto" and not start.is_pretrained):
        return None

    def read(of: Store, indices: np.ndarray) -> np.ndarray:
        arrays = (of.pixels, of.aspects, indices)
        return apply_to_store(start.encoder, origin.about.size, *arrays, device, precision)

    features = read(store, pool)
    spec = origin.pretraining_source
    if spec is None or spec == source.spec:
        return features
    try:
        others = open_source(spec)
        decoded = stored(others, origin.about.side)
    except UserError:
        console.say(f"note       {spec}, which was pretrained on, cannot be read: going on without it")
        return features
    chosen = other_images(origin, others, decoded, store.digests[test], MAX_IMAGES)
    return np.concatenate([features, read(decoded, chosen)]) if len(chosen) else features


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
