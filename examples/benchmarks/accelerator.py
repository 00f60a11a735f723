"""CIFAR-10 from scratch in minutes on a GPU: a linear probe on all labels; 500, 250 and 40 labels.

    python examples/benchmarks/accelerator.py PACKED [--minutes 6] [--encoder resnet18] [--runs FOLDER]

PACKED is a folder with train/CLASS/ and test/CLASS/, or an archive of it (such as cifar10.tar.xz), which
is unpacked into --runs. Runs SimCLR without outside weights. Then, for each of three label samples of
each size, it fine-tunes, distils, and trains the same network from scratch. The test split is used for
testing only. Finished parts are not run again. At the end it prints one table.
"""

import argparse
import shutil
from pathlib import Path

import numpy as np
from common import Results

from clfew.commands.distill import distill
from clfew.commands.finetune import finetune
from clfew.commands.pretrain import pretrain

HERE = Path(__file__).parent / "results"
LABELS = (500, 250, 40)
DRAWS = 3
ROWS = {"scratch": "same network from scratch", "finetune": "finetune", "distill": "… and distill"}


def unpacked(packed, runs):
    """Returns the folder of images: `packed` itself, or the archive's content, unpacked once."""
    if packed.is_dir():
        return packed
    folder = runs / "images"
    if not folder.exists():
        partial = runs / "images.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.unpack_archive(packed, partial, filter="data")
        partial.rename(folder)
    return folder if (folder / "train").is_dir() else next(folder.glob("*/train")).parent


def fresh(folder):
    """Removes what an interrupted run left in the folder, and returns the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def measure(name, source, runs, options):
    """Returns the test accuracy of one row, number of labels and label sample."""
    row, labels, draw = name
    common = {"labels": str(labels), "seed": draw, "epochs": options.epochs}
    if row == "linear":
        common = {"labels": "all", "mode": "linear"}
    if row == "scratch":
        common |= {"origin": "scratch", "encoder": options.encoder, "size": 32}
    elif row != "distill":
        common["origin"] = str(runs / "pretrain")
    out = fresh(runs / f"{row}-{labels}-{draw}")
    if row == "distill":
        origin = str(runs / f"finetune-{labels}-{draw}")
        budget = {"epochs": options.epochs} if options.epochs else {"minutes": options.distill_minutes}
        _, result = distill(origin=origin, seed=draw, out=out, **budget)
        kept = {"kept": result["kept"], "reason": result["reason"]}
        return {"accuracy": result["student"] if result["kept"] else result["teacher"]} | kept
    _, result = finetune(str(source), out=out, **common)
    found = result["draws"][0]
    return {"accuracy": found["accuracy"], "mode": found["mode"]}


def table(results):
    """Returns a Markdown table: the linear probe, and mean ± standard deviation over label samples."""
    cells = [f"{100 * results.done['linear all 0']['accuracy']:.1f}", *["–"] * len(LABELS)]
    lines = [
        "| | all labels | " + " | ".join(f"{n} labels" for n in LABELS) + " |",
        "|---|" + "---|" * (1 + len(LABELS)),
        "| linear probe | " + " | ".join(cells) + " |",
    ]
    for row, title in ROWS.items():
        found = [[results.done[f"{row} {n} {d}"]["accuracy"] for d in range(DRAWS)] for n in LABELS]
        cells = [f"{100 * np.mean(of):.1f} ± {100 * np.std(of, ddof=1):.1f}" for of in found]
        lines.append(f"| {title} | – | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("packed", type=Path)
    parser.add_argument("--minutes", type=float, default=6.0, help="of pretraining")
    parser.add_argument("--distill-minutes", type=float, default=0.5)
    parser.add_argument("--epochs", type=float, help="instead of minutes, of all trainings: to try it")
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--runs", type=Path, default=Path("runs/accelerator"))
    parser.add_argument("--results", type=Path, default=HERE / "accelerator.json")
    options = parser.parse_args()
    runs, results = options.runs, Results(options.results)
    runs.mkdir(parents=True, exist_ok=True)
    source = unpacked(options.packed, runs)
    if not (runs / "pretrain" / "encoder.safetensors").exists():
        budget = {"epochs": options.epochs} if options.epochs else {"minutes": options.minutes}
        pretrain(
            str(source),
            init="scratch",
            encoder=options.encoder,
            size=32,
            out=fresh(runs / "pretrain"),
            **budget,
        )
    names = [("linear", "all", 0)]
    names += [(row, labels, draw) for labels in LABELS for draw in range(DRAWS) for row in ROWS]
    for name in names:
        key = " ".join(map(str, name))
        results.get(key, lambda name=name: measure(name, source, runs, options))
        print(f"{key}: {results.done[key]['accuracy']:.4f}", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
