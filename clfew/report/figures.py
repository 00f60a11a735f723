"""The pictures of a report, as PNG bytes, each in a light or a dark theme.

Class names are untrusted text: they are never read as TeX and are shortened in the middle. Characters
that no installed font can draw become ▯ instead of causing a warning.

Shape suffixes: N images, M images shown, C classes, D features, S side in pixels, B bins.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colors, font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image
from sklearn.manifold import TSNE

from clfew.data.colour import LUMA
from clfew.finetuning.metrics import calibration_bins
from clfew.report.colours import COLOURS
from clfew.report.png import png_of

MAP_IMAGES = 1500
"""The most images on the map. t-SNE takes a few seconds for this many points, and more would hide one
another anyway."""
NAMED_CLASSES = 20
"""With more classes than this, counts do not fit into a matrix's cells and a legend is not readable."""
DPI = 200  # The page shows pictures at half their size in pixels, to be sharp on a dense screen.

_COLOURS = (*COLOURS, "#8c8c8c")
# Those of these fonts that are installed draw the characters that DejaVu Sans lacks.
_MORE_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans JP",
    "Noto Sans SC",
    "WenQuanYi Zen Hei",
    "Hiragino Sans",
    "PingFang SC",
    "Yu Gothic",
    "Microsoft YaHei",
    "Malgun Gothic",
    "Noto Sans Thai",
)


@dataclass(frozen=True)
class Theme:
    """Colours as #rrggbb.

    right and wrong also differ in lightness, for readers who cannot distinguish the hues.
    """

    paper: str
    ink: str
    faint: str
    line: str
    right: str
    wrong: str


LIGHT = Theme("#ffffff", "#1d2433", "#667085", "#e3e7ee", right="#2459b8", wrong="#e8710a")
DARK = Theme("#181b22", "#e7eaf0", "#98a1b2", "#2c323d", right="#6aa3ff", wrong="#ff9a3d")


def confusion_picture(
    confusion: Sequence[Sequence[int]], classes: Sequence[str], theme: Theme = LIGHT
) -> bytes:
    """Draws a confusion matrix: rows are true classes, columns are predicted classes.

    A cell's colour strength is its fraction of the row. The diagonal has another hue.
    """
    counts_CxC = np.asarray(confusion, dtype=np.int64)
    count = len(counts_CxC)
    fraction_CxC = counts_CxC / np.maximum(counts_CxC.sum(1, keepdims=True), 1)
    named = count <= NAMED_CLASSES
    # A mistake made for 1 image in 50 matters, but would be almost invisible on a linear colour scale.
    strength_CxC = fraction_CxC ** (0.7 if named else 0.5)
    right, wrong, paper = (np.array(colors.to_rgb(c)) for c in (theme.right, theme.wrong, theme.paper))
    hues = np.where(np.eye(count, dtype=bool)[..., None], right, wrong)
    pixels_CxCx3 = paper + strength_CxC[..., None] * (hues - paper)

    with style(theme):
        side = min(max(0.42 * count, 2.4), 6.4) if named else 6.0
        figure = Figure(figsize=(side, side))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(pixels_CxCx3, interpolation="nearest")
        # Of more than 45 classes only every k-th name is written: as many as fit.
        shown = range(0, count, 1 if count <= 45 else math.ceil(count / 40))
        size = 9 if named else 7
        names = [readable(classes[i], i) for i in shown]
        # Names fit side by side, without a slant, at about 12 letters an inch.
        slanted = max(map(len, names)) * count > 12 * side
        slant: Any = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
        axes.set_yticks(list(shown), names, fontsize=size)
        axes.set_xticks(list(shown), names, fontsize=size, **slant)
        axes.tick_params(length=0 if named else 2, pad=4)
        axes.set(xlabel="predicted", ylabel="true")
        if named:
            edges = np.arange(count + 1) - 0.5
            axes.hlines(edges, -0.5, count - 0.5, theme.line, linewidth=0.6)
            axes.vlines(edges, -0.5, count - 0.5, theme.line, linewidth=0.6)
            for row, column in np.argwhere(counts_CxC):
                luma = pixels_CxCx3[row, column] @ LUMA
                colour = LIGHT.paper if luma < 0.55 else LIGHT.ink
                look: Any = {"ha": "center", "va": "center", "fontsize": 8.5 if count <= 12 else 7}
                axes.text(column, row, str(counts_CxC[row, column]), color=colour, **look)
        axes.spines[:].set(visible=not named, color=theme.line)
        return png(figure)


