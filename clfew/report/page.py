"""report.html: what a classifier gets right and wrong, in one page that needs no network.

Class and file names are untrusted: jinja2 escapes them, and `printable` spells out control characters.

Shape suffixes: N images, C classes, S side in pixels, D features.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from clfew.console import printable
from clfew.finetuning.metrics import expected_calibration_error
from clfew.methods.collapse import collapse_summary
from clfew.report import figures, text
from clfew.report.png import data_uri
from clfew.report.precision_recall import SHOWN, precision_recall_picture
from clfew.report.render import render_page
from clfew.report.text import flatten
from clfew.runs.files import write_bytes, write_text

percent = partial(text.percent, space="\u202f")
"""Formats a percentage with a narrow no-break space before the sign."""

MISTAKES = 24
PAIRS = 6
SAMPLE_CLASSES = 30
SAMPLES = 6


@dataclass(frozen=True)
class ReportDetails:
    """The data that a report shows besides the numbers of report.json.

    probabilities: the predictions, float32 (N, C). labels: the true classes, int64 (N,). images: N
    images squeezed to squares, uint8 (S, S, 3); only those on the page are read. aspects: width / height
    of each image before it was squeezed, float32 (N,). features: float32 (N, D). identities: file names.
    curves: the rows of metrics.jsonl of each step ("pretrain", "finetune"). commands: the command lines
    that made the classifier. settings: the settings of each step, nested as in its config.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    images: Sequence[np.ndarray]
    aspects: np.ndarray
    features: np.ndarray
    identities: list[str]
    curves: dict[str, list[dict[str, Any]]]
    commands: list[str]
    settings: dict[str, dict[str, Any]]


def write_report(folder: Path, report: dict[str, Any], details: ReportDetails) -> list[Path]:
    """Writes report.html and its four pictures into `folder` and returns their paths, the page first.

    report: the content of report.json. Raises UserError if a file cannot be written.
    """
    drawn = _draw(report, details)
    page = folder / "report.html"
    # A lone surrogate, from a file name that is not UTF-8, cannot be encoded and is replaced.
    write_text(page, render(report, details, drawn).encode("utf-8", "replace").decode())
    paths = [page]
    for name in ("confusion", "reliability", "precision_recall", "embedding"):
        paths.append(folder / f"{name}.png")
        write_bytes(paths[-1], drawn[name][0])
    return paths


def render(report: dict[str, Any], details: ReportDetails, drawn: dict[str, tuple[bytes, bytes]]) -> str:
    """Returns the page as HTML. drawn: each picture as two PNG files, light and dark."""
    classes = [printable(name) for name in report["classes"]]
    predicted_N, confidence_N = details.probabilities.argmax(1), details.probabilities.max(1)
    wrong = np.flatnonzero(predicted_N != details.labels)
    surest = wrong[np.argsort(-confidence_N[wrong], kind="stable")][:MISTAKES]
    describe = _image_details(details, classes, predicted_N, confidence_N)
    count_C = np.bincount(details.labels, minlength=len(classes))
    filters: dict[str, Callable[..., str]] = {"percent": percent, "count": _count}
    filters["whole"] = lambda fraction: percent(fraction, 0)
    return render_page(
        "report.html",
        filters,
        report=report,
        pictures={name: _figure(pair) for name, pair in drawn.items()},
        pairs=_pairs(report, details.labels, predicted_N, confidence_N, describe),
        verdict=verdict(confidence_N, predicted_N == details.labels),
        accepted=text.accepted_words(report["accepted"]),
        beside=text.beside(report, report["baselines"]) if report["baselines"] else [],
        curves_shown=min(SHOWN, int((count_C > 0).sum())),
        wrong=len(wrong),
        mistakes=[describe(index) for index in surest],
        samples=_samples(classes, details.labels, predicted_N, describe),
        tested_classes=int((count_C > 0).sum()),
        mapped=min(len(details.labels), figures.MAP_IMAGES),
        curves=[
            {
                "name": name,
                "picture": _figure(drawn[f"curve {name}"]),
                "summary": _summary(rows),
                "alarm": collapse_summary(rows),
            }
            for name, rows in details.curves.items()
            if f"curve {name}" in drawn
        ],
        per_class=_per_class(report["per_class"]),
        commands=[printable(command) for command in details.commands],
        settings=[(step, flatten(values)) for step, values in details.settings.items()],
    )


