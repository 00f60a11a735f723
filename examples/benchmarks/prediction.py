"""Speed of `clfew predict` and `clfew embed`, beside a DataLoader loop with the same network.

    python examples/benchmarks/prediction.py DATA [--repeats 3] [--out FILE]

DATA holds `photos` (512×384 JPEG files, copied to thousands) and `cifar10`. The sides run in turn, each
in a separate process. The time is measured from the first file to the last prediction, without imports.
The loop is a usual one: torchvision's ImageFolder, Resize, CenterCrop, ToTensor, Normalize, two workers,
batches of 64, no gradients. Prints images per second and peak resident memory.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CASES = {
    "photos, resnet8-w32, 64 px": ("photos", 30, "resnet8-w32", 64, 80),
    "photos, resnet18, 224 px": ("photos", 2, "resnet18", 224, 280),
    "cifar10, resnet8-w32, 32 px": ("cifar10/test", 1, "resnet8-w32", 32, 32),
}


def make_classifier(path, encoder, size, side):
    """Saves an untrained classifier. Its predictions do not matter here."""
    import numpy as np
    from torch import nn

    from clfew.models.artifacts import save_classifier
    from clfew.models.classifier import Classifier
    from clfew.models.encoder import Encoder
    from clfew.models.metadata import ArtifactMetadata
    from clfew.version import __version__

    network = Encoder(encoder, size, [0.5] * 3, [0.25] * 3)
    metadata = ArtifactMetadata(
        kind="classifier",
        encoder=encoder,
        size=size,
        side=side,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        dim=network.dim,
        method="",
        flip=True,
        clfew_version=__version__,
        mode="linear",
        classes=[str(i) for i in range(10)],
    )
    none = np.zeros(0, np.uint64)
    save_classifier(
        path, Classifier(network, nn.Sequential(), nn.Linear(network.dim, 10)), metadata, none, none
    )


def predict_side(images, artifact, folder):
    from clfew.commands.predict import predict
    from clfew.data.image_files import expand

    files = list(expand([str(images)]))
    started = time.perf_counter()
    count = sum(1 for _ in predict(files, artifact))
    return count, time.perf_counter() - started


def embed_side(images, artifact, folder):
    import clfew.commands.predict  # noqa: F401  Imported before the clock starts.
    from clfew.commands.embed import embed

    started = time.perf_counter()
    _, count, _ = embed(str(images), origin=str(artifact), out=folder / "embedded")
    return count, time.perf_counter() - started


def loader_side(images, artifact, folder):
    import torch
    import torchvision
    from torchvision import transforms

    from clfew.models.artifacts import load_classifier

    network, metadata, _ = load_classifier(artifact)
    started = time.perf_counter()
    view = transforms.Compose(
        [
            transforms.Resize(metadata.size),
            transforms.CenterCrop(metadata.size),
            transforms.ToTensor(),
        ]  # The network normalises its input itself.
    )
    dataset = torchvision.datasets.ImageFolder(images, view)
    loader = torch.utils.data.DataLoader(dataset, batch_size=64, num_workers=2)
    network.eval()
    predictions = []
    with torch.no_grad():
        for batch, _ in loader:
            predictions += network(batch).softmax(1).topk(3).indices.tolist()
    return len(predictions), time.perf_counter() - started


SIDES = {"predict": predict_side, "embed": embed_side, "loader": loader_side}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--artifact", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        with tempfile.TemporaryDirectory() as folder:
            count, seconds = SIDES[options.side](options.data, options.artifact, Path(folder))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        print("\n" + json.dumps({"images_per_second": count / seconds, "megabytes": peak}))
        return
    from common import environment

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for case, (name, copies, encoder, size, side) in CASES.items():
            images = options.data / name
            if copies > 1:
                images = Path(folder) / f"{name}-{copies}"
                for copy in range(copies):
                    for file in (options.data / name).rglob("*.jp*g"):
                        to = images / file.parent.name / f"{file.stem}-{copy}{file.suffix}"
                        to.parent.mkdir(parents=True, exist_ok=True)
                        shutil.copyfile(file, to)
            artifact = Path(folder) / f"{encoder}-{size}.safetensors"
            make_classifier(artifact, encoder, size, side)
            rows = {name: [] for name in SIDES}
            for _ in range(options.repeats):
                for name in SIDES:
                    command = [sys.executable, __file__, images, "--side", name, "--artifact", artifact]
                    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
                    if done.returncode:
                        sys.exit(done.stderr[-2000:])
                    rows[name].append(json.loads(done.stdout.splitlines()[-1]))
            results[case] = rows
            print(f"\n{case}; images/s: minimum, median, maximum; peak memory")
            speed = {n: [row["images_per_second"] for row in rows[n]] for n in SIDES}
            for name in SIDES:
                low, middle, high = min(speed[name]), statistics.median(speed[name]), max(speed[name])
                memory = max(row["megabytes"] for row in rows[name])
                ratio = middle / statistics.median(speed["loader"])
                line = f"  {name:<8} {low:8.1f} {middle:8.1f} {high:8.1f} {memory:6d} MB"
                print(line + ("" if name == "loader" else f"   {ratio:.2f} times as fast"), flush=True)
    if options.out:
        options.out.write_text(json.dumps(environment() | {"results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
