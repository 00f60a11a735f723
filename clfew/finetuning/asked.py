"""What options ask for that name shares, metrics and thresholds, read before anything is opened."""

import os
from difflib import get_close_matches
from pathlib import Path

from clfew import console
from clfew.data.lists import is_list, table_of
from clfew.errors import UsageError, UserError
from clfew.runs.files import unguarded

AUTO, EQUAL, LABELS = "auto", "equal", "labels"

ACCURACY, BALANCED, MACRO_F1, AVERAGE_PRECISION = "accuracy", "balanced", "macro-f1", "ap:"
METRICS = (ACCURACY, BALANCED, MACRO_F1)

_HINT = (
    "write --shares auto, equal, labels, the share of each class in per cent such as rest=95,target=5, "
    "or the name of a CSV with the columns class,share."
)

SLACK = 0.01
"""By so much may the shares of all classes together miss 1: they are usually rounded."""


def parse_shares(text: str) -> str | dict[str, float]:
    """Returns "auto", "equal" or "labels", or the share of each class that `text` or the list that it
    names gives, between 0 and 1. Raises UsageError, or UserError for a list that cannot be read."""
    spec = text.strip()
    if spec in (AUTO, EQUAL, LABELS):
        return spec
    if is_list(spec):
        pairs = _listed(spec)
    elif "=" in spec:
        # A name may hold =, a number may not.
        pairs = [
            (name.strip(), number) for name, _, number in (p.rpartition("=") for p in spec.split(","))
        ]
    else:
        raise UsageError(f"--shares {console.printable(spec)[:60]} cannot be understood.", _HINT)
    shares: dict[str, float] = {}
    for name, number in pairs:
        if not name:
            raise UsageError(f"--shares names no class for the share '{number.strip()[:20]}'.", _HINT)
        if name in shares:
            raise UsageError(f"--shares names the class '{console.printable(name)}' twice.", _HINT)
        shares[name] = _number(name, number)
    in_per_cent = any("%" in number for _, number in pairs) or max(shares.values()) > 1
    return {name: share / 100 for name, share in shares.items()} if in_per_cent else shares


def _listed(name: str) -> list[tuple[str, str]]:
    """Returns classes and shares of a list with these two columns."""
    if not os.path.isfile(name):
        raise UserError(f"There is no file {name} to read shares from.", _HINT)
    columns, rows = table_of(Path(name))
    if not {"class", "share"} <= set(columns):
        raise UserError(f"{name} has no columns class and share.", "its first line must be class,share.")
    if not rows:
        raise UserError(f"{name} has no rows.", "write one line for each class: class,share.")
    return [(unguarded(row["class"] or "").strip(), row["share"] or "") for _, row in rows]


def _number(name: str, text: str) -> float:
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise UsageError(
            f"--shares gives the class '{console.printable(name)[:60]}' the share "
            f"'{console.printable(text.strip())[:20]}', which is no number above 0.",
            _HINT,
        )
    return value


def share_of_each(given: dict[str, float], classes: list[str]) -> list[float]:
    """Returns the share of each of the classes, which add up to 1. Classes that are not named share what
    is left. Raises UserError for a class that there is not, and shares that do not add up."""
    for name in given:
        number_of(name, classes, "--shares")
    total, others = sum(given.values()), len(classes) - len(given)
    most = 1 + SLACK if not others else 1 - 1e-9
    if total > most or (not others and total < 1 - SLACK):
        left = f", which leaves nothing for {others} more" if others and total <= 1 + SLACK else ""
        raise UserError(
            f"The shares of --shares add up to {100 * total:.4g} per cent{left}.",
            "give per cent that add up to 100, or leave out the classes that share the rest.",
        )
    rest = (1 - total) / others if others else 0.0
    shares = [given.get(name, rest) for name in classes]
    return [share / sum(shares) for share in shares]


def check_metric(text: str) -> None:
    """Raises UsageError for what `--metric` cannot mean."""
    named = text.strip()
    if named in (AUTO, *METRICS) or named.removeprefix(AVERAGE_PRECISION).strip() not in ("", named):
        return
    close = get_close_matches(named, METRICS, 1)
    raise UsageError(
        f"--metric {console.printable(named)[:60]} is not known.",
        f"did you mean {close[0]}?"
        if close
        else "choose auto, accuracy, balanced, macro-f1, or ap:CLASS for a class's average precision.",
    )


def number_of(name: str, classes: list[str], option: str) -> int:
    """Returns the number of the class that an option names. Raises UserError if there is none."""
    if name in classes:
        return classes.index(name)
    close = get_close_matches(name, classes, 1)
    shown = ", ".join(map(console.printable, classes[:8])) + (", …" if len(classes) > 8 else "")
    raise UserError(
        f"{option} names the class '{console.printable(name)}', which there is not.",
        f"did you mean {console.printable(close[0])}?" if close else f"the classes are {shown}.",
    )


def fraction_of(text: str, option: str, example: str) -> float:
    """Returns a fraction between 0 and 1, both excluded, that is written as 0.95, 95 or 95%. Raises
    UsageError."""
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = -1.0
    value = value / 100 if "%" in text or value > 1 else value
    if not 0 < value < 1:
        raise UsageError(
            f"{option} '{console.printable(text.strip())[:20]}' is not between 0 and 1.",
            f"for example: {option} {example}.",
        )
    return value


def parse_goals(option: str, values: list[str] | None) -> dict[str, float]:
    """Returns the fraction that an option such as --min-precision asks for of each class that it names.
    Raises UsageError."""
    goals: dict[str, float] = {}
    for text in values or []:
        name, equals, number = text.rpartition("=")  # A name may hold =, a number may not.
        if not equals or not name.strip():
            raise UsageError(
                f"{option} {console.printable(text)[:60]} names no class.",
                f"for example: {option} defect=0.9.",
            )
        goals[name.strip()] = fraction_of(number, option, "defect=0.9")
    return goals
