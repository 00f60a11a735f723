"""Accuracy from 1, 2, 5, 10 and 50 labels a class, of clfew's methods and of simpler ones.

    python examples/benchmarks/few_labels.py DATA [--runs FOLDER] [--only SET ...] [--table]

DATA holds cifar10/, aerial/, sign-digits/ and fashion-mnist-6k/, each with train/CLASS/ and test/CLASS/.
Needs clfew[lite]. All methods use the same five label samples. The test split is used for testing only.
Pretraining runs come first, and nothing else should run on the machine meanwhile. Then come accuracies,
which do not depend on time. Those of `distill`, which do (0.2 minutes), come last. Finished parts are
not run again. At the end it prints two tables and writes results/few_labels-SET.png; --table does only
that.
"""

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from common import Results

from clfew.commands.distill import distill
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
BUDGETS = (1, 2, 5, 10, 50)
METHODS = {
    "raw-pixels": "logistic regression on raw pixels",
    "scratch": "small network from scratch, 32 px or less",
    "frozen": "frozen ImageNet features, logistic regression",
    "simclr": "SimCLR from scratch, finetune",
    "simclr+distill": "SimCLR from scratch, finetune, distill",
    "pretrained": "SimCLR from the pretrained start, finetune",
    "both": "both, finetune",
    "pretrained+distill": "SimCLR from the pretrained start, finetune, distill",
}


@dataclass(frozen=True)
class Set:
    """How a set of images is trained on.

    size: side in pixels of the pretrained network's input. small: the same of networks from scratch.
    minutes: minutes of pretraining from scratch and of pretraining from pretrained weights.
    """

    size: int
    small: int
    minutes: tuple[float, float]
    flip: bool = True


SETS = {
    "aerial": Set(128, 64, (3, 2)),
    "sign-digits": Set(96, 64, (3, 2), flip=False),  # A mirrored hand is another sign.
    "fashion-mnist-6k": Set(64, 24, (2, 2)),
    "cifar10": Set(96, 24, (4, 4)),
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
        if method.endswith("+distill"):
            start = method.removesuffix("+distill")
            for draw, key in enumerate(keys):
                self.results.get(key, lambda draw=draw: self.distilled(start, budget, draw))
        elif method == "raw-pixels":
            for draw, key in enumerate(keys):
                self.results.get(key, lambda d=draw: {"accuracy": self.raw_pixels(budget, d)})
        elif any(key not in self.results.done for key in keys):
            rows = self.finetuned(method, budget, 0, DRAWS)
            for key, row in zip(keys, rows, strict=True):
                self.results.get(key, lambda row=row: row)
        return [self.results.done[key] for key in keys]

    def finetuned(self, method, budget, draw, repeat):
        """Fine-tunes on `repeat` label samples, `draw` being the first. Its classifier is saved."""
        if method == "scratch":
            start = {"origin": ["scratch"], "encoder": "resnet8-w32", "size": min(self.set.small, 32)}
        elif method == "frozen":
            start = {"init": "imagenet", "size": self.set.size, "mode": "linear"}
        else:
            kinds = ["pretrained", "simclr"] if method == "both" else [method]
            start = {"origin": [self.pretrained(kind) for kind in kinds]}
            if budget == 50 and method != "pretrained":
                start["epochs"] = 10  # Instead of 60, as each fit is cross-validated too.
        out = self.folder(method, budget, draw)
        shutil.rmtree(out, ignore_errors=True)  # What a stopped one left.
        labels = f"{budget}/class"
        _, result = finetune(
            self.source, labels=labels, seed=draw, repeat=repeat, flip=self.set.flip, out=out, **start
        )
        names = ("accuracy", "mode", "start", "reason", "temperature")
        return [{name: row[name] for name in names if name in row} for row in result["draws"]]

    def distilled(self, start, budget, draw):
        """The student's accuracy where it was kept, else the teacher's."""
        before = self.cells(start, budget)[draw]
        if budget == 1:
            reason = "one label a class: nothing can be compared, the teacher stays"
            return {"accuracy": before["accuracy"], "kept": False, "reason": reason}
        teacher, out = (self.folder(m, budget, draw) for m in (start, f"{start}+distill"))
        if not (teacher / "classifier.safetensors").exists():
            self.finetuned(start, budget, draw, 1)
        shutil.rmtree(out, ignore_errors=True)
        _, result = distill(origin=str(teacher), minutes=0.2, seed=draw, out=out)
        accuracy = result["student"] if result["kept"] else result["teacher"]
        names = ("kept", "reason", "teacher", "student")
        return {"accuracy": accuracy} | {name: result[name] for name in names}

    def folder(self, method, budget, draw):
        return self.runs / f"{method}-{budget}-{draw}"

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
    """Returns all cells of the table in the order of measurement.

    Cells that have a target come first; then set by set, because cells of the same set share features.
    """
    first = [
        ("aerial", 1),
        ("aerial", 5),
        ("cifar10", 5),
        ("fashion-mnist-6k", 1),
        ("sign-digits", 2),
    ]
    plain = ("frozen", "pretrained", "simclr", "both", "raw-pixels", "scratch")
    distilled = ("pretrained+distill", "simclr+distill")
    targets = [(s, m, b) for s, b in first for m in plain]
    order = [(s, m, b) for ms in (plain, distilled) for s in SETS for m in ms for b in BUDGETS]
    return [cell for cell in dict.fromkeys([*targets, *order]) if cell[0] in sets]


def table(results):
    """Returns a Markdown table with a row for each set and method except `distill`.

    Cells are mean ± standard deviation over the label samples, – if not measured.
    """
    lines = ["| images | method | " + " | ".join(f"{b} a class" for b in BUDGETS) + " |"]
    lines.append("|---|---|" + "---|" * len(BUDGETS))
    for name in SETS:
        for method, title in METHODS.items():
            if method.endswith("+distill"):
                continue
            cells = []
            for budget in BUDGETS:
                found = accuracies(results, name, method, budget)
                deviation = f" ± {100 * np.std(found, ddof=1):.1f}" if len(found) > 1 else ""
                cells.append(f"{100 * np.mean(found):.1f}{deviation}" if len(found) == DRAWS else "–")
            if set(cells) != {"–"}:
                lines.append(f"| {name} | {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def students(results):
    """Returns a Markdown table of teachers and students of `distill`, and how many students were kept.

    The accuracies are of all students, kept or not.
    """
    lines = [
        "| images | start | labels a class | teachers | students | kept |",
        "|---|---|---|---|---|---|",
    ]
    for name in SETS:
        for method, title in METHODS.items():
            for budget in BUDGETS:
                keys = [f"{name} {method} {budget} {draw}" for draw in range(DRAWS)]
                found = [results.done[k] for k in keys if "student" in results.done.get(k, {})]
                if len(found) < DRAWS:
                    continue
                start = "pretrained" if "pretrained" in title else "scratch"
                means = [
                    f"{100 * np.mean([f[who] for f in found]):.1f}" for who in ("teacher", "student")
                ]
                kept = sum(f["kept"] for f in found)
                lines.append(
                    f"| {name} | {start} | {budget} | " + " | ".join(means) + f" | {kept} of 5 |"
                )
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
    shown = [r for r in rows if counts[r["method"]] > 2 and not r["method"].endswith("+distill")]
    if len({row["method"] for row in shown}) < 2:
        return None
    return draw_label_efficiency(shown, METHODS, "labels a class")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/few_labels"))
    parser.add_argument("--only", nargs="*", default=list(SETS))
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    results = Results(HERE / "few_labels.json")
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
    print()
    print(students(results))


if __name__ == "__main__":
    main()
