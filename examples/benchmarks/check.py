"""What `clfew check` finds of planted mistakes, beside cleanlab's Datalab on the same features.

    python examples/benchmarks/check.py DATA --work DIR --cleanlab ENV [--from RUN | --init WEIGHTS]

DATA has a train and a test split with class folders. Of a copy of it in DIR, 5 % of the labels of the
training split are swapped for another class's, and 3 % of all images are copied into the other split:
resized to 3/4, as JPEG of quality 60, or mirrored. The features of an encoder are computed once. Then
both sides look at them, in turn, several times: clfew as `check --from` does and, for copies, at the
pixels; Datalab, in the environment ENV, by its issue types label and near_duplicate. What counts is:

- suspicious labels: precision and recall of those flagged among the images of the training split, and
  the average precision of all images as they are ranked;
- copies: of the planted ones, how many are found together with their original; and of the pairs across
  the splits that are named, how many are planted. Pairs that are alike in the set as it was count as
  mistakes, on both sides.

Results go to results/check.json; what the file contains is not measured again.
"""

import argparse
import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
from common import Results
from PIL import Image
from sklearn.metrics import average_precision_score

from clfew.data.groups import groups_of
from clfew.data.image_cache import open_image_cache
from clfew.data.near import near_pairs
from clfew.data.sources import open_source
from clfew.finetuning.find_start import find_start
from clfew.finetuning.start import Network, open_start
from clfew.models.features import features_of
from clfew.quality import features as ours
from clfew.quality.pixels import copies_of
from clfew.training.device import choose_device, choose_precision

RESULTS = Path(__file__).parent / "results"
KIND = ("resized", "JPEG", "mirrored")

DATALAB = """
import json, sys, time
import numpy as np
from cleanlab import Datalab
folder = sys.argv[1]
features, labels = np.load(f"{folder}/features.npy"), np.load(f"{folder}/labels.npy")
times = {}
lab = Datalab({"label": labels.tolist()}, label_name="label", verbosity=0)
for kind in ("label", "near_duplicate"):
    start = time.perf_counter()
    lab.find_issues(features=features, issue_types={kind: {}})
    times[kind] = time.perf_counter() - start
found = lab.get_issues("label")
near = lab.get_issues("near_duplicate")
sets = [[int(j) for j in each] for each in near["near_duplicate_sets"]]
np.savez(f"{folder}/datalab.npz", flagged=found["is_label_issue"], score=found["label_score"])
json.dump({"times": times, "sets": sets}, open(f"{folder}/datalab.json", "w"))
"""


