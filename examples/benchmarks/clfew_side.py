"""clfew's part of `throughput.py`: runs `pretrain` as the command does and times it from its log."""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torchvision
from torch import nn

from clfew.commands.pretrain import pretrain
from clfew.models.backbones import register_encoder
from clfew.runs.folders import Run

WARM_UP_STEPS = 3


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
    rows = []
    log = Run.log

    def timed(run, row):
        """Logs as the command does. Once the time is over, it prints the result and ends the process."""
        log(run, row)
        if row["step"] <= WARM_UP_STEPS:
            return
        rows.append(row)
        seconds = rows[-1]["seconds"] - rows[0]["seconds"]
        steps = rows[-1]["step"] - rows[0]["step"]
        if steps >= 2 and seconds >= options.seconds:
            rate = steps * options.batch / seconds
            print("\n" + json.dumps({"steps": steps, "seconds": seconds, "images_per_second": rate}))
            sys.stdout.flush()
            shutil.rmtree(folder)
            os._exit(0)

    Run.log = timed
    folder = tempfile.mkdtemp()
    pretrain(
        options.images,
        encoder=options.encoder,
        size=options.size,
        batch=options.batch,
        epochs=1000,
        compile="off",
        transductive=True,
        init="scratch",
        out=Path(folder) / "run",
    )


if __name__ == "__main__":
    main()
