"""Accuracy from 1, 2, 5 and 10 labels a class, of clfew's methods and of simpler ones.

    python examples/benchmarks/few_labels.py DATA [--runs FOLDER] [--only SET ...] [--results FILE]
        [--table]

DATA holds cifar10/, aerial/, sign-digits/ and fashion-mnist-6k/, each with train/CLASS/ and test/CLASS/.
Needs clfew[lite]. All methods use the same five label samples. The test split is used for testing only.
Pretraining runs come first, and nothing else should run on the machine meanwhile. Then come accuracies,
which do not depend on time. Results go to results/few_labels.json, or to FILE; finished parts are not
run again. At the end it prints a table and writes results/few_labels-SET.png; --table does only that.
"""

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import Results

from clfew.commands.finetune import finetune
from clfew.commands.pretrain import pretrain
from clfew.data.image_cache import open_image_cache
from clfew.data.labels import parse_labels, sample_labels
from clfew.data.sources import open_source
from clfew.data.splits import test_indices
from clfew.finetuning.probes import linear_head
from clfew.report.label_efficiency import draw_label_efficiency
from clfew.runs.files import write_bytes

HERE = Path(__file__).parent / "results"
DRAWS = 5
BUDGETS = (1, 2, 5, 10)
METHODS = {
    "raw-pixels": "logistic regression on raw pixels",
    "scratch": "small network from scratch, 32 px or less",
    "frozen": "frozen ImageNet features, logistic regression",
    "simclr": "SimCLR from scratch, finetune",
    "pretrained": "SimCLR from the pretrained start, finetune",
    "both": "both and side by side, finetune chooses",
}


@dataclass(frozen=True)
class Set:
    """How a set of images is trained on.

    size: side in pixels of the pretrained network's input. small: the same of networks from scratch.
    minutes: minutes of pretraining from scratch and of pretraining from pretrained weights. budgets:
    labels a class.
    """

    size: int
    small: int
    minutes: tuple[float, float]
    flip: bool = True
    budgets: tuple[int, ...] = BUDGETS


SETS = {
    "aerial": Set(128, 64, (3, 2)),
    "sign-digits": Set(96, 64, (3, 2), flip=False),  # A mirrored hand is another sign.
    "fashion-mnist-6k": Set(64, 24, (2, 2)),
    "cifar10": Set(96, 24, (4, 4), budgets=(5,)),
}


