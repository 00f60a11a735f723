"""`clfew check`: what clfew sees in a source, before anything is trained."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clfew import console
from clfew.data.find_scale import with_scale
from clfew.data.groups import group_words, grouped
from clfew.data.layout import LABELLED_FOLDERS
from clfew.data.source import Source
from clfew.data.sources import open_source, say_source
from clfew.errors import UsageError, UserError
from clfew.models.metadata import read_metadata
from clfew.quality.finding import Finding
from clfew.quality.fix import Fixed, fixed, require_files
from clfew.quality.headers import findings_in_headers, read_headers, summary_of
from clfew.quality.listing import classes_of, count_of_splits, findings_in_listing
from clfew.runs.files import write_csv, write_json
from clfew.runs.folders import Run, check_new, find_artifact, from_here, new_run, newest
from clfew.settings import CheckSettings, bands_of
from clfew.signatures import function_of

if TYPE_CHECKING:
    import torch

    from clfew.data.cache_folder import ImageCache
    from clfew.finetuning.start import Start

LEVELS = ("listing", "pixels", "features")


@dataclass(frozen=True)
class Looked:
    """What was found. cache, groups: of the images, None where they were not decoded. encoder: whose
    features were looked at, in words."""

    source: Source
    findings: list[Finding]
    headers: dict[str, Any]
    cache: "ImageCache | None" = None
    groups: np.ndarray | None = None
    encoder: str = ""

    @property
    def level(self) -> str:
        return LEVELS[0 if self.cache is None else 2 if self.encoder else 1]


def run(settings: CheckSettings) -> tuple[Path | None, dict[str, Any]]:
    """Looks at a source and returns what is found, and the folder with check.html and check.json, which
    is written if the images were decoded or `out` was given.

    The result has `source`, `read_as`, `looked_at` ("listing", "pixels" or "features"), `encoder`,
    `images`, `labelled`, `splits`, `classes`, `groups`, `files` (see `headers.summary_of`), `findings`
    (of each the fields of `Finding`, with the names of images), `needs_person` (the number of findings
    that somebody has to decide on), `fixed` (what the list of `fix` holds, in words) and `page`. No file
    of the source is changed. Raises UserError.
    """
    check_new(settings.out)
    if settings.fix is not None:
        _check_fix(settings.fix)
    looked = look(settings)
    mended = _fixed(looked, settings.seed) if settings.fix is not None else None
    result = result_of(looked) | {"fixed": mended.words() if mended else "", "page": None}
    folder = None
    if settings.out is not None or looked.cache is not None:
        run = new_run("check", settings.out)
        folder, result["page"] = run.folder, str(run.folder / "check.html")
        save(run, looked, result)
    if settings.fix is not None and mended is not None:
        write_csv(settings.fix, mended.header, mended.rows)
    _say_next(settings, looked, mended)
    return folder, result


check = function_of(CheckSettings, run)


def _check_fix(path: Path) -> None:
    """Raises UserError if a list cannot be written there."""
    if path.exists() or path.is_symlink():
        raise UserError(
            f"{path} exists already, and no file is overwritten.", "name another file with --fix."
        )
    if not path.parent.is_dir():
        raise UserError(
            f"There is no folder {path.parent}.", "make it, or name another file with --fix."
        )
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path.parent} cannot be written.", "name a file elsewhere with --fix.")
    if path.suffix.lower() != ".csv":
        raise UsageError(
            f"--fix {path} is no CSV.", "for example: clfew check ./photos --fix mended.csv"
        )


def look(settings: CheckSettings) -> Looked:
    """Opens the source and looks at its listing and headers; with `full`, `fix` or an encoder also at
    its pixels, and with an encoder at its features."""
    spec = _spec_of(settings)
    if settings.fix is not None and Path(spec).is_dir():
        _require_outside(settings.fix, Path(spec))
    source = grouped(open_source(spec), settings.group_by)
    if settings.fix is not None:
        require_files(source)
    with_features = settings.origin is not None or settings.init is not None
    is_full = settings.full or settings.fix is not None or with_features
    if (is_full or settings.out is not None) and not with_features:
        source = with_scale(source, bands_of(settings))
    say_source(source)
    with console.progress_bar("headers") as update:
        headers = read_headers(source, update)
    findings = [*findings_in_listing(source), *findings_in_headers(source, headers)]
    looked = Looked(source, findings, summary_of(headers))
    return _look_closer(settings, looked, with_features) if is_full else looked


def _spec_of(settings: CheckSettings) -> str:
    """Returns the name of the source: the one given, else ./labeled or ./labelled, else that of the run
    to take the encoder from or of the newest pretraining run."""
    if settings.source is not None:
        return settings.source
    folder = next((name for name in LABELLED_FOLDERS if Path(name).is_dir()), None)
    if folder is not None and settings.origin is None:
        console.say(f"source     ./{folder}")
        return folder
    hint = "for example: clfew check ./photos"
    artifact = (
        find_artifact(settings.origin, "pretrain", hint) if settings.origin else newest("pretrain")
    )
    data = read_metadata(artifact)[0].data if artifact else {}
    spec = (data.get("finetune") or data.get("pretrain") or {}).get("source")
    if spec is None:
        raise UsageError("No SOURCE of images was named.", hint)
    console.say(f"source     {spec}, of {artifact}")
    return str(spec)


def _look_closer(settings: CheckSettings, looked: Looked, with_features: bool) -> Looked:
    """Decodes the images and looks at them. torch is imported only here."""
    from clfew.data.groups import groups_of
    from clfew.data.image_cache import cached_images, typical_side
    from clfew.models.defaults import cached_side, choose_size
    from clfew.quality.features import findings_in_features
    from clfew.quality.pixels import copies_of, findings_in_pixels
    from clfew.training.device import choose_device, set_threads

    set_threads(settings.threads)
    device, _ = choose_device(settings.device)
    source, start = looked.source, None
    if with_features:
        source, start = _open_start(settings, source, device)
        side = start.metadata.side
    else:
        native = typical_side(source)
        side = cached_side(choose_size(None, native, device)[0], native)
    cache = cached_images(source, side, most_bad=1)
    groups = groups_of(source, cache)
    assert groups is not None  # They are known from rule 5 on.
    # Decoding tells of files without a header, too.
    findings = [each for each in looked.findings if each.name not in ("no_image", "large")]
    findings += findings_in_pixels(source, cache)
    if start is not None and len(cache.good):
        features = _features_of(settings, start, cache, device)
        copies = copies_of(source, cache)
        findings += findings_in_features(source, cache, features, copies, groups, settings.seed)
    encoder = start.words if start else ""
    return Looked(source, findings, looked.headers, cache, groups, encoder)


def _open_start(
    settings: CheckSettings, source: Source, device: "torch.device"
) -> "tuple[Source, Start]":
    """Returns the source on the scale of pixels that an encoder learned with, and the encoder."""
    from clfew.finetuning.find_start import find_start, is_from_scratch
    from clfew.finetuning.start import Network, open_start
    from clfew.models.kept_scale import scaled

    if is_from_scratch(settings.origin, settings.init or "auto"):
        raise UsageError(
            "An encoder with random weights says nothing of what images mean.",
            "name a pretraining run: --from runs/pretrain-1, or --init imagenet.",
        )
    found = find_start(settings.origin, settings.init or "auto", "auto", device)
    artifacts = [read_metadata(found)[0]] if isinstance(found, Path) else []
    source = scaled(source, bands_of(settings), artifacts)
    (start,) = open_start(found, source, Network("auto", None), device, compare=False)
    return source, start


def _features_of(
    settings: CheckSettings, start: "Start", cache: "ImageCache", device: "torch.device"
) -> np.ndarray:
    from clfew.models.features import features_of
    from clfew.training.device import choose_precision

    precision, _ = choose_precision(device, settings.precision)
    return features_of(start.encoder, cache.pixels, cache.aspects, cache.good, device, precision)


def result_of(looked: Looked) -> dict[str, Any]:
    """Returns what was found as check.json has it."""
    source = looked.source
    rows = [
        {
            "name": each.name,
            "title": each.title,
            "says": each.says,
            "needs_person": each.needs_person,
            "count": each.count,
            "images": [[source.identities[i] for i in some] for some in each.sets],
            "notes": each.notes,
        }
        for each in sorted(looked.findings, key=lambda each: not each.needs_person)
    ]
    groups = source.groups
    return {
        "source": source.spec,
        "read_as": source.summary(),
        "looked_at": looked.level,
        "encoder": looked.encoder or None,
        "images": len(source),
        "labelled": int((source.labels >= 0).sum()),
        "splits": count_of_splits(source),
        "classes": classes_of(source),
        "groups": group_words(looked.groups) if looked.groups is not None else _named(groups),
        "files": looked.headers,
        "findings": rows,
        "needs_person": sum(row["needs_person"] for row in rows),
    }


def _named(groups: np.ndarray | None) -> str:
    """Returns in words which groups the data or the user name, "" for none."""
    if groups is None:
        return ""
    named = groups[groups >= 0]
    count = console.plural(len(np.unique(named)), "group")
    return f"{console.plural(len(named), 'image')} in {count}"


def _require_outside(path: Path, folder: Path) -> None:
    """Raises UserError if a list would lie in the source that it lists."""
    if path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"{path} would lie in {folder}, in which nothing is changed.",
            f"name a file beside it: --fix {shlex.quote(str(folder.resolve().parent / path.name))}",
        )


def _fixed(looked: Looked, seed: int) -> Fixed:
    assert looked.cache is not None and looked.groups is not None
    return fixed(looked.source, looked.cache, looked.findings, looked.groups, seed)


def _say_next(settings: CheckSettings, looked: Looked, mended: Fixed | None) -> None:
    """Prints the command to type next."""
    if mended is not None:
        named = shlex.quote(str(settings.fix))
        labels = f"clfew finetune {named} --labels all"
        console.next_command(labels if len(mended.labels) > 1 else f"clfew pretrain {named}")
    elif looked.cache is None:
        spec = settings.source if settings.source is not None else looked.source.spec
        console.next_command(f"clfew check {shlex.quote(spec)} --full")


def save(run: Run, looked: Looked, result: dict[str, Any]) -> None:
    """Writes check.json, check.html and bad_images.csv."""
    from clfew.report.check import write_check_page

    run.write_config({"command": "check", "source": looked.source.spec, "from": looked.encoder})
    run.write_bad_images(looked.cache.bad if looked.cache else [])
    write_json(run.folder / "check.json", result)
    write_check_page(run.folder / "check.html", looked.source, looked.cache, looked.findings, result)
    console.say(f"page       {from_here(run.folder / 'check.html')}")
