"""Prints the tables of the README.md in this folder from the results.

python examples/benchmarks/tables.py
"""

import json
import statistics
from pathlib import Path

from throughput import CASES

RESULTS = Path(__file__).resolve().parent / "results"


def table(title, head, rows, of):
    """Prints one table in Markdown, with the machine and the day of its measurements."""
    print(f"\n### {title}\n")
    print(f"{of['processor']}, {of['cores']} cores, torch {of['torch']}, {of['date']}.\n")
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(row) + " |")


def with_range(values, digits=0):
    """Formats the median of values, with the minimum and the maximum in brackets."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def throughput(of):
    speeds = {}
    for key, rate in of["results"].items():
        case, side, _ = key.split("/")
        speeds.setdefault(case, {}).setdefault(side, []).append(rate)
    for case, sides in speeds.items():
        encoder, size, _, batch, aim = CASES[case]
        ours = statistics.median(sides["clfew"])
        cells = [with_range(sides["clfew"])]
        for side, rates in sides.items():
            if side != "clfew":
                cells.append(f"{with_range(rates)}: **{ours / statistics.median(rates):.2f}×**")
        yield [f"{encoder}, {size} px, batch {batch}", *cells, f"{aim}×"]


def limit(of):
    for row in of["results"]:
        loop = statistics.median(row["loop_s"])
        yield [
            f"{row['encoder']}, {row['size']} px, batch {row['batch']}",
            f"{row['images_per_second']:.0f}",
            f"{row['images_per_second_at_peak']:.0f}",
            f"{row['share']:.0%} ({row['share_min']:.0%} to {row['share_max']:.0%})",
            f"{row['views_s'] / loop:.1%}",
            f"{row['waiting']:.2%}",
        ]


def quality(of):
    for key, found in sorted(of["results"].items(), key=lambda item: float(item[0].split("/")[1])):
        side, minutes = key.split("/")
        few = [
            f"{found[mode]['mean']:.3f} ± {found[mode]['std']:.3f}" if mode in found else "–"
            for mode in ("linear", "full")
        ]
        yield [minutes, side, f"{found['trained']['epochs']:.1f}", f"{found['knn']:.3f}", *few]


def prediction(of):
    for case, sides in of["results"].items():
        speed = {s: [row["images_per_second"] for row in rows] for s, rows in sides.items()}
        memory = {s: max(row["megabytes"] for row in rows) for s, rows in sides.items()}
        loader = statistics.median(speed["loader"])
        cells = [
            f"{with_range(speed[s])}: **{statistics.median(speed[s]) / loader:.2f}×**, {memory[s]} MB"
            for s in ("predict", "embed")
        ]
        yield [case, *cells, f"{with_range(speed['loader'])}, {memory['loader']} MB"]


def building(of):
    for name, rates in of["results"].items():
        if name not in ("first batch", "steps"):
            plain = {side: rate for side, rate in rates.items() if side != "clfew"}
            cells = [f"{rate:.0f}: **{rates['clfew'] / rate:.2f}×**" for rate in plain.values()]
            yield [name, f"{rates['clfew']:.0f}", *cells]


def memory(of):
    for row in of["results"]["steps"]:
        yield [
            f"{row['images']:,}",
            f"{row['step_s']:.3f} s",
            f"{row['waiting']:.2%}",
            f"{row['before_mb']} MB",
            f"{row['peak_mb']} MB",
        ]


def convolutions(of):
    for row in of["results"]:
        ratio = row["product"] / row["onednn"]
        numbers = [f"{row[side]:.0f}" for side in ("forward", "onednn", "product")]
        yield [row["layer"], *numbers, f"{ratio:.2f}×"]


TABLES = [
    (
        "throughput.json",
        throughput,
        "Training throughput, images/s",
        ["case", "clfew", "lightly-train", "lightly", "plain loop", "aim"],
    ),
    (
        "time_to_quality.json",
        quality,
        "Accuracy after minutes",
        ["minutes", "", "epochs", "kNN", "50 labels a class, linear", "full"],
    ),
    (
        "limit.json",
        limit,
        "The loop and its limit",
        ["case", "images/s", "at peak", "encoder alone", "views", "waiting"],
    ),
    (
        "store.json",
        building,
        "Building an image cache, images/s",
        ["images", "clfew", "Pillow, 1 thread", "Pillow, 2 threads"],
    ),
    (
        "store.json",
        memory,
        "A million images at 96 px",
        ["images", "a step", "waiting", "memory before training", "at most"],
    ),
    (
        "prediction.json",
        prediction,
        "Prediction, images/s and peak memory",
        ["case", "`clfew predict`", "`clfew embed`", "DataLoader loop"],
    ),
    (
        "convolutions.json",
        convolutions,
        "Gradients of weights, GFLOP/s",
        ["layer", "forward", "oneDNN", "clfew", "ratio"],
    ),
]


def main():
    for name, rows, title, head in TABLES:
        if (RESULTS / name).exists():
            of = json.loads((RESULTS / name).read_text())
            table(title, head, rows(of), of)


if __name__ == "__main__":
    main()
