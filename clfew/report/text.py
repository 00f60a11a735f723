"""Formats numbers and settings as text, for pages and for the terminal."""

from typing import Any

from clfew.console import printable


def percent(fraction: float | None, digits: int = 1, space: str = " ") -> str:
    """Formats a fraction as a percentage: 0.803 becomes "80.3 %", None becomes "–"."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f}{space}%"


def flatten(values: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Flattens nested settings into rows: {"a": {"b": [1, 2]}} becomes [("a.b", "1, 2")]."""
    if isinstance(values, dict):
        items = list(values.items())
    elif isinstance(values, list | tuple) and any(isinstance(v, dict | list | tuple) for v in values):
        items = list(enumerate(values))
    else:
        text = ", ".join(map(str, values)) if isinstance(values, list | tuple) else str(values)
        return [(prefix, "–" if values is None else printable(text))]
    dot = "." if prefix else ""
    return [row for key, value in items for row in flatten(value, f"{prefix}{dot}{printable(str(key))}")]


def accepted_words(accepted: dict[str, Any]) -> str:
    """Returns in words what may be accepted unseen."""
    promised = percent(accepted["accuracy"], 0)
    if accepted["fraction"] is None:
        return f"no images may be accepted unseen as {promised} right: {accepted['why']}"
    surest = (
        "all images are"
        if accepted["fraction"] == 1
        else (
            f"the surest {percent(accepted['fraction'], 0)} of images "
            f"(confidence above {percent(accepted['threshold'])}) are"
        )
    )
    return (
        f"{surest} right at least {promised} of the time, as {accepted['right']:,} of "
        f"{accepted['images']:,} test images show (in 95 of 100 samples, that holds)"
    )


SCORES_IN_WORDS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced",
    "macro_f1": "macro F1",
    "average_precision": "average precision",
}


def beside(classifier: dict[str, Any], baselines: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Returns a table of a classifier beside its baselines (see `tested.baselines`), the header first,
    with the scores that the classifier has."""
    rows = [{"name": "clfew", **{name: classifier.get(name) for name in SCORES_IN_WORDS}}, *baselines]
    names = [name for name in SCORES_IN_WORDS if rows[0][name] is not None]
    return [("on the same labels", *(SCORES_IN_WORDS[name] for name in names))] + [
        (
            f"always {printable(row['class'])}" if "class" in row else row["name"],
            *(percent(row.get(name)) for name in names),
        )
        for row in rows
    ]


MOST_SHARES = 12
"""The most classes whose shares and counts are named after fine-tuning; result.json has all."""


def shares_words(shares: list[dict[str, Any]]) -> str:
    """Returns the class shares from a random test sample in words (see `class_shares`)."""
    ordered = sorted(shares, key=lambda row: -row["share"])
    rows = [
        f"{printable(row['class'])} {100 * row['share']:.0f} ({100 * row['low']:.0f} to "
        f"{100 * row['high']:.0f})"
        for row in ordered
    ]
    return f"class shares in per cent, from the random sample: {_first(rows)}"


def counts_words(counts: dict[str, Any]) -> str:
    """Returns in words how many images each class has (see `expected_counts`)."""
    ordered = sorted(counts["classes"], key=lambda row: -row["count"])
    rows = [
        f"{printable(row['class'])} {row['count']:,} ({row['low']:,} to {row['high']:,})"
        for row in ordered
    ]
    return f"expected of {counts['images']:,} images, {counts['origin']}: about {_first(rows)}"


def _first(rows: list[str]) -> str:
    more = f", and {len(rows) - MOST_SHARES} more" if len(rows) > MOST_SHARES else ""
    return ", ".join(rows[:MOST_SHARES]) + more
