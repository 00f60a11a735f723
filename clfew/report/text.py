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
