"""`clfew eval`: tests a classifier on images that it was not trained on."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clfew import console
from clfew.data.cache_folder import ImageCache
from clfew.data.content import holds_the_same
from clfew.data.groups import grouped
from clfew.data.held_out import NONE
from clfew.data.image_cache import cached_images
from clfew.data.label_lists import RANDOM, apply_label_csv
from clfew.data.source import Source
from clfew.data.sources import open_source, say_source
from clfew.data.splits import split_to_test
from clfew.errors import UserError
from clfew.finetuning.acceptance import acceptance_row
from clfew.finetuning.labelled_data import LabelledData, labelled_data
from clfew.finetuning.metrics import classification_report, expected_calibration_error
from clfew.finetuning.places import label_list_now
from clfew.group.command import together
from clfew.models.artifacts import load_classifier
from clfew.models.classifier import Classifier
from clfew.models.features import apply_to_cache
from clfew.models.kept_scale import scaled
from clfew.models.metadata import DISTILLED, ArtifactMetadata
from clfew.report.page import ReportDetails, write_report
from clfew.runs.files import write_json
from clfew.runs.folders import Run, check_new, find_artifact, new_run, read_config
from clfew.settings import EvaluateSettings
from clfew.signatures import function_of
from clfew.training.device import choose_device, choose_precision, set_threads, without_traces

PROMISED = 0.95
"""The accuracy of the images that may be accepted unseen."""


@dataclass(frozen=True)
class Prepared:
    """A test that is ready to run. data: the images to test on. split: words that describe them.
    is_same: whether their source is that of fine-tuning."""

    artifact: Path
    classifier: Classifier
    metadata: ArtifactMetadata
    seen: dict[str, np.ndarray]
    data: LabelledData
    split: str
    is_same: bool


@together
def run(settings: EvaluateSettings) -> tuple[Path, dict[str, Any]]:
    """Tests a classifier; returns the folder with report.html and report.json, and the report.

    The source of fine-tuning is tested on its test split; another source is tested on its own test split
    if it has one, else on all images. The report has the keys of `metrics.classification_report`,
    `baselines` (what simpler classifiers of the same labels reach), `accepted` (what may be accepted
    unseen, see `_accepted`), `temperature` and `ece_uncalibrated`, the
    counts `seen_in_pretraining` and `seen_in_finetuning` of test images that were used there, and
    `source`, `split`, `artifact`, `mode` and `labels`. Raises UserError.
    """
    check_new(settings.out)
    set_threads(settings.threads)
    prepared = prepare(settings)
    device, _ = choose_device(settings.device)
    precision, _ = choose_precision(device, settings.precision)
    cache, metadata = prepared.data.cache, prepared.metadata
    arrays = (cache.pixels, cache.aspects, prepared.data.test)
    encoder = prepared.classifier.encoder
    features = apply_to_cache(encoder, metadata.size, *arrays, device, precision)
    prepared.classifier.cpu()
    with torch.no_grad():
        logits = prepared.classifier.from_features(torch.from_numpy(features))
    report = report_of(prepared, logits)
    run = new_run("eval", settings.out)
    save(run, prepared, report, features, torch.softmax(logits, dim=1).numpy())
    return run.folder, report


evaluate = function_of(EvaluateSettings, without_traces(run))


def prepare(settings: EvaluateSettings) -> Prepared:
    """Loads the classifier and opens the images to test on. Raises UserError."""
    hint = "make a classifier first: clfew finetune --labels 1%"
    artifact = find_artifact(settings.origin, "finetune", hint)
    classifier, metadata, seen = load_classifier(artifact)
    opened, is_same = _open(settings.source, metadata, artifact.parent)
    source = _in_classes_of(metadata, opened)
    source = scaled(source, None, [metadata])
    say_source(source)
    cache = cached_images(source, metadata.side)
    data, split = _tested(source, cache, metadata, seen["finetuning"], is_same)
    return Prepared(artifact, classifier, metadata, seen, data, split, is_same)


def report_of(prepared: Prepared, logits: torch.Tensor) -> dict[str, Any]:
    """Returns the content of report.json."""
    classifier, metadata, data = prepared.classifier, prepared.metadata, prepared.data
    uncalibrated = torch.softmax(logits * classifier.temperature, dim=1).numpy()
    labels, digests = data.source.labels[data.test], data.cache.digests[data.test]
    seen = {step: int(np.isin(digests, found).sum()) for step, found in prepared.seen.items()}
    correct = uncalibrated.argmax(1) == labels
    probabilities = torch.softmax(logits, dim=1).numpy()
    groups = None if data.groups is None else data.groups[data.test]
    return classification_report(probabilities, labels, metadata.classes, groups) | {
        "temperature": classifier.temperature,
        "ece_uncalibrated": expected_calibration_error(uncalibrated.max(1), correct),
        "baselines": _baselines(prepared),
        "accepted": _accepted(_no_test(prepared, seen), probabilities.max(1), correct, groups),
        "seen_in_pretraining": seen["pretraining"],
        "seen_in_finetuning": seen["finetuning"],
        "source": data.source.spec,
        "read_as": data.source.summary(),
        "split": prepared.split,
        "artifact": str(prepared.artifact),
        "mode": metadata.mode,
        "labels": metadata.data["finetune"]["labels"],
    }


def _baselines(prepared: Prepared) -> list[dict[str, Any]]:
    """Returns what the baselines of fine-tuning reached on these test images (see `tested.baselines`);
    nothing where these are others than then, or the classifier is another one."""
    finetuning = prepared.metadata.training.get("finetune", {})
    is_other = prepared.metadata.mode == DISTILLED or not prepared.is_same
    if is_other or len(prepared.data.test) != prepared.metadata.data["finetune"]["test_images"]:
        return []
    rows: list[dict[str, Any]] = finetuning.get("baselines", [])
    return rows


def _no_test(prepared: Prepared, seen: dict[str, int]) -> str:
    """Returns why the test images promise nothing, in words; "" if they are a random sample. seen: how
    many of them were learned from, by step."""
    if seen["finetuning"]:
        return "labels of these images were learned from"
    origins = prepared.metadata.data["finetune"].get("test_origins", {})
    if prepared.is_same and not set(origins) <= {RANDOM}:
        return "the test images are not known to be drawn at random"
    return ""


def _accepted(
    no_test: str,
    confidence_N: np.ndarray,
    is_right_N: np.ndarray,
    groups_N: np.ndarray | None,
) -> dict[str, Any]:
    """Returns what may be accepted unseen (see `acceptance_row`). no_test: see `_no_test`."""
    if groups_N is not None:
        # Images of a group are right or wrong together, and one of them counts.
        firsts = np.unique(groups_N, return_index=True)[1]
        confidence_N, is_right_N = confidence_N[firsts], is_right_N[firsts]
    return acceptance_row(no_test, confidence_N, is_right_N, PROMISED)


def save(
    run: Run,
    prepared: Prepared,
    report: dict[str, Any],
    features: np.ndarray,
    probabilities: np.ndarray,
) -> None:
    """Writes report.json, report.html and the pictures."""
    data = prepared.data
    source, cache, test = data.source, data.cache, data.test
    run.write_config({"command": "eval", "from": str(prepared.artifact), "source": source.spec})
    write_json(run.folder / "report.json", report)
    run.write_bad_images(cache.bad)
    pixels = np.asarray(cache.pixels)
    details = ReportDetails(
        probabilities=probabilities,
        labels=source.labels[test],
        # Views, so that only the images that the report shows are read.
        images=[pixels[i] for i in test],
        aspects=cache.aspects[test],
        features=features,
        identities=[source.identities[i] for i in test],
        curves=_curves(prepared.artifact, prepared.metadata),
        commands=_commands(prepared.metadata, prepared.artifact),
        settings=_settings(prepared.metadata),
    )
    write_report(run.folder, report, details)
    console.say(f"report     {run.folder / 'report.html'}")


def _open(source: str | None, metadata: ArtifactMetadata, run: Path) -> tuple[Source, bool]:
    """Returns the source to test on, with the labels that it had during fine-tuning, and whether it is
    that of fine-tuning, under its name or elsewhere. run: the folder of the classifier."""
    learned_from = metadata.data["finetune"]
    opened = open_source(source or learned_from["source"])
    rule = learned_from.get("split_rule", 1)
    is_same = opened.spec == learned_from["source"]
    if opened.rule != rule and (is_same or learned_from.get("content")):
        of_rule = open_source(opened.spec, rule)
        is_same = is_same or holds_the_same(of_rule, learned_from.get("content"))
        opened = of_rule if is_same else opened
    elif not is_same and holds_the_same(opened, learned_from.get("content")):
        is_same = True
    if not is_same:
        return opened, False
    if opened.spec != learned_from["source"]:
        console.say(f"note       these are the images of {learned_from['source']}, elsewhere")
    opened = grouped(opened, learned_from.get("group_by"))
    listed = label_list_now(learned_from, run)
    # Rule 1 gave a source its label file only where it had no labels of its own.
    if (rule >= 2 or not opened.is_labelled) and listed is not None:
        opened, _ = apply_label_csv(opened, listed)
    elif (file := learned_from["label_file"]) and listed is None:
        console.say(f"note       the labels in {file} are not used: the file has been removed")
    return opened, True


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


def _tested(
    source: Source,
    cache: ImageCache,
    metadata: ArtifactMetadata,
    seen: np.ndarray,
    is_same: bool,
) -> tuple[LabelledData, str]:
    """Returns the images to test on, and words that describe them for the report. seen: the digests of
    the images whose labels were learned. is_same: whether it is the source of fine-tuning."""
    learned_from = metadata.data["finetune"]
    rule, seed = learned_from.get("split_rule", 1), learned_from["split_seed"]
    own = split_to_test(source) is not None
    held_out, learned = None, NONE
    if own or is_same:
        split = "20 % of each class, held out from training"
        if own:
            is_test = split_to_test(source) == "test"
            split = "the data's own test split" if is_test else "the data's own validation split"
        if is_same and learned_from.get("test_sample"):
            is_random = set(learned_from["test_origins"]) <= {"random"}
            what = "the random test sample" if is_random else "the test rows"
            split = f"{what} of {Path(learned_from['label_file']).name}"
        # In another source, copies of learned images are tested on and counted as seen.
        learned = np.flatnonzero(np.isin(cache.digests, seen)) if is_same else NONE
    else:
        held_out = np.arange(len(source))
        learned_too = int(np.isin(cache.digests, seen).sum())
        split = "all labelled images of another source than that of the labels" + (
            f", {learned_too:,} of which were learned from" if learned_too else ""
        )
    data = labelled_data(source, cache, held_out, seed, rule, learned)
    # If a label CSV held all labels of the source, none was held out for testing.
    nothing_kept = is_same and learned_from["test_images"] == 0
    if len(data.test) == 0 or nothing_kept:
        hint = "name another source to test on."
        if is_same and learned_from.get("test_sample"):
            hint = "fill in the labels of the test rows of the list, and fine-tune again."
        raise UserError(f"{source.spec} has no labelled image left to test on.", hint)
    return data, split


def _curves(artifact: Path, metadata: ArtifactMetadata) -> dict[str, list[dict[str, Any]]]:
    """Returns the metrics of the runs that made a classifier, as far as their folders still exist."""
    curves = {"finetune": Run(artifact.parent).metrics()}
    before = Path(read_config(artifact.parent).get("from", ""))
    if before.is_file():
        curves = {"pretrain": Run(before.parent).metrics()} | curves
    return {name: rows for name, rows in curves.items() if len(rows) > 1}


def _commands(metadata: ArtifactMetadata, artifact: Path) -> list[str]:
    steps = [
        metadata.training.get(step, {}).get("command") for step in ("pretrain", "finetune", "distill")
    ]
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
    # What the baselines reached stands above.
    training = {
        step: {name: value for name, value in values.items() if name != "baselines"}
        for step, values in metadata.training.items()
    }
    return {
        "network": network,
        **training,
        **{f"{k} data": v for k, v in metadata.data.items()},
    }
