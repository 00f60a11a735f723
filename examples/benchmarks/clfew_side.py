"""clfew's part of `throughput.py`: `clfew pretrain` as the command runs it, timed from its own log."""

import argparse
import json
import tempfile
from pathlib import Path

import torchvision
from torch import nn

from clfew.encoders import register_encoder
from clfew.pretrain import pretrain


def stock_resnet18(size):
    network = torchvision.models.resnet18()
    network.fc = nn.Identity()
    return network


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    options = parser.parse_args()
    register_encoder("stock-resnet18", stock_resnet18)
    with tempfile.TemporaryDirectory() as folder:
        run = pretrain(
            options.images, encoder=options.encoder, size=options.size, batch=options.batch,
            minutes=1.15 * options.seconds / 60, transductive=True, out=Path(folder) / "run",
        )  # fmt: skip
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, last = rows[0], rows[-1]
    steps, seconds = last["step"] - first["step"], last["seconds"] - first["seconds"]
    rate = steps * options.batch / seconds
    print("\n" + json.dumps({"steps": steps, "seconds": seconds, "images_per_second": rate}))


if __name__ == "__main__":
    main()