def reliability_picture(
    confidence_N: np.ndarray, correct_N: np.ndarray, ece: float, theme: Theme = LIGHT
) -> bytes:
    """Draws accuracy against confidence in 15 bins of equal width, above a histogram of confidence."""
    count_B, accuracy_B, confidence_B = calibration_bins(confidence_N, correct_N)
    filled = count_B > 0
    accuracy_B, confidence_B = accuracy_B[filled], confidence_B[filled]
    left_B = np.arange(len(count_B)) / len(count_B)

    with style(theme):
        figure = Figure(figsize=(5.2, 5.2), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3.4, 1))
        bars: Any = {
            "align": "edge",
            "width": 1 / len(count_B),
            "edgecolor": theme.paper,
            "linewidth": 1,
        }
        top.bar(left_B[filled], accuracy_B, color=theme.right, **bars)
        low_B, gap_B = np.minimum(accuracy_B, confidence_B), np.abs(accuracy_B - confidence_B)
        gap: Any = {"facecolor": theme.wrong + "33", "edgecolor": theme.wrong, "hatch": "/////"}
        top.bar(left_B[filled], gap_B, bottom=low_B, **{**bars, **gap})
        dashes: Any = {"color": theme.faint, "linestyle": (0, (4, 3)), "linewidth": 1.2}
        top.plot([0, 1], [0, 1], **dashes)
        top.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        top.set_title(f"Expected calibration error {100 * ece:.1f} %", loc="left", pad=28)
        handles = [Patch(color=theme.right), Patch(**gap), Line2D([], [], **dashes)]
        names = ["accuracy", "gap to confidence", "perfect calibration"]
        top.legend(handles, names, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=3)
        bottom.bar(left_B, count_B, color=theme.faint, **bars)
        bottom.set(xlabel="confidence", ylabel="images", ylim=(0, count_B.max() * 1.08))
        bottom.locator_params(axis="y", nbins=3, integer=True)
        quiet(top, bottom)
        return png(figure)


