"""compare.html and compare.png: the results of a comparison, in one page that needs no network."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from clfew.console import printable
from clfew.report.colours import COLOURS
from clfew.report.png import data_uri, png_of
from clfew.report.render import render_page
from clfew.runs.files import write_bytes, write_text

_COLOURS = (*COLOURS, "#1d2433")
_BASELINES = {"raw-pixels": (":", "s"), "random": (":", "v"), "scratch": ("--", "D")}
_GREY = {"raw-pixels": "#8a8f98", "random": "#b3b8c2", "scratch": "#5d6779"}


def write_comparison(folder: Path, result: dict[str, Any]) -> None:
    """Writes compare.png and compare.html into the folder of a comparison.

    Raises UserError if a file cannot be written.
    """
    picture = draw_comparison(result)
    write_bytes(folder / "compare.png", picture)
    write_text(folder / "compare.html", render(folder, result, picture))


def draw_comparison(result: dict[str, Any]) -> bytes:
    """Draws label-efficiency curves with 95 % intervals and returns them as a PNG.

    The legend starts with the method that is best at the largest label budget.
    """
    figure = Figure(figsize=(8, 4.6), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    budgets = sorted({row["labels"] for row in result["rows"]})
    # Colours go by name, so that a method's colour does not depend on its accuracy.
    methods = sorted(set(result["titles"]) - set(_GREY))
    ends = {row["method"]: row["mean"] for row in result["rows"] if row["labels"] == budgets[-1]}
    count = len(ends)
    for place, name in enumerate(sorted(ends, key=lambda m: -ends[m])):
        rows = sorted((r for r in result["rows"] if r["method"] == name), key=lambda r: r["labels"])
        line, marker = _BASELINES.get(name, ("-", "o"))
        colour = _GREY.get(name) or _COLOURS[methods.index(name) % len(_COLOURS)]
        # Points are shifted sideways a little, or their intervals would hide one another.
        shift = 1.05 ** ((place - (count - 1) / 2) * 0.35)
        axes.errorbar(
            [r["labels"] * shift for r in rows],
            [100 * r["mean"] for r in rows],
            yerr=[
                [100 * (r["mean"] - (r["ci95"] or [r["mean"]] * 2)[0]) for r in rows],
                [100 * ((r["ci95"] or [r["mean"]] * 2)[1] - r["mean"]) for r in rows],
            ],
            label=printable(result["titles"].get(name, name)),
            color=colour,
            marker=marker,
            markersize=5,
            linestyle=line,
            linewidth=1.6,
            elinewidth=1,
            capsize=2,
        )
    if len(budgets) > 1:
        axes.set_xscale("log")
    axes.set_xticks(budgets, [f"{n}" for n in budgets])
    axes.minorticks_off()
    axes.set_xlabel("number of labels used")
    axes.set_ylabel("accuracy on unseen images, % (95 % interval)")
    axes.grid(axis="y", color="#e3e7ee")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
    return png_of(figure)


def render(folder: Path, result: dict[str, Any], picture: bytes) -> str:
    """Returns the page as HTML, with all pictures embedded in it."""
    samples = {
        row["method"]: data_uri((folder / row["samples"]).read_bytes())
        for row in result["pretraining"]
        if row["seed"] == result["pretraining"][0]["seed"] and (folder / row["samples"]).exists()
    }
    return render_page(
        "compare.html",
        {"percent": lambda fraction: f"{100 * fraction:.1f}"},
        result=result,
        header=header(result),
        lines=lines(result),
        plot=data_uri(picture),
        samples=samples,
    )


def header(result: dict[str, Any]) -> list[str]:
    """Returns the header of the accuracy table: a title, then each label budget with its label count."""
    counts = {row["budget"]: row["labels"] for row in result["rows"]}
    return ["accuracy, % (95 % interval)", *(f"{budget} ({count})" for budget, count in counts.items())]


def lines(result: dict[str, Any]) -> list[list[str]]:
    """Returns a line for each encoder: title, then each budget's mean and its 95 % interval."""
    budgets = list(dict.fromkeys(row["budget"] for row in result["rows"]))
    cells = {(row["method"], row["budget"]): row for row in result["rows"]}
    names = list(dict.fromkeys(row["method"] for row in result["rows"]))
    return [
        [result["titles"].get(name, name), *(_cell(cells[name, budget]) for budget in budgets)]
        for name in names
    ]


def _cell(row: dict[str, Any]) -> str:
    if row["ci95"] is None:
        return f"{100 * row['mean']:.1f}"
    low, high = row["ci95"]
    return f"{100 * row['mean']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
