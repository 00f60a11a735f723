"""`clfew eval`: tests a classifier on images that it was not trained on."""

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clfew import console
from clfew.data.image_cache import ImageCache, cached_images
from clfew.data.labels import apply_label_csv
from clfew.data.source import Source
from clfew.data.sources import open_source
from clfew.data.splits import test_indices
from clfew.errors import UserError
from clfew.finetuning.metrics import classification_report, expected_calibration_error
from clfew.models.artifacts import load_classifier
from clfew.models.features import apply_to_cache
from clfew.models.metadata import ArtifactMetadata
from clfew.report.page import ReportDetails, write_report
from clfew.runs.files import write_json
from clfew.runs.folders import Run, check_new, find_artifact, new_run, read_config
from clfew.training.device import choose_device, choose_precision, set_threads


def evaluate(
    source: str | None = None,
    *,
    origin: str | None = None,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    out: Path | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Tests a classifier; returns the folder with report.html and report.json, and the report.

    source: the images to test on, None for those of fine-tuning. The source of fine-tuning is tested on
    its test split; another source is tested on its own test split if it has one, else on all images.
    origin: a run or artifact, None for the newest classifier. The report has the keys of
    `metrics.classification_report`, `temperature` and `ece_uncalibrated`, the counts
    `seen_in_pretraining` and `seen_in_finetuning` of test images that were used there, and `source`,
    `split`, `artifact`, `mode` and `labels`. Raises UserError.
    """
    check_new(out)
    set_threads(threads)
    artifact = find_artifact(origin, "finetune", "make a classifier first: clfew finetune --labels 1%")
    classifier, metadata, seen = load_classifier(artifact)
    opened = _in_classes_of(metadata, _open(source, metadata))
    cache = cached_images(opened, metadata.side)
    test, split = _tested(opened, cache, metadata)
    device_, _ = choose_device(device)
    precision_, _ = choose_precision(device_, precision)
    arrays = (cache.pixels, cache.aspects, test)
    features = apply_to_cache(classifier.encoder, metadata.size, *arrays, device_, precision_)
    classifier.cpu()
    with torch.no_grad():
        logits = classifier.from_features(torch.from_numpy(features))
    probabilities = torch.softmax(logits, dim=1).numpy()
    uncalibrated = torch.softmax(logits * classifier.temperature, dim=1).numpy()
    labels, digests = opened.labels[test], cache.digests[test]
    report = classification_report(probabilities, labels, metadata.classes)
    correct = uncalibrated.argmax(1) == labels
    report["temperature"] = classifier.temperature
    report["ece_uncalibrated"] = expected_calibration_error(uncalibrated.max(1), correct)
    for step in ("pretraining", "finetuning"):
        report[f"seen_in_{step}"] = int(np.isin(digests, seen[step]).sum())
    report |= {
        "source": opened.spec,
        "split": split,
        "artifact": str(artifact),
        "mode": metadata.mode,
        "labels": metadata.data["finetune"]["labels"],
    }
    run = new_run("eval", out)
    run.write_config({"command": "eval", "from": str(artifact), "source": opened.spec})
    write_json(run.folder / "report.json", report)
    run.write_bad_images(cache.bad)
    pixels = np.asarray(cache.pixels)
    details = ReportDetails(
        probabilities=probabilities,
        labels=labels,
        images=[
            pixels[i] for i in test
        ],  # Views, so that only the images that the report shows are read.
        aspects=cache.aspects[test],
        features=features,
        identities=[opened.identities[i] for i in test],
        curves=_curves(artifact, metadata),
        commands=_commands(metadata, artifact),
        settings=_settings(metadata),
    )
    write_report(run.folder, report, details)
    console.say(f"report     {run.folder / 'report.html'}")
    return run.folder, report


def _open(source: str | None, metadata: ArtifactMetadata) -> Source:
    """Returns the source to test on, with the labels that it had during fine-tuning."""
    learned_from = metadata.data["finetune"]
    opened = open_source(source or learned_from["source"])
    file = Path(learned_from["label_file"] or "")
    if opened.spec == learned_from["source"] and not opened.is_labelled and file.is_file():
        opened, _ = apply_label_csv(opened, file)
    return opened


def _in_classes_of(metadata: ArtifactMetadata, source: Source) -> Source:
    """Returns the source with its labels numbered like the classifier's classes.

    Raises UserError if it has no labels, or classes that the classifier does not have.
    """
    if not source.is_labelled:
        raise UserError(
            f"{source.spec} has no labels to test against.",
            "name labelled images: class folders, a CSV of path,label, or hf:NAME.",
        )
    unknown = sorted(set(source.classes) - set(metadata.classes))
    if unknown:
        raise UserError(
            f"The classifier does not have the class '{unknown[0]}' of {source.spec} "
            f"({len(unknown)} of {len(source.classes)} classes).",
            f"its classes are {', '.join(metadata.classes[:8])}"
            f"{', …' if len(metadata.classes) > 8 else ''}.",
        )
    index = np.array([metadata.classes.index(name) for name in source.classes])
    return source.relabelled(np.where(source.labels >= 0, index[source.labels], -1), metadata.classes)


def _tested(source: Source, cache: ImageCache, metadata: ArtifactMetadata) -> tuple[np.ndarray, str]:
    """Returns the indices of the images to test on, and words that describe them for the report."""
    learned_from = metadata.data["finetune"]
    own = (source.splits == "test").any() or (source.splits == "val").any()
    if own or source.spec == learned_from["source"]:
        chosen = test_indices(source, learned_from["split_seed"])
        split = "the data's own test split" if own else "20 % of each class, held out from training"
    else:
        chosen, split = np.arange(len(source)), "all labelled images of a source that was not trained on"
    chosen = np.intersect1d(chosen[source.labels[chosen] >= 0], cache.good)
    # If a label CSV held all labels of the source, none was held out for testing.
    nothing_kept = source.spec == learned_from["source"] and learned_from["test_images"] == 0
    if len(chosen) == 0 or nothing_kept:
        raise UserError(
            f"{source.spec} has no labelled image left to test on.", "name another source to test on."
        )
    return chosen, split


def _curves(artifact: Path, metadata: ArtifactMetadata) -> dict[str, list[dict[str, Any]]]:
    """Returns the metrics of the runs that made a classifier, as far as their folders still exist."""
    curves = {"finetune": Run(artifact.parent).metrics()}
    before = Path(read_config(artifact.parent).get("from", ""))
    if before.is_file():
        curves = {"pretrain": Run(before.parent).metrics()} | curves
    return {name: rows for name, rows in curves.items() if len(rows) > 1}


def _commands(metadata: ArtifactMetadata, artifact: Path) -> list[str]:
    steps = [metadata.training.get(step, {}).get("command") for step in ("pretrain", "finetune")]
    return [command for command in steps if command] + [
        f"clfew eval --from {shlex.quote(str(artifact.parent))}"
    ]


def _settings(metadata: ArtifactMetadata) -> dict[str, dict[str, Any]]:
    network = {
        "encoder": metadata.encoder,
        "size": metadata.size,
        "features": metadata.dim,
        "flip": metadata.flip,
    }
    return {
        "network": network,
        **metadata.training,
        **{f"{k} data": v for k, v in metadata.data.items()},
    }