def embed(features_NxD: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Places images on a map by their features: PCA to 50 dimensions, then t-SNE to 2.

    Returns the indices of the images shown (M,) and their positions (M, 2). At most 1,500 images are
    shown, chosen at random. Fewer than 10 images are placed by PCA alone, because t-SNE needs
    neighbourhoods to preserve.
    """
    shuffled_N = np.random.default_rng(seed).permutation(len(features_NxD))
    shown_M = np.sort(shuffled_N[:MAP_IMAGES])
    features_MxD = np.nan_to_num(features_NxD[shown_M].astype(np.float64), posinf=0.0, neginf=0.0)
    features_MxD -= features_MxD.mean(0)
    left, values, _ = np.linalg.svd(features_MxD, full_matrices=False)
    principal = (left * values)[:, :50]
    principal = np.pad(principal, ((0, 0), (0, max(0, 2 - principal.shape[1]))))
    first = principal[:, :2]
    if len(shown_M) < 10 or np.ptp(principal) < 1e-9:
        return shown_M, first
    # t-SNE starts from the principal components at a small scale (Kobak and Berens 2019). The max avoids
    # a division by 0 where the first component is constant.
    start = first / max(first[:, 0].std(), 1e-12) * 1e-4
    perplexity = min(30.0, (len(shown_M) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init=start, learning_rate="auto", random_state=seed)
    return shown_M, tsne.fit_transform(principal)


def embedding_picture(
    points_Mx2: np.ndarray,
    labels_M: np.ndarray,
    wrong_M: np.ndarray,
    classes: Sequence[str],
    theme: Theme = LIGHT,
) -> bytes:
    """Draws the map that `embed` returns, coloured by true class. Wrong predictions have a ring."""
    count, named = len(classes), len(classes) <= NAMED_CLASSES
    wheel = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, count))
    colour_Cx4 = colors.to_rgba_array([_COLOURS[i % 10] for i in range(count)]) if named else wheel
    marker_C = ["s" if named and i >= 10 else "o" for i in range(count)]
    edge_Mx4 = colors.to_rgba_array([theme.ink if wrong else "#00000000" for wrong in wrong_M])
    size = float(np.clip(15000 / len(points_Mx2), 16, 60))

    with style(theme):
        figure = Figure(figsize=(9.2 if named else 8.0, 5.4), layout="constrained")
        axes = figure.subplots()
        for marker in sorted(set(marker_C)):
            # Wrong predictions are drawn last, so that they lie on top.
            drawn = [i for i in np.argsort(wrong_M, kind="stable") if marker_C[labels_M[i]] == marker]
            look: Any = {"color": colour_Cx4[labels_M[drawn]], "edgecolors": edge_Mx4[drawn]}
            x, y = points_Mx2[drawn].T
            axes.scatter(x, y, size, marker=marker, linewidths=0.9, **look)
        dots: list[dict[str, Any]] = [{"marker": "o", "mfc": "none", "mec": theme.ink}]
        place: Any = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0)}
        names = ["predicted wrong"]
        if named:
            present = np.unique(labels_M)
            dots = [{"marker": marker_C[i], "color": colour_Cx4[i]} for i in present] + dots
            names = [readable(classes[i], int(i)) for i in present] + names
            place["loc"], place["bbox_to_anchor"] = "center left", (1.0, 0.5)
        handles = [Line2D([], [], linestyle="", markersize=6, **dot) for dot in dots]
        # The names are set afterwards, because matplotlib omits legend entries that begin with _.
        legend = axes.legend(handles, ["-"] * len(handles), **place)
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_text(name)
        axes.set(xticks=[], yticks=[])
        axes.margins(0.04)
        axes.spines[:].set_color(theme.line)
        return png(figure)


def curves_picture(rows: Sequence[dict[str, Any]], title: str, theme: Theme = LIGHT) -> bytes:
    """Draws the loss over epochs from the rows of metrics.jsonl, and the learning rate as a dotted line.

    A long curve is drawn pale, with its moving average on top.
    """
    kept = [row for row in rows if math.isfinite(row.get("loss", math.nan))]
    epochs = [float(row.get("epoch", row.get("step", i))) for i, row in enumerate(kept)]
    loss = np.array([float(row["loss"]) for row in kept])

    with style(theme):
        figure = Figure(figsize=(4.7, 3.0), layout="constrained")
        axes = figure.subplots()
        window = len(loss) // 25
        if window > 1:
            axes.plot(epochs, loss, color=theme.right, alpha=0.3, linewidth=0.8)
            ones = np.ones(window)
            loss = np.convolve(loss, ones, "same") / np.convolve(np.ones(len(loss)), ones, "same")
        axes.plot(epochs, loss, color=theme.right, linewidth=1.8, marker="o" if len(kept) == 1 else "")
        axes.set(xlabel="epoch", ylabel="loss")
        axes.set_title(readable(title, 0, 40), loc="left")
        quiet(axes)
        if kept and all("lr" in row for row in kept):
            rates = [row["lr"] for row in kept]
            second = axes.twinx()
            second.plot(epochs, rates, color=theme.faint, linewidth=1, linestyle=(0, (2, 2)))
            second.set_ylim(0, max(max(rates) * 1.15, 1e-12))
            second.set_ylabel("learning rate (dotted)", color=theme.faint)
            second.tick_params(colors=theme.faint)
            quiet(second, grid=False)
        return png(figure)


def thumbnail(image_SxSx3: np.ndarray, aspect: float, longest: int = 160) -> tuple[bytes, str]:
    """Restores the aspect (width / height) of an image that was squeezed to a square.

    Returns the file's bytes and MIME type. The image is never enlarged. A small image is kept exactly,
    as PNG; a larger one becomes a JPEG.
    """
    aspect = float(np.clip(aspect, 1 / 8, 8)) if math.isfinite(aspect) and aspect > 0 else 1.0
    side = min(len(image_SxSx3), longest)
    size = (max(1, round(side * min(aspect, 1))), max(1, round(side / max(aspect, 1))))
    image = Image.fromarray(np.ascontiguousarray(image_SxSx3, dtype=np.uint8))
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if side <= 64:
        image.save(buffer, "PNG", optimize=True)
        return buffer.getvalue(), "image/png"
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue(), "image/jpeg"


def readable(name: str, index: int, limit: int = 18) -> str:
    """Returns `name` on one line, shortened in the middle, without characters that the fonts lack.

    If no character is left, the name becomes "class" and its number, such as "class 3".
    """
    name = " ".join(name.split())
    if not name.isascii():
        name = "".join(c if ord(c) in _drawable() else "▯" for c in name)
    name = "".join(c if c.isprintable() else "▯" for c in name)
    if not name.replace("▯", "").strip():
        return f"class {index + 1}"
    return name if len(name) <= limit else f"{name[: limit - 7]}…{name[-6:]}"


@cache
def _fonts() -> list[str]:
    """Returns DejaVu Sans, which comes with matplotlib, and those of _MORE_FONTS that are installed.

    Fonts that are not installed are left out, because matplotlib would warn about them.
    """
    installed = set(font_manager.get_font_names())
    return ["DejaVu Sans", *(name for name in _MORE_FONTS if name in installed)]


@cache
def _drawable() -> frozenset[int]:
    """Returns the code points of all characters that the fonts can draw."""
    paths = [font_manager.findfont(name) for name in _fonts()]
    return frozenset(code for path in paths for code in font_manager.get_font(path).get_charmap())


def style(theme: Theme) -> Any:
    """Returns a context manager that sets matplotlib's colours and fonts to the theme."""
    settings: Any = {
        "text.parse_math": False,
        "text.usetex": False,
        "font.family": _fonts(),
        "font.size": 9,
        "text.color": theme.ink,
        "axes.labelcolor": theme.faint,
        "xtick.color": theme.faint,
        "ytick.color": theme.faint,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "axes.facecolor": theme.paper,
        "figure.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "axes.titlesize": 10,
        "axes.edgecolor": theme.line,
        "axes.axisbelow": True,
        "grid.color": theme.line,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "legend.handletextpad": 0.5,
        "legend.columnspacing": 1.4,
        "legend.borderaxespad": 0.3,
    }
    return matplotlib.rc_context(settings)


def quiet(*several: Axes, grid: bool = True) -> None:
    """Removes the frame and the tick marks of axes and shows horizontal grid lines only."""
    for axes in several:
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, pad=6)
        axes.grid(grid, axis="y")


def png(figure: Figure) -> bytes:
    """Returns a figure as PNG bytes.

    A figure without a layout engine is cropped to its content, for which matplotlib draws it twice.
    """
    box = None if figure.get_layout_engine() else "tight"
    return png_of(figure, dpi=DPI, bbox_inches=box, pad_inches=0.08)
