"""The plot of label efficiency: accuracy against the number of labels, one line for each method."""

from typing import Any

from matplotlib.figure import Figure

from clfew.report.png import png_of

_STYLES = (
    ("#8a8f98", "s", ":"),
    ("#c98a3d", "^", "--"),
    ("#2459b8", "o", "-"),
    ("#7b4fa3", "v", "--"),
    ("#7b4fa3", "D", "-"),
    ("#1d8a6b", "P", "--"),
    ("#1d8a6b", "X", "-"),
)


def draw_label_efficiency(
    rows: list[dict[str, Any]], titles: dict[str, str], labels: str = "number of labels used"
) -> bytes:
    """Draws mean accuracy against the number of labels and returns the plot as a PNG.

    Error bars show the standard deviation over label samples.

    rows: dicts with the keys `labels`, `method`, `mean` and `std`. titles: the legend's title of each
    method, in the order of the legend from the bottom up; a legend of more than four methods is placed
    below the plot instead of inside it. labels: the title of the x axis.
    """
    is_long = len(titles) > 4
    figure = Figure(figsize=(6.4, 5 if is_long else 4), dpi=160, layout="constrained")
    axes = figure.add_subplot()
    for (method, title), (colour, marker, line) in zip(titles.items(), _STYLES, strict=False):
        rows_of = sorted((r for r in rows if r["method"] == method), key=lambda r: r["labels"])
        if not rows_of:  # The style is skipped too, so that each method keeps its own.
            continue
        axes.errorbar(
            [r["labels"] for r in rows_of],
            [100 * r["mean"] for r in rows_of],
            yerr=[100 * (r["std"] or 0) for r in rows_of],
            label=title,
            color=colour,
            marker=marker,
            linestyle=line,
            linewidth=2,
            capsize=3,
        )
    budgets = sorted({r["labels"] for r in rows})
    axes.set_xscale("log")
    axes.set_xticks(budgets, [f"{n}" for n in budgets])
    axes.minorticks_off()
    axes.set_xlabel(labels)
    has_deviation = any(r["std"] for r in rows)
    axes.set_ylabel("accuracy on unseen images, %" + (" (± std)" if has_deviation else ""))
    axes.grid(axis="y", color="#e3e7ee")
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    if is_long:
        figure.legend(handles[::-1], names[::-1], frameon=False, loc="outside lower center", fontsize=8)
    else:
        axes.legend(handles[::-1], names[::-1], frameon=False, loc="lower right")
    return png_of(figure)
