"""The picture of precision against recall, class by class: what a threshold on a class's probability
costs in either."""

import numpy as np
from matplotlib.figure import Figure

from clfew.report.colours import COLOURS
from clfew.report.figures import LIGHT, Theme, png, quiet, readable, style

SHOWN = 8
"""So many classes fit into the legend: those with the lowest average precision."""


def precision_recall_picture(
    probabilities_NxC: np.ndarray,
    labels_N: np.ndarray,
    classes: list[str],
    average_precision: list[float | None],
    theme: Theme = LIGHT,
) -> bytes:
    """Draws a curve for each of SHOWN classes, the lowest average precision first: steps, from the image
    of which the classifier is surest that it belongs to the class to that of which it is least sure."""
    from sklearn.metrics import precision_recall_curve

    tested = np.unique(labels_N).tolist()
    lowest = sorted(tested, key=lambda c: average_precision[c] or 0.0)[:SHOWN]
    with style(theme):
        figure = Figure(figsize=(5.2, 5.2), layout="constrained")
        axes = figure.subplots()
        for number, c in enumerate(lowest):
            precision, recall, _ = precision_recall_curve(labels_N == c, probabilities_NxC[:, c])
            count = int((labels_N == c).sum())
            axes.step(
                recall,
                precision,
                where="post",
                color=COLOURS[number],
                linewidth=1.6,
                label=f"{readable(classes[c], c)}: {100 * (average_precision[c] or 0):.1f} % of {count}",
            )
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.02))
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2)
        quiet(axes)
        return png(figure)
