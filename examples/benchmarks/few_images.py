"""Which of several starts `finetune` takes where there are only about a hundred images.

    python examples/benchmarks/few_images.py DATA [--runs FOLDER] [--only SET ...] [--minutes M]

DATA holds photos/ with CLASS/, and cifar10/, aerial/, sign-digits/ and fashion-mnist-6k/ with
train/CLASS/. Needs clfew[lite]. Of each, about a hundred images are copied to FOLDER: all photos, 8 of
each class of aerial, 10 of each class of the others. `clfew pretrain --init both` then has M minutes, by
default 2; nothing else should run on the machine meanwhile. Three times, 30 % of the images are held out
to test on, and for each number of labels a class five label samples of the rest are drawn. Nothing here
is in a test split. The table shows the means of the 15 accuracies of each start, and of the one that is
chosen, and the smallest entropy of labels that spread on the features of a start, divided by that of
chance (see `finetuning/label_samples.py`). Results go to results/few_images.json; what it contains is
not measured again.
"""

import argparse
import random
import shutil
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from common import Results

from clfew.commands.pretrain import pretrain
from clfew.data.image_cache import open_image_cache
from clfew.data.sources import open_source
from clfew.finetuning.fit import FullSettings, Task, fit
from clfew.finetuning.label_propagation import mean_entropy
from clfew.finetuning.label_samples import SampleFitting, choose
from clfew.finetuning.model_selection import decide
from clfew.finetuning.start import side_by_side, start_from_artifact
from clfew.models.features import features_of
from clfew.runs.folders import Run

HERE = Path(__file__).parent / "results"
EACH = {"photos": 102, "sign-digits": 10, "fashion-mnist-6k": 10, "aerial": 8, "cifar10": 10}
BUDGETS = (1, 2, 4, 8)
PARTS, SAMPLES = 3, 5
KINDS = ("simclr", "pretrained", "both")
CPU = torch.device("cpu")


class FewImages:
    """About a hundred images of one set, and their pretraining runs."""

    def __init__(self, name, data, runs, minutes):
        self.name, self.data, self.folder, self.minutes = name, data / name, runs / name, minutes

    def copy(self):
        train = self.data / "train"
        classes = sorted(each for each in (train if train.is_dir() else self.data).iterdir())
        order = random.Random(0)
        for each in classes:
            files = sorted(each.iterdir())
            order.shuffle(files)
            to = self.folder / "imgs" / each.name
            to.mkdir(parents=True)
            for file in files[: EACH[self.name]]:
                shutil.copy(file, to / file.name)

    @cached_property
    def opened(self):
        """Returns the source, the image cache and the starts."""
        images, runs = self.folder / "imgs", self.folder / "runs"
        if not images.exists():
            self.copy()
        folders = {"pretrained": runs / "pretrain-1", "simclr": runs / "pretrain-1-scratch"}
        if not all((folder / "encoder.safetensors").exists() for folder in folders.values()):
            shutil.rmtree(runs, ignore_errors=True)  # An interrupted run may have left files there.
            pretrain(str(images), init="both", minutes=self.minutes, out=folders["pretrained"])
        starts = {
            kind: start_from_artifact(folder / "encoder.safetensors", None)
            for kind, folder in folders.items()
        }
        source = open_source(str(images))
        cache = open_image_cache(source, max(start.metadata.side for start in starts.values()))
        return source, cache, starts

    def measure(self, budget, part):
        """Returns a row for each label sample, None if a class has too few images."""
        source, cache, starts = self.opened
        order, held_out = np.random.default_rng(part), int(0.3 * len(source.labels))
        rows = order.permutation(len(source.labels))
        test, pool = np.sort(rows[:held_out]), np.sort(rows[held_out:])
        if np.bincount(source.labels[pool], minlength=len(source.classes)).min() < budget:
            return None
        arrays = (cache.pixels, cache.aspects)

        def own(encoder):
            return features_of(encoder, *arrays, pool, CPU, "fp32", standardised=False)

        candidates = dict(starts) | {"both": side_by_side([*starts.values()], own)}
        tasks, of_test = {}, {}
        for kind, start in candidates.items():
            features, of_test[kind] = (
                features_of(start.encoder, *arrays, each, CPU, "fp32") for each in (pool, test)
            )
            tasks[kind] = Task(
                *arrays, pool, source.labels, len(source.classes), features, CPU, "fp32",
                is_scaled=kind == "both",
            )  # fmt: skip
        found = []
        for sample in range(part * 10, part * 10 + SAMPLES):
            generator = np.random.default_rng(sample)
            labelled = np.sort(
                np.concatenate(
                    [
                        generator.permutation(pool[source.labels[pool] == c])[:budget]
                        for c in range(len(source.classes))
                    ]
                )
            )
            found.append(self.sample(candidates, tasks, of_test, test, labelled, sample))
        return found

    def sample(self, candidates, tasks, of_test, test, labelled, seed):
        """Returns the accuracy of each start and the one that is chosen."""
        settings, row = FullSettings(epochs=None), {}
        entropies = []
        for kind, start in candidates.items():
            task = tasks[kind]
            mode = decide("auto", start, task, labelled, seed, settings).mode
            classifier, _ = fit(start, task, labelled, mode, seed, settings)
            with torch.no_grad():
                logits = classifier.from_features(torch.from_numpy(of_test[kind])).numpy()
            row[kind] = float((logits.argmax(1) == task.labels[test]).mean())
            rows = np.searchsorted(task.pool, labelled)
            entropies.append(mean_entropy(task.graph, rows, task.labels[labelled], task.classes))
        named = [(candidates[kind], tasks[kind]) for kind in ("both", "pretrained", "simclr")]
        fitting = SampleFitting(named, None, test, "auto", seed, settings, Run(Path("unused")))
        chosen, _, _ = choose(fitting, labelled, seed)
        row["chosen"] = next(kind for kind in candidates if candidates[kind] is chosen)
        return row | {"entropy": min(entropies) / float(np.log(task.classes))}


def table(results, names):
    print("| images | labels a class | from scratch | pretrained | side by side | chosen | entropy |")
    print("|---|---|---|---|---|---|---|")
    for name in names:
        for budget in BUDGETS:
            parts = [results.done.get(f"{name} {budget} {part}") for part in range(PARTS)]
            rows = [row for part in parts if part for row in part]
            if len(rows) == PARTS * SAMPLES:
                means = [100 * np.mean([row[kind] for row in rows]) for kind in KINDS]
                means.append(100 * np.mean([row[row["chosen"]] for row in rows]))
                entropy = np.mean([row["entropy"] for row in rows])
                cells = " | ".join(f"{mean:.1f}" for mean in means)
                print(f"| {name} | {budget} | {cells} | {entropy:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("runs/few_images"))
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--minutes", type=float, default=2)
    arguments = parser.parse_args()
    results, names = Results(HERE / "few_images.json"), arguments.only or list(EACH)
    for name in names:
        images = FewImages(name, arguments.data, arguments.runs, arguments.minutes)
        for budget in BUDGETS:
            for part in range(PARTS):
                key = f"{name} {budget} {part}"
                results.get(key, lambda i=images, b=budget, p=part: i.measure(b, p))
    table(results, names)


if __name__ == "__main__":
    main()