def plant(data: Path, folder: Path, most: int | None) -> None:
    """Makes the copy with its mistakes, and truth.json, which tells them."""
    chance = random.Random(0)
    shutil.rmtree(folder, ignore_errors=True)
    names = {
        split: sorted(p.relative_to(data / split) for p in (data / split).glob("*/*") if p.is_file())
        for split in ("train", "test")
    }
    if most is not None:
        names = {
            s: sorted(chance.sample(n, min(len(n), most // (1, 5)[s == "test"])))
            for s, n in names.items()
        }
    classes = sorted({str(name.parent) for name in names["train"]})
    swapped, copies = {}, {}
    for split, those in names.items():
        for name in those:
            label = str(name.parent)
            if split == "train" and chance.random() < 0.05:
                label = chance.choice([each for each in classes if each != label])
                swapped[f"train/{label}/{name.parent} {name.name}"] = str(name.parent)
            # Files of two classes may have one name.
            target = folder / split / label / f"{name.parent} {name.name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(data / split / name, target)
            if chance.random() < 0.03:
                kind = chance.choice(KIND)
                other = "test" if split == "train" else "train"
                ending = "jpg" if kind == "JPEG" else "png"
                copy = folder / other / str(name.parent) / f"c{chance.randrange(10**9)}.{ending}"
                copy.parent.mkdir(parents=True, exist_ok=True)
                save_copy(data / split / name, copy, kind)
                copies[str(copy.relative_to(folder))] = [str(target.relative_to(folder)), kind]
    truth = {"swapped": swapped, "copies": copies}
    (folder.parent / "truth.json").write_text(json.dumps(truth))


def save_copy(image: Path, copy: Path, kind: str) -> None:
    with Image.open(image) as opened:
        picture = opened.convert("RGB")
    if kind == "resized":
        picture = picture.resize((picture.width * 3 // 4, picture.height * 3 // 4))
    if kind == "mirrored":
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture.save(copy, **({"quality": 60} if kind == "JPEG" else {}))


def labels_score(flagged: np.ndarray, suspicion: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    found = int((flagged & truth).sum())
    return {
        "flagged": int(flagged.sum()),
        "precision": found / max(1, int(flagged.sum())),
        "recall": found / int(truth.sum()),
        "average_precision": float(average_precision_score(truth, suspicion)),
    }


def copies_score(pairs: set[tuple[int, int]], names: list[str], truth: dict, splits: np.ndarray) -> dict:
    """pairs: those that are named, the lower index first."""
    number = {name: i for i, name in enumerate(names)}
    of_picture = {number[name]: number[original] for name, (original, _) in truth.items()}
    planted = {tuple(sorted(pair)): truth[names[pair[0]]][1] for pair in of_picture.items()}
    across = {pair for pair in pairs if splits[pair[0]] != splits[pair[1]]}
    right = {p for p in across if of_picture.get(p[0], p[0]) == of_picture.get(p[1], p[1])}
    of_kind = {
        kind: [
            sum(planted[p] == kind for p in pairs & set(planted)),
            sum(k == kind for k in planted.values()),
        ]
        for kind in KIND
    }
    return {
        "named_across_splits": len(across),
        "precision": len(right) / max(1, len(across)),
        "recall": len(pairs & set(planted)) / len(planted),
        "found_of_kind": of_kind,
    }


def run_ours(source, cache, features: np.ndarray, images: np.ndarray) -> tuple[dict, dict]:
    """Returns what clfew finds, and the seconds of each part."""
    times = {}
    start = time.perf_counter()
    near_pairs(cache.pixels, images, source.identities)
    times["pixels"] = time.perf_counter() - start
    groups = groups_of(source, cache)
    train = np.flatnonzero(source.splits[images] == "train")
    labels = source.labels[images[train]]
    start = time.perf_counter()
    reduced = ours.reduced(features)
    times["reduced"] = time.perf_counter() - start
    start = time.perf_counter()
    probabilities = ours.out_of_fold(reduced[train], labels, groups[images[train]], 0)
    order, _ = ours.suspicious_labels(probabilities, labels)
    times["label"] = time.perf_counter() - start
    flagged = np.zeros(len(train), bool)
    flagged[order] = True
    start = time.perf_counter()
    alike = ours.pairs_alike(cache.good, *ours.neighbours_of(reduced))
    times["near_duplicate"] = time.perf_counter() - start
    rows = np.arange(len(train))
    rest = probabilities.copy()
    rest[rows, labels] = -1
    suspicion = rest.max(1) - probabilities[rows, labels]
    return {"flagged": flagged, "suspicion": suspicion, "alike": alike}, times


def features_in(work: Path, data: Path, options) -> tuple:
    """Returns the source with planted mistakes, its image cache, the features of its readable images and
    the encoder's name. Mistakes and features are made once."""
    folder = work / "planted"
    if not (work / "truth.json").exists():
        plant(data, folder, options.most)
    source = open_source(str(folder))
    device, _ = choose_device("auto")
    precision, _ = choose_precision(device, "auto")
    found = find_start(options.origin, options.init, "auto", device)
    (start,) = open_start(found, source, Network("auto", None), device, compare=False)
    cache = open_image_cache(source, start.metadata.side)
    if not (work / "features.npy").exists():
        arrays = (cache.pixels, cache.aspects, cache.good)
        np.save(work / "features.npy", features_of(start.encoder, *arrays, device, precision))
    return source, cache, np.load(work / "features.npy"), start.metadata.encoder


def run_datalab(work: Path, environment: Path, parts: dict[str, tuple]) -> tuple[dict, dict]:
    """Runs Datalab on the features and labels of each part. Returns what it finds, and the seconds."""
    seconds, found = {}, {}
    for part, (features, labels) in parts.items():
        place = work / part
        place.mkdir(exist_ok=True)
        np.save(place / "features.npy", features)
        np.save(place / "labels.npy", labels)
        command = [str(environment / "bin/python"), "-c", DATALAB, str(place)]
        subprocess.run(command, check=True, capture_output=True)
        told = json.loads((place / "datalab.json").read_text())
        seconds[part] = told["times"][part]
        found[part] = told["sets"] if part == "near_duplicate" else np.load(place / "datalab.npz")
    return found, seconds


def measure(data: Path, options) -> dict:
    work = options.work / data.name
    work.mkdir(parents=True, exist_ok=True)
    source, cache, features, encoder = features_in(work, data, options)
    truth = json.loads((work / "truth.json").read_text())
    images, splits = cache.good, source.splits[cache.good]
    train, labels = splits == "train", source.labels[cache.good]
    # Datalab looks for labels in the training split, and for copies everywhere.
    parts = {"label": (features[train], labels[train]), "near_duplicate": (features, labels)}
    times: dict[str, list[dict]] = {"clfew": [], "Datalab": []}
    for _ in range(options.rounds):
        found, seconds = run_ours(source, cache, features, images)
        times["clfew"].append(seconds)
        theirs, seconds = run_datalab(work, options.cleanlab, parts)
        times["Datalab"].append(seconds)
    names = [source.identities[i] for i in images]
    swapped = np.array([name in truth["swapped"] for name in names])[train]
    row_of = {int(image): row for row, image in enumerate(images)}
    pairs = {
        "clfew, pixels": [(row_of[a], row_of[b]) for a, b in copies_of(source, cache).tolist()],
        "clfew, features": [(row_of[a], row_of[b]) for a, b in found["alike"].tolist()],
        "Datalab, features": [(i, j) for i, those in enumerate(theirs["near_duplicate"]) for j in those],
    }
    sorted_pairs = {side: {tuple(sorted(pair)) for pair in some} for side, some in pairs.items()}
    median = {
        side: {part: float(np.median([each[part] for each in rows])) for part in rows[0]}
        for side, rows in times.items()
    }
    total = {side: sum(seconds.values()) for side, seconds in median.items()}
    flagged, score = theirs["label"]["flagged"], theirs["label"]["score"]
    return {
        "images": len(images),
        "swapped": int(swapped.sum()),
        "copies": len(truth["copies"]),
        "encoder": encoder,
        "features": features.shape[1],
        "labels": {
            "clfew": labels_score(found["flagged"], found["suspicion"], swapped),
            "Datalab": labels_score(flagged, 1 - score, swapped),
        },
        "copies_found": {
            side: copies_score(some, names, truth["copies"], splits)
            for side, some in sorted_pairs.items()
        },
        "seconds": median,
        "seconds_of_rounds": times,
        "ratio_of_features": (total["clfew"] - median["clfew"]["pixels"]) / total["Datalab"],
        "ratio_with_pixels": total["clfew"] / total["Datalab"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for copies and features")
    parser.add_argument(
        "--cleanlab", type=Path, required=True, help="environment with cleanlab[datalab]"
    )
    parser.add_argument("--from", dest="origin")
    parser.add_argument("--init", default="auto")
    parser.add_argument("--most", type=int, help="training images, and a fifth as many test images")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    results = Results(RESULTS / "check.json")
    results.get(options.data.name, lambda: measure(options.data, options))


if __name__ == "__main__":
    main()
