"""What `predict` decides beside the likeliest class: what may be accepted unseen, and from which
probability on an image is taken to be of a class."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clfew import console
from clfew.errors import UsageError, UserError
from clfew.finetuning.acceptance import acceptance_row
from clfew.finetuning.asked import fraction_of, number_of, parse_goals
from clfew.finetuning.operating_point import OperatingPoint, operating_point
from clfew.models.artifacts import read_evidence
from clfew.models.metadata import ArtifactMetadata
from clfew.report.text import accepted_words, percent
from clfew.settings import ExportSettings, PredictSettings

Deciding = PredictSettings | ExportSettings

ACCEPT, REVIEW = "accept", "review"


@dataclass(frozen=True)
class Thresholds:
    """What is decided by.

    is_asked: whether it is said what may be accepted. above: images of which the classifier is surer may
    be; None for none. of_classes: the probability from which on an image is taken to be of a class, by
    its number.
    """

    is_asked: bool = False
    above: float | None = None
    of_classes: dict[int, float] = field(default_factory=dict)

    def decision(self, probability: float) -> str | None:
        """Returns whether an image may be accepted, None where that is not asked."""
        if not self.is_asked:
            return None
        return ACCEPT if self.above is not None and probability > self.above else REVIEW

    def order(self, probabilities_C: np.ndarray) -> np.ndarray:
        """Returns the classes of an image, likeliest first, but the one that it is taken for before all
        others: of those that reach their threshold the one that does by the largest factor, else the
        likeliest without a threshold."""
        order = np.argsort(-probabilities_C, kind="stable")
        if not self.of_classes:
            return order
        factors = {c: float(probabilities_C[c]) / max(t, 1e-12) for c, t in self.of_classes.items()}
        first = max(factors, key=factors.__getitem__)
        if factors[first] < 1:
            free = [c for c in order.tolist() if c not in self.of_classes]
            first = free[0] if free else int(order[0])
        return np.concatenate([[first], order[order != first]])


def check_predicting(settings: Deciding) -> None:
    """Raises UsageError for what options of thresholds cannot mean."""
    goals = parse_goals("--min-precision", settings.min_precision)
    both = set(goals) & set(parse_goals("--min-recall", settings.min_recall))
    if both:
        raise UsageError(
            f"--min-precision and --min-recall both name the class '{console.printable(min(both))}'.",
            "give one threshold for each class.",
        )
    if settings.accept is None:
        return
    fraction_of(str(settings.accept), "--accept", "0.95")
    if settings.min_precision or settings.min_recall:
        raise UsageError(
            "--accept promises something of the likeliest class, which other thresholds change.",
            "leave out --min-precision and --min-recall, or --accept.",
        )


def thresholds_of(settings: Deciding, artifact: Path, metadata: ArtifactMetadata) -> Thresholds:
    """Returns what is decided by, and says what it is expected to cost. Raises UserError."""
    check_predicting(settings)
    if settings.accept is None and not settings.min_precision and not settings.min_recall:
        return Thresholds()
    evidence = read_evidence(artifact)
    if settings.accept is not None:
        accuracy = fraction_of(str(settings.accept), "--accept", "0.95")
        row = accepted_row(evidence, metadata, accuracy)
        console.say(f"accept     {accepted_words(row)}")
        return Thresholds(True, None if row["fraction"] is None else row["threshold"])
    found = {}
    for option, values in (
        ("--min-precision", settings.min_precision),
        ("--min-recall", settings.min_recall),
    ):
        for name, goal in parse_goals(option, values).items():
            number = number_of(name, metadata.classes, option)
            if "labels.probabilities" not in evidence:
                raise UserError(
                    f"{artifact} has no probabilities of labels that were held out, to choose "
                    "thresholds by.",
                    "fine-tune with two labels or more of every class: clfew finetune --labels 4/class",
                )
            point = _point(evidence, number, name, option, goal)
            console.say(f"threshold  {_words(point, name)}")
            found[number] = point.threshold
    return Thresholds(of_classes=found)


def accepted_row(
    evidence: dict[str, np.ndarray], metadata: ArtifactMetadata, accuracy: float
) -> dict[str, Any]:
    """Returns what may be accepted (see `acceptance_row`). evidence: see `read_evidence`."""
    why = ""
    if "test.right" not in evidence:
        learned_from = metadata.data["finetune"]
        has_test = bool(learned_from["test_images"])
        why = "the test images are not known to be drawn at random"
        why = why if has_test else "no labelled images were left to test on"
        if has_test and "test_origins" not in learned_from:
            why = "the classifier is of a version of clfew that kept no test for it; fine-tune again"
    confidence = evidence.get("test.confidence", np.zeros(0))
    right = evidence.get("test.right", np.zeros(0))
    return acceptance_row(why, confidence, right, accuracy)


def _point(
    evidence: dict[str, np.ndarray], number: int, name: str, option: str, goal: float
) -> OperatingPoint:
    """Returns the threshold for a class. Raises UserError if there is none."""
    shown = console.printable(name)
    probability_L = evidence["labels.probabilities"][:, number].astype(float)
    is_class_L = evidence["labels.classes"] == number
    weights_L = evidence["labels.weights"].astype(float)
    if not is_class_L.any():
        raise UserError(f"No label of the class '{shown}' was learned.", "label some images of it.")
    goals = {"precision" if option == "--min-precision" else "recall": goal}
    point = operating_point(probability_L, is_class_L, weights_L, **goals)
    if point is None:
        raise UserError(
            f"With no threshold {percent(goal, 0)} of what is called '{shown}' would be right.",
            "ask for less, or label more images of it.",
        )
    return point


def _words(point: OperatingPoint, name: str) -> str:
    """Returns in words what a threshold is expected to cost."""
    right, found = (
        f"{percent(value, 0)} ({100 * low:.0f} to {100 * high:.0f} %)"
        for value, (low, high) in (
            (point.precision, point.precision_interval),
            (point.recall, point.recall_interval),
        )
    )
    return (
        f"{console.printable(name)} from a probability of {percent(point.threshold)} on: expected to be "
        f"right on {right} of what is called so and to find {found} of the class, by {point.images} "
        "labels that were held out"
    )
