"""What fine-tuning and distillation learn from: the labelled source, its pool, and features of both."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from clfew import console
from clfew.data.image_cache import ImageCache, cached_images
from clfew.data.labels import LabelSpec, apply_label_csv
from clfew.data.source import Source
from clfew.data.sources import LABELLED_FOLDERS, open_source
from clfew.data.splits import evenly_spaced, test_indices
from clfew.errors import UserError
from clfew.finetuning.label_propagation import MAX_IMAGES
from clfew.finetuning.start import Start, other_images
from clfew.models.features import features_of
from clfew.models.metadata import ArtifactMetadata
from clfew.runs.folders import read_config


def find_source(
    named: str | None, metadata: ArtifactMetadata | None, spec: LabelSpec | None = None
) -> str:
    """The source by name, else ./labeled or ./labelled, else the source of the artifact `about`
    where it has labels (or a label CSV gives it some). Raises UserError."""
    if named is not None:
        return named
    for folder in LABELLED_FOLDERS:
        if Path(folder).is_dir():
            return folder
    hint = "name one: a folder with a subfolder for each class, a CSV of path,label, or hf:NAME."
    data = metadata.data if metadata else {}
    before = (data.get("pretrain") or data.get("finetune") or {}).get("source")
    if before is None:
        raise UserError("No labelled images were named, and there is no folder ./labeled.", hint)
    if spec is not None and spec.file is not None:
        return before
    if not open_source(before).is_labelled:
        raise UserError(
            f"No labelled images were named, there is no folder ./labeled, and {before}, "
            "which was pretrained on, has no class folders.",
            hint,
        )
    return before


def with_labels(
    source: Source, spec: LabelSpec, metadata: ArtifactMetadata | None
) -> tuple[Source, np.ndarray | None]:
    """The source with its labels, and the images a label CSV names. Checks the classes."""
    named = None
    if spec.file is not None:
        source, named = apply_label_csv(source, spec.file)
    if not source.is_labelled:
        raise UserError(
            f"{source.spec} has no labels.",
            "put each class into its own subfolder, or list path,label in a CSV: --labels FILE.csv",
        )
    if len(source.classes) < 2:
        raise UserError(
            f"{source.spec} has one class only, '{source.classes[0]}'.",
            "a classifier needs two: put each class into its own subfolder.",
        )
    if metadata is not None and metadata.kind == "classifier" and metadata.classes != source.classes:
        differ = sorted(set(metadata.classes) ^ set(source.classes))
        raise UserError(
            f"The classes differ from those of the classifier to start from ({', '.join(differ[:4])}).",
            "start from the encoder instead, such as --from runs/pretrain-1.",
        )
    return source, named


def outside(source: Source, named: np.ndarray, split_seed: int) -> np.ndarray:
    """The test split beside a label CSV: none where the CSV holds all the labels there are."""
    if (source.labels >= 0).sum() == len(named) and not (source.splits == "test").any():
        return np.array([], dtype=np.int64)
    return test_indices(source, split_seed)


def readable(source: Source, named: np.ndarray, pool: np.ndarray, spec: LabelSpec) -> np.ndarray:
    """The images of a label CSV, none of which may be tested on or unreadable."""
    outside = np.setdiff1d(named, pool)
    if len(outside):
        raise UserError(
            f"{spec.file} names {source.identities[outside[0]]}, which is in the test split or "
            "cannot be read.",
            "remove it from the list: what is tested on is never learned from.",
        )
    return np.sort(named)


@dataclass(frozen=True)
class Others:
    """Images that were pretrained on, of another source than the labelled ones: `indices` of `store`.
    bad: path and reason of those that cannot be read."""

    cache: ImageCache
    indices: np.ndarray
    bad: list[tuple[str, str]]


def find_others(start: Start, source: Source, mode: str, test_digests: np.ndarray) -> Others | None:
    """None where there are none, or nothing will read their features."""
    spec = start.pretraining_source
    if spec is None or spec == source.spec or not _reads_features(start, mode):
        return None
    try:
        others = open_source(spec)
        cache = cached_images(others, start.metadata.side)
    except UserError:
        console.say(f"note       {spec}, which was pretrained on, cannot be read: going on without it")
        return None
    bad = [(f"{spec}/{name}", reason) for name, reason in cache.bad]
    return Others(cache, other_images(start, others, cache, test_digests, MAX_IMAGES), bad)


def pool_features(
    start: Start,
    cache: ImageCache,
    pool: np.ndarray,
    others: Others | None,
    mode: str,
    device: torch.device,
    precision: str,
) -> np.ndarray | None:
    """Features of the pool and of the others, None where nothing will read them."""
    if not _reads_features(start, mode):
        return None

    def read(of: ImageCache, indices: np.ndarray) -> np.ndarray:
        return features_of(start.encoder, of.pixels, of.aspects, indices, device, precision)

    features = read(cache, pool)
    if others is None or not len(others.indices):
        return features
    return np.concatenate([features, read(others.cache, others.indices)])


def _reads_features(start: Start, mode: str) -> bool:
    return mode != "full" and (mode != "auto" or start.is_pretrained)


def other_sources(starts: list[Start], source: Source) -> dict[str, str | None]:
    """The digest of each source that was pretrained on and is another, None where it cannot be read."""
    specs = {start.pretraining_source for start in starts} - {None, source.spec}
    return {spec: _digest_or_none(spec) for spec in specs if spec is not None}


def check_other_sources(run: Path, starts: list[Start], source: Source) -> None:
    """Raises UserError where one of them is not what it was when a run was started."""
    before = read_config(run).get("pretrained_on", {})
    for spec, digest in other_sources(starts, source).items():
        if before.get(spec) != digest:
            raise UserError(
                f"The images in {spec}, which was pretrained on, have changed since {run} was started.",
                "start a new run: clfew finetune with the same options.",
            )


def _digest_or_none(spec: str) -> str | None:
    try:
        return open_source(spec).digest()
    except UserError:
        return None


def merged(first: Source, second: Source) -> Source:
    """The images of both, the first one's first, with its labels and none of the second one's."""
    count = len(first)
    return Source(
        spec=f"{first.spec} + {second.spec}",
        identities=[*first.identities, *(f"{second.spec}/{name}" for name in second.identities)],
        labels=np.concatenate([first.labels, np.full(len(second), -1)]),
        classes=first.classes,
        splits=np.concatenate([first.splits, second.splits]),
        content=lambda i: first.content(i) if i < count else second.content(i - count),
        fingerprint=f"{first.fingerprint} {second.fingerprint}",
        ignored=first.ignored + second.ignored,
    )


def bounded(pool: np.ndarray, always: np.ndarray, most: int = MAX_IMAGES) -> np.ndarray:
    """At most `most` images of the pool, evenly spread, and those of `always`: more of them change
    little and take their time."""
    if len(pool) <= most:
        return pool
    return np.union1d(evenly_spaced(pool, most), always)
