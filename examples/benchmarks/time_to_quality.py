"""Accuracy after 5, 10 and 20 minutes of pretraining: clfew beside lightly-train.

    python examples/benchmarks/time_to_quality.py DATA [--peers FOLDER] [--minutes 5,10,20] [--only SIDE]

DATA holds `cifar10` with `train/` and `test/` class folders. clfew runs as `clfew pretrain DATA/cifar10
--minutes M` does. lightly-train runs its SimCLR with its own defaults on a torchvision resnet18, at 32
pixels (at its default of 224 it would process a fiftieth of the images), in as many steps as fit into
the minutes at the speed measured in a trial, which is not counted. Importing and, for clfew, building
the image cache are not counted either.

Both encoders are then measured in the same way on the test split, which is used for nothing else: kNN
(20 neighbours among all 50,000 labelled training images, cosine, temperature 0.07), and `clfew finetune
--labels 50/class --repeat 3 --mode linear`; for clfew also `--mode full`, which takes too long for a
large network here. Finished parts are kept in the results file.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from clfew_side import stock_resnet18
from common import Results
from throughput import HERE, REPOSITORY, peers_python

from clfew.commands.finetune import finetune
from clfew.commands.pretrain import pretrain
from clfew.data.image_cache import open_image_cache
from clfew.data.sources import open_source
from clfew.models.artifacts import load_encoder, save_encoder
from clfew.models.backbones import register_encoder
from clfew.models.encoder import Encoder
from clfew.models.features import apply_to_cache
from clfew.models.metadata import ArtifactMetadata
from clfew.version import __version__

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
BATCH = 128  # lightly-train's default.


def train_clfew(images, minutes, folder):
    """Returns the path of the artifact and a description of the training."""
    open_image_cache(open_source(str(images)), 32)  # Not counted, just as lightly-train's trial.
    run = pretrain(str(images), init="scratch", minutes=minutes, out=folder / "run")
    config = json.loads((run / "config.json").read_text())
    rows = (run / "metrics.jsonl").read_text().splitlines()
    trained = {key: config[key] for key in ("encoder", "size", "epochs", "plan", "recipe")}
    return run / "encoder.safetensors", trained | {"training_seconds": json.loads(rows[-1])["seconds"]}


def train_lightly(images, minutes, folder, peers):
    def peer(*arguments):
        command = [
            peers_python(peers),
            HERE / "peers.py",
            "lightly-train",
            "--images",
            images / "train",
            "--size",
            32,
            "--batch",
            BATCH,
            *arguments,
        ]
        result = subprocess.run(
            list(map(str, command)),
            capture_output=True,
            text=True,
            cwd=folder,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
        if not lines:
            sys.exit(f"lightly-train failed:\n{result.stderr[-2000:]}")
        return json.loads(lines[-1])

    rate = peer("--seconds", 30)["images_per_second"]
    steps = max(1, round(60 * minutes * rate / BATCH))
    training = peer("--steps", steps, "--out", folder / "exported.pt")
    weights = torch.load(folder / "exported.pt", weights_only=True)
    encoder = Encoder("stock-resnet18", 32, *IMAGENET)
    known = encoder.backbone.state_dict()
    encoder.backbone.load_state_dict({key: weights[key] for key in known})
    metadata = ArtifactMetadata(
        kind="encoder",
        encoder="stock-resnet18",
        size=32,
        side=32,
        mean=IMAGENET[0],
        std=IMAGENET[1],
        dim=512,
        method="simclr",
        flip=True,
        clfew_version=__version__,
    )
    artifact = folder / "encoder.safetensors"
    save_encoder(artifact, encoder, torch.nn.Sequential(), metadata, np.zeros(0, np.uint64))
    trained = {"steps": steps, "epochs": steps * BATCH / 50_000, "images_per_second": rate}
    return artifact, trained | {"seconds_with_start": training["seconds"]}


def nearest_neighbours(artifact, images):
    """Returns the kNN accuracy on the test split."""
    encoder, _, metadata, _ = load_encoder(artifact)
    features, labels = {}, {}
    for split in ("train", "test"):
        source = open_source(str(images / split))
        cache = open_image_cache(source, metadata.side)
        found = apply_to_cache(
            encoder, metadata.size, cache.pixels, cache.aspects, cache.good, torch.device("cpu")
        )
        features[split] = torch.nn.functional.normalize(torch.from_numpy(found), dim=1)
        labels[split] = torch.from_numpy(np.array(source.labels)[cache.good])
    classes = int(labels["train"].max()) + 1
    correct = 0
    for part, truth in zip(features["test"].split(500), labels["test"].split(500), strict=True):
        similarity, index = (part @ features["train"].T).topk(20, dim=1)
        votes = torch.zeros(len(part), classes)
        votes.scatter_add_(1, labels["train"][index], (similarity / 0.07).exp())
        correct += int((votes.argmax(1) == truth).sum())
    return correct / len(labels["test"])


def measure(side, minutes, options):
    images = options.data.resolve() / "cifar10"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if side == "clfew":
            artifact, trained = train_clfew(images, minutes, folder)
        else:
            artifact, trained = train_lightly(images, minutes, folder, options.peers.absolute())
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(artifact, options.keep / f"{side}-{minutes:g}.safetensors")
        knn = nearest_neighbours(artifact, images)
        measured = {"knn": knn, "trained": trained}
        for mode in ("linear", "full") if side == "clfew" else ("linear",):
            _, result = finetune(
                str(images),
                labels="50/class",
                origin=str(artifact),
                repeat=3,
                mode=mode,
                out=folder / mode,
            )
            measured[mode] = {key: result[key] for key in ("mean", "std")}
            measured[mode]["draws"] = [draw["accuracy"] for draw in result["draws"]]
    return measured


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--peers", type=Path, default=Path(".peers"))
    parser.add_argument("--minutes", default="5,10,20")
    parser.add_argument("--only", choices=["clfew", "lightly-train"])
    parser.add_argument("--keep", type=Path, help="a folder for the encoders")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "time_to_quality.json")
    options = parser.parse_args()
    register_encoder("stock-resnet18", stock_resnet18)
    results = Results(options.out)
    print(f"{'minutes':>7} {'':<14} {'kNN':>6} {'epochs':>7}  50 labels a class")
    for minutes in map(float, options.minutes.split(",")):
        for side in [options.only] if options.only else ["clfew", "lightly-train"]:
            found = results.get(f"{side}/{minutes:g}", lambda: measure(side, minutes, options))  # noqa: B023
            few = "  ".join(
                f"{mode} {found[mode]['mean']:.3f} ± {found[mode]['std']:.3f}"
                for mode in ("linear", "full")
                if mode in found
            )
            epochs = found["trained"]["epochs"]
            print(f"{minutes:>7g} {side:<14} {found['knn']:>6.3f} {epochs:>7.2f}  {few}", flush=True)


if __name__ == "__main__":
    main()
