"""Images from another source than the labelled ones: those of pretraining, and two sources as one."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from clfew import console
from clfew.data.cache_folder import ImageCache
from clfew.data.content import holds_the_same
from clfew.data.image_cache import cached_images
from clfew.data.source import Source
from clfew.data.sources import open_source
from clfew.errors import UserError
from clfew.finetuning.label_propagation import MAX_IMAGES
from clfew.finetuning.start import Start, other_images
from clfew.models.features import features_of
from clfew.runs.folders import read_config


@dataclass(frozen=True)
class OtherImages:
    """Pretraining images from another source than the labelled ones.

    cache, indices: the images are those at `indices` in `cache`. bad: the path of each image that cannot
    be read, and the reason.
    """

    cache: ImageCache
    indices: np.ndarray
    bad: list[tuple[str, str]]


def find_others(
    starts: list[Start], source: Source, mode: str, test_digests: np.ndarray
) -> OtherImages | None:
    """Returns the pretraining images from another source, the first one where the starts have several;
    None where there are none or the mode does not use their features."""
    specs = [each.pretraining_source for each in starts if uses_features(each, mode)]
    elsewhere = dict.fromkeys(spec for spec in specs if spec not in (None, source.spec))
    spec = next(iter(elsewhere), None)
    if spec is None:
        return None
    if len(elsewhere) > 1:
        console.say(f"note       of other pretraining images, only those in {spec} are used")
    try:
        others = replace(open_source(spec, source.rule), scale=source.scale)
        cache = cached_images(others, max(each.metadata.side for each in starts))
    except UserError:
        console.say(f"note       the pretraining images in {spec} cannot be read and are not used")
        return None
    bad = [(f"{spec}/{name}", reason) for name, reason in cache.bad]
    seen = np.unique(np.concatenate([s.seen for s in starts if s.pretraining_source == spec]))
    return OtherImages(cache, other_images(seen, others, cache, test_digests, MAX_IMAGES), bad)


def uses_features(start: Start, mode: str) -> bool:
    """Returns whether the mode, or one that "auto" may choose, uses features of the start's encoder."""
    return mode != "full" and (mode != "auto" or start.is_pretrained)


def pool_features(
    start: Start,
    cache: ImageCache,
    pool: np.ndarray,
    others: OtherImages | None,
    mode: str,
    device: torch.device,
    precision: str,
) -> np.ndarray | None:
    """Returns the features of the pool and then of the other images, None where the mode does not use
    them."""
    if not uses_features(start, mode):
        return None

    def features_in(images: ImageCache, indices: np.ndarray) -> np.ndarray:
        arrays = (images.pixels, images.aspects, indices)
        return features_of(start.encoder, *arrays, device, precision)

    features = features_in(cache, pool)
    if others is None or not len(others.indices):
        return features
    return np.concatenate([features, features_in(others.cache, others.indices)])


def other_sources(starts: list[Start], source: Source) -> dict[str, str | None]:
    """Returns the digest of each pretraining source but `source`, None where it cannot be read."""
    specs = {start.pretraining_source for start in starts} - {None, source.spec}
    return {spec: _digest_or_none(spec, source.rule) for spec in specs if spec is not None}


def check_other_sources(run: Path, starts: list[Start], source: Source) -> None:
    """Raises UserError if a source of `other_sources` has changed since a run was started."""
    before = read_config(run).get("pretrained_on", {})
    contents = {
        s.pretraining_source: s.metadata.data["pretrain"].get("content")
        for s in starts
        if s.pretraining_source
    }
    for spec, digest in other_sources(starts, source).items():
        if before.get(spec) != digest and not _is_content(spec, source.rule, contents[spec]):
            raise UserError(
                f"The pretraining images in {spec} have changed since {run} was started.",
                "start a new run: clfew finetune with the same options.",
            )


def _is_content(spec: str, rule: int, content: str | None) -> bool:
    """Returns whether a source holds the images that were pretrained on, with other times."""
    try:
        return bool(content) and holds_the_same(open_source(spec, rule), content)
    except UserError:
        return False


def _digest_or_none(spec: str, rule: int) -> str | None:
    try:
        return open_source(spec, rule).digest()
    except UserError:
        return None


SECOND = "unlabelled images: "
"""What the names of the second source's images begin with in a merged one: it tells nothing of where
they lie, so that the same images elsewhere have the same names."""


def merged(first: Source, second: Source) -> Source:
    """Returns a source with the images of both, those of `first` first. Only the labels of `first` are
    kept."""
    count = len(first)
    return Source(
        spec=f"{first.spec} + {second.spec}",
        identities=[*first.identities, *(SECOND + name for name in second.identities)],
        labels=np.concatenate([first.labels, np.full(len(second), -1)]),
        classes=first.classes,
        splits=np.concatenate([first.splits, second.splits]),
        content=lambda i: first.content(i) if i < count else second.content(i - count),
        fingerprint=f"{first.fingerprint} {second.fingerprint}",
        reading=f"{first.summary()}; and of {second.spec}: {second.summary()}",
        rule=first.rule,
        scale=first.scale,
        groups=_merged_groups(first, second),
        parts=(first, second),
    )


def bad_in_merged(bad: list[tuple[str, str]], spec: str) -> list[tuple[str, str]]:
    """Returns the path and the reason of each bad image of a merged source, whose second part is
    `spec`."""
    return [
        (f"{spec}/{name.removeprefix(SECOND)}" if name.startswith(SECOND) else name, reason)
        for name, reason in bad
    ]


def _merged_groups(first: Source, second: Source) -> np.ndarray | None:
    """Returns the groups of the images of two sources, whose groups have nothing to do with each
    other."""
    if first.groups is None and second.groups is None:
        return None
    each = [np.full(len(s), -1) if s.groups is None else s.groups for s in (first, second)]
    return np.concatenate([each[0], np.where(each[1] < 0, -1, each[1] + each[0].max(initial=-1) + 1)])
