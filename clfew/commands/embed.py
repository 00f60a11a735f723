"""`clfew embed`: writes the features and the path of every image of a source."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import safetensors.numpy

from clfew import console
from clfew.data.sources import open_source
from clfew.errors import UserError
from clfew.finetuning.start import find_start, open_start
from clfew.models.features import apply_to_files
from clfew.models.init_weights import AUTO
from clfew.runs.files import write_bytes, write_csv
from clfew.runs.folders import check_new, new_run
from clfew.training.device import choose_device, choose_precision, set_threads


def embed(
    source: str,
    *,
    origin: str | None = None,
    init: str = AUTO,
    encoder: str = "auto",
    size: int | None = None,
    stage: int = 0,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    out: Path | None = None,
) -> tuple[Path, int, int]:
    """Writes features.safetensors (tensor "features", float32, N×D) and paths.csv in the same order.

    origin: a run or artifact (an encoder or a classifier), None for the newest pretraining run. init,
    encoder, size: weights that come from elsewhere (see `clfew.models.init_weights`); if there is no
    run, "auto" takes pretrained weights found on this machine. stage: as in `finetune`. Returns the
    folder, N and D. Images that cannot be read are left out and listed in bad_images.csv. Raises
    UserError.
    """
    check_new(out)
    set_threads(threads)
    chosen, _ = choose_device(device)
    kind, _ = choose_precision(chosen, precision)
    spec = find_start(origin, init, encoder, chosen)
    if spec.is_scratch:
        # From scratch, the newest run must not decide which network is embedded with.
        spec = replace(spec, artifact=None)
    opened = open_source(source)
    start = open_start(spec, opened, encoder, size, None, chosen, 0, False, stage)[0]
    network, metadata = start.encoder, start.metadata
    features: list[np.ndarray] = []
    paths: list[tuple[str]] = []
    bad: list[tuple[str, str]] = []
    outputs = apply_to_files(
        network, metadata.size, metadata.side, range(len(opened)), opened.content, chosen, kind
    )
    with console.progress_bar("embed") as update:
        for indices, errors, rows in outputs:
            for index, error in zip(indices, errors, strict=True):
                name = opened.identities[index]
                if error is None:
                    paths.append((name,))
                else:
                    bad.append((name, str(error)))
            features += [rows] if len(rows) else []
            update(len(paths) + len(bad), len(opened))
    if not paths:
        raise UserError(
            f"None of the {len(opened)} images in {source} can be read "
            f"(first {bad[0][0]}: {bad[0][1]}).",
            "open one in an image viewer: they may be damaged or of another format.",
        )
    run = new_run("embed", out)
    run.write_config(
        {"command": "embed", "from": str(start.artifact or spec.words), "source": opened.spec}
    )
    matrix = np.concatenate(features)
    write_bytes(run.folder / "features.safetensors", safetensors.numpy.save({"features": matrix}))
    write_csv(run.folder / "paths.csv", ["path"], paths)
    run.write_bad_images(bad)
    if bad:
        console.say(f"skipped    {len(bad)} images that cannot be read; bad_images.csv lists them")
    return run.folder, *matrix.shape