def verdict(confidence_N: np.ndarray, correct_N: np.ndarray) -> str:
    """Summarises the reliability diagram in one sentence, as far as so many images can tell.

    What is called wrong is more than the confidences of a perfectly calibrated classifier, which is
    right as often as it is confident, show by chance on as many images in 1 of 20 cases.
    """
    claimed, accuracy = float(confidence_N.mean()), float(correct_N.mean())
    means = f"its mean confidence is {percent(claimed, 0)} and its accuracy is {percent(accuracy, 0)}"
    chance = 1.96 * float(np.sqrt((confidence_N * (1 - confidence_N)).sum())) / len(confidence_N)
    if abs(claimed - accuracy) > max(NOTICEABLE, chance):
        return f"The classifier is {'over' if claimed > accuracy else 'under'}-confident: {means}."
    random = np.random.default_rng(0)
    eces = [
        expected_calibration_error(confidence_N, random.random(len(confidence_N)) < confidence_N)
        for _ in range(200)
    ]
    found = expected_calibration_error(confidence_N, correct_N)
    if found > max(NOTICEABLE_ECE, float(np.quantile(eces, 0.95))):
        return f"The classifier's confidence is right on average, but not for every group: {means}."
    if chance > NOTICEABLE:
        images = f"{len(confidence_N):,} image" + ("s" if len(confidence_N) > 1 else "")
        return f"On {images}, which is a rough estimate, no confidence is clearly wrong: {means}."
    return f"The classifier's confidence can be trusted: {means}."


NOTICEABLE, NOTICEABLE_ECE = 0.03, 0.05
"""Smaller differences between confidence and accuracy matter to nobody; the second is their mean over
the bins of the diagram."""


def _count(number: int) -> str:
    return f"{number:,}"


def _draw(report: dict[str, Any], details: ReportDetails) -> dict[str, tuple[bytes, bytes]]:
    """Draws every picture of the page, light and dark."""
    classes = report["classes"]
    predicted_N = details.probabilities.argmax(1)
    confidence_N, correct_N = details.probabilities.max(1), predicted_N == details.labels
    shown, points_Mx2 = figures.embed(details.features)
    on_map = (points_Mx2, details.labels[shown], ~correct_N[shown], classes)

    def both(picture: Callable[..., bytes], *content: Any) -> tuple[bytes, bytes]:
        return picture(*content, theme=figures.LIGHT), picture(*content, theme=figures.DARK)

    drawn = {
        "confusion": both(figures.confusion_picture, report["confusion"], classes),
        "reliability": both(figures.reliability_picture, confidence_N, correct_N, report["ece"]),
        "embedding": both(figures.embedding_picture, *on_map),
        "precision_recall": both(
            precision_recall_picture,
            details.probabilities,
            details.labels,
            classes,
            [row["average_precision"] for row in report["per_class"]],
        ),
    }
    for name, rows in details.curves.items():
        if any("loss" in row for row in rows):
            drawn[f"curve {name}"] = both(figures.curves_picture, rows, name)
    return drawn


def _image_details(
    details: ReportDetails, classes: Sequence[str], predicted_N: np.ndarray, confidence_N: np.ndarray
) -> Callable[[int], dict[str, Any]]:
    """Returns a function from an image's index to what the page shows about that image."""

    def describe(index: int) -> dict[str, Any]:
        content, mime = figures.thumbnail(details.images[index], float(details.aspects[index]))
        true, predicted = int(details.labels[index]), int(predicted_N[index])
        return {
            "src": data_uri(content, mime),
            "tiny": mime == "image/png",
            "true": classes[true],
            "predicted": classes[predicted],
            "correct": true == predicted,
            "confidence": float(confidence_N[index]),
            "file": printable(details.identities[index]),
        }

    return describe