class Bench:
    def __init__(self, name, data, runs, results):
        self.name, self.set, self.results = name, SETS[name], results
        self.source, self.runs = str(data / name), runs / name

    def pretrained(self, kind):
        """Returns the folder of a pretraining run, which it starts if the folder has no encoder.

        kind: "simclr" from scratch, or "pretrained" from pretrained weights.
        """
        folder, scratch = self.runs / kind, kind == "simclr"
        if not (folder / "encoder.safetensors").exists():
            shutil.rmtree(folder, ignore_errors=True)  # An interrupted run may have left files there.
            options = {"minutes": self.set.minutes[not scratch], "flip": self.set.flip, "out": folder}
            if scratch:
                pretrain(self.source, init="scratch", size=self.set.small, **options)
            else:
                pretrain(self.source, init="imagenet", size=self.set.size, **options)
        return str(folder)

    def cells(self, method, budget):
        """Returns a result for each label sample: the test accuracy and the choices that were made."""
        keys = [f"{self.name} {method} {budget} {draw}" for draw in range(DRAWS)]
        if method == "raw-pixels":
            for draw, key in enumerate(keys):
                self.results.get(key, lambda d=draw: {"accuracy": self.raw_pixels(budget, d)})
        elif any(key not in self.results.done for key in keys):
            rows = self.finetuned(method, budget)
            for key, row in zip(keys, rows, strict=True):
                self.results.get(key, lambda row=row: row)
        return [self.results.done[key] for key in keys]

    def finetuned(self, method, budget):
        if method == "scratch":
            start = {"origin": ["scratch"], "encoder": "resnet8-w32", "size": min(self.set.small, 32)}
        elif method == "frozen":
            start = {"init": "imagenet", "size": self.set.size, "mode": "linear"}
        else:
            kinds = ["pretrained", "simclr"] if method == "both" else [method]
            start = {"origin": [self.pretrained(kind) for kind in kinds]}
        out = self.runs / f"{method}-{budget}"
        shutil.rmtree(out, ignore_errors=True)  # What a stopped one left.
        labels = f"{budget}/class"
        _, result = finetune(
            self.source, labels=labels, repeat=DRAWS, flip=self.set.flip, out=out, **start
        )
        names = ("accuracy", "mode", "start", "reason", "temperature")
        return [{name: row[name] for name in names if name in row} for row in result["draws"]]

    def raw_pixels(self, budget, draw):
        source = open_source(self.source)
        cache = open_image_cache(source, 32)
        test = test_indices(source, 0)
        pool = np.setdiff1d(cache.good, test)
        sampled = sample_labels(source, pool, parse_labels(f"{budget}/class"), draw)
        seen = np.union1d(sampled, pool[:: max(1, len(pool) // 5000)])
        inputs = cache.pixels[seen].reshape(len(seen), -1).astype(np.float32) / 255
        rows = np.searchsorted(seen, sampled)
        head, _ = linear_head(inputs, rows, source.labels[sampled], len(source.classes), draw)
        with torch.no_grad():
            logits = head(torch.from_numpy(cache.pixels[test].reshape(len(test), -1) / np.float32(255)))
        return float((logits.argmax(1).numpy() == source.labels[test]).mean())


def plan(sets):
    """Returns all cells of the table in the order of measurement: those of a set share features."""
    return [(s, m, b) for s in sets for b in SETS[s].budgets for m in METHODS]


def table(results):
    """Returns a Markdown table with a row for each set and method.

    Cells are mean ± standard deviation over the label samples, – if not measured.
    """
    lines = ["| images | method | " + " | ".join(f"{b} a class" for b in BUDGETS) + " |"]
    lines.append("|---|---|" + "---|" * len(BUDGETS))
    for name in SETS:
        for method, title in METHODS.items():
            cells = []
            for budget in BUDGETS:
                found = accuracies(results, name, method, budget)
                deviation = f" ± {100 * np.std(found, ddof=1):.1f}" if len(found) > 1 else ""
                cells.append(f"{100 * np.mean(found):.1f}{deviation}" if len(found) == DRAWS else "–")
            if set(cells) != {"–"}:
                lines.append(f"| {name} | {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def accuracies(results, name, method, budget):
    keys = [f"{name} {method} {budget} {draw}" for draw in range(DRAWS)]
    return [results.done[key]["accuracy"] for key in keys if key in results.done]


def picture(results, name):
    rows = [
        {
            "labels": budget,
            "method": method,
            "mean": float(np.mean(found)),
            "std": float(np.std(found, ddof=1)),
            "draws": found,
        }
        for method in METHODS
        for budget in BUDGETS
        if len(found := accuracies(results, name, method, budget)) == DRAWS
    ]
    counts = {method: sum(row["method"] == method for row in rows) for method in METHODS}
    shown = [row for row in rows if counts[row["method"]] > 2]
    if len({row["method"] for row in shown}) < 2:
        return None
    return draw_label_efficiency(shown, METHODS, "labels a class")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/few_labels"))
    parser.add_argument("--only", nargs="*", default=list(SETS))
    parser.add_argument("--results", type=Path, default=HERE / "few_labels.json")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    results = Results(arguments.results)
    benches = {name: Bench(name, arguments.data, arguments.runs, results) for name in SETS}
    if not arguments.table:
        # Pretraining comes first: what it learns in a minute depends on what else the machine runs.
        for name in arguments.only:
            for kind in ("simclr", "pretrained"):
                benches[name].pretrained(kind)
        for name, method, budget in plan(arguments.only):
            found = [cell["accuracy"] for cell in benches[name].cells(method, budget)]
            std = np.std(found, ddof=1)
            print(f"{name} {method} {budget}: {np.mean(found):.3f} ± {std:.3f}", flush=True)
    for name in SETS:
        if drawn := picture(results, name):
            write_bytes(HERE / f"few_labels-{name}.png", drawn)
    print(table(results))


if __name__ == "__main__":
    main()
