"""Run by torchrun, and alone: what the functions of clfew write and return in each process.

    torchrun api.py OUT IMAGES [CLASSIFIER ENCODER]

OUT/RANK.json becomes what they returned there. Tests and features are those of the classifier and the
encoder that are named, else of its own.
"""

import json
import os
import sys
from pathlib import Path

import torch

import clfew

if __name__ == "__main__":
    out, images = Path(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    common = {"threads": 1, "source": str(images)}
    tiny = {"encoder": "resnet8-w8", "epochs": 1, "init": "scratch", "batch": 31}
    encoders = [clfew.pretrain(**common, **tiny, out=out / f"encoder-{number}") for number in (0, 1)]
    full = {"labels": "5/class", "mode": "full", "epochs": 2, "batch": 3}
    folder, result = clfew.finetune(**common, **full, origin=encoders[0], out=out / "classifier")
    options = {"epochs": 1, "batch": 62, "keep": True, "threads": 1}
    student, taught = clfew.distill(origin=folder, out=out / "student", **options)
    classifier, encoder = sys.argv[3:] or (folder, encoders[0])
    _, report = clfew.evaluate(**common, origin=classifier, out=out / "report")
    files = sorted(map(str, images.rglob("*.png")))
    for _ in clfew.predict(images=files, origin=str(classifier), threads=1):
        break  # Whoever has seen enough may go on with something else.
    rows = [each.as_row() for each in clfew.predict(images=files, origin=str(classifier), threads=1)]
    embedded = clfew.embed(**common, origin=encoder, out=out / "features")
    values = {
        "encoders": list(map(str, encoders)),
        "accuracy": result["mean"],
        "report": report["accuracy"],
        "kept": taught["kept"],
        "student": str(student),
        "embedded": [str(embedded[0]), *map(int, embedded[1:])],
    }
    rank = os.environ.get("RANK", "alone")
    (out / f"{rank}.json").write_text(json.dumps(values | {"rows": rows}))