def _pairs(
    report: dict[str, Any],
    labels_N: np.ndarray,
    predicted_N: np.ndarray,
    confidence_N: np.ndarray,
    describe: Callable[[int], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Returns the most confused pairs of classes.

    Each comes with its most confident mistake and with the most confident correct prediction of the
    class that was predicted.
    """
    number = {name: index for index, name in enumerate(report["classes"])}

    def surest(true: int, predicted: int) -> dict[str, Any] | None:
        found = np.flatnonzero((labels_N == true) & (predicted_N == predicted))
        return describe(found[confidence_N[found].argmax()]) if len(found) else None

    pairs = []
    for pair in report["most_confused"][:PAIRS]:
        true, predicted = number[pair["true"]], number[pair["predicted"]]
        pairs.append(
            {
                "true": printable(pair["true"]),
                "predicted": printable(pair["predicted"]),
                "count": pair["count"],
                "of": sum(report["confusion"][true]),
                "mistaken": surest(true, predicted),
                "typical": surest(predicted, predicted),
            }
        )
    return pairs


def _samples(
    classes: Sequence[str],
    labels_N: np.ndarray,
    predicted_N: np.ndarray,
    describe: Callable[[int], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Returns a few random images of each class; of many classes, only of those with lowest recall."""
    random = np.random.default_rng(0)
    tested = [int(index) for index in np.unique(labels_N)]
    recall = {index: float((predicted_N[labels_N == index] == index).mean()) for index in tested}
    if len(tested) > SAMPLE_CLASSES:
        tested = sorted(tested, key=lambda index: recall[index])[:SAMPLE_CLASSES]
    samples = []
    for index in tested:
        members = np.flatnonzero(labels_N == index)
        drawn = np.sort(random.permutation(members)[:SAMPLES])
        shots = [describe(member) for member in drawn]
        samples.append(
            {"name": classes[index], "recall": recall[index], "n": len(members), "shots": shots}
        )
    return samples


def _per_class(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows of the table of classes, lowest recall first.

    A row's number is the one that pictures show for a class whose name cannot be drawn.
    """
    table = [
        {**row, "name": printable(row["class"]), "number": number} for number, row in enumerate(rows, 1)
    ]
    return sorted(table, key=lambda row: 2.0 if row["recall"] is None else row["recall"])


def _summary(rows: list[dict[str, Any]]) -> str:
    """Returns the caption of a training curve, made of those values that the rows contain."""
    losses = [row["loss"] for row in rows if "loss" in row]
    parts = [f"{rows[-1]['step']:,} steps"] if "step" in rows[-1] else []
    if "epoch" in rows[-1]:
        parts.append(f"{rows[-1]['epoch']:g} epochs")
    parts.append(f"loss {losses[0]:.3g} → {losses[-1]:.3g}")
    speeds = [row["images_per_second"] for row in rows if "images_per_second" in row]
    if speeds:
        parts.append(f"{median(speeds):,.0f} images a second")
    waits = [row["data_wait"] for row in rows if "data_wait" in row]
    if waits:
        parts.append(f"{percent(sum(waits) / len(waits), 0)} of the time spent waiting for data")
    return ", ".join(parts)


def _figure(pair: tuple[bytes, bytes]) -> dict[str, Any]:
    """Returns a picture for the page, shown at half its size in pixels to be sharp on a dense screen."""
    light, dark = pair
    width, height = struct.unpack(">II", light[16:24])
    sources = {"light": data_uri(light, "image/png"), "dark": data_uri(dark, "image/png")}
    return {**sources, "width": width // 2, "height": height // 2}
