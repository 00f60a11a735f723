"""`clfew embed`: writes the features and the path of every image of a source."""

from pathlib import Path

import numpy as np
import safetensors.numpy
import torch

from clfew import console
from clfew.data.source import Source
from clfew.data.sources import open_source, say_source
from clfew.errors import UserError
from clfew.finetuning.find_start import find_start, is_from_scratch
from clfew.finetuning.start import Network, Start, open_start
from clfew.group.command import together
from clfew.models.files import Applied, apply_to_source
from clfew.models.kept_scale import scaled
from clfew.models.metadata import read_metadata
from clfew.runs.files import write_bytes, write_csv
from clfew.runs.folders import check_new, new_run
from clfew.settings import EmbedSettings, bands_of
from clfew.signatures import function_of
from clfew.training.device import choose_device, choose_precision, set_threads, without_traces


@together
def run(settings: EmbedSettings) -> tuple[Path, int, int]:
    """Writes features.safetensors (tensor "features", float32, N×D) and paths.csv in the same order.

    Returns the folder, N and D. Images that cannot be read are left out and listed in bad_images.csv.
    Raises UserError.
    """
    check_new(settings.out)
    set_threads(settings.threads)
    device, _ = choose_device(settings.device)
    precision, _ = choose_precision(device, settings.precision)
    found = find_start(settings.origin, settings.init, settings.encoder, device)
    from_scratch = is_from_scratch(settings.origin, settings.init)
    if from_scratch:
        found = None  # The newest run must not decide which random network is embedded with.
    opened = open_source(settings.source)
    artifacts = [read_metadata(found)[0]] if isinstance(found, Path) else []
    opened = scaled(opened, bands_of(settings), artifacts)
    say_source(opened)
    network = Network(settings.encoder, settings.size, stage=settings.stage, from_scratch=from_scratch)
    (start,) = open_start(found, opened, network, device, compare=False)
    features, names, bad = _features_of(start, opened, device, precision)
    if not names:
        raise UserError(
            f"None of the {len(opened)} images in {settings.source} can be read "
            f"(first {bad[0][0]}: {bad[0][1]}).",
            "open one in an image viewer: they may be damaged or of another format.",
        )
    run = new_run("embed", settings.out)
    run.write_config({"command": "embed", "from": start.words, "source": opened.spec})
    write_bytes(run.folder / "features.safetensors", safetensors.numpy.save({"features": features}))
    write_csv(run.folder / "paths.csv", ["path"], [(name,) for name in names])
    run.write_bad_images(bad)
    if bad:
        console.say(f"skipped    {len(bad)} images that cannot be read; bad_images.csv lists them")
    return run.folder, *features.shape


embed = function_of(EmbedSettings, without_traces(run))


def _features_of(
    start: Start, source: Source, device: torch.device, precision: str
) -> tuple[np.ndarray, list[str], list[tuple[str, str]]]:
    """Returns the features of the readable images (N, D) and their names, and the name of each other
    image with the reason."""
    parts: list[np.ndarray] = []
    names: list[str] = []
    bad: list[tuple[str, str]] = []
    size, side = start.metadata.size, start.metadata.side
    applied = Applied(start.encoder, size, side, device, precision, source.scale)
    outputs = apply_to_source(applied, source)
    with console.progress_bar("embed") as update:
        for indices, errors, rows in outputs:
            for index, error in zip(indices, errors, strict=True):
                if error is None:
                    names.append(source.identities[index])
                else:
                    bad.append((source.identities[index], str(error)))
            parts += [rows] if len(rows) else []
            update(len(names) + len(bad), len(source))
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32), names, bad
