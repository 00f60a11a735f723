"""The images, labels and features that fine-tuning and distillation learn from."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from clfew import console
from clfew.data.content import holds_the_same
from clfew.data.groups import contradictions, group_words, groups_of
from clfew.data.held_out import NONE, SPLIT_RULE, split_images
from clfew.data.image_cache import ImageCache, cached_images
from clfew.data.label_lists import apply_label_csv
from clfew.data.labels import LabelSpec
from clfew.data.layout import LABELLED_FOLDERS
from clfew.data.source import Source
from clfew.data.sources import open_source
from clfew.data.splits import evenly_spaced, split_to_test, test_indices
from clfew.errors import UserError
from clfew.finetuning.label_propagation import MAX_IMAGES
from clfew.finetuning.start import Start, other_images
from clfew.models.features import features_of
from clfew.models.metadata import ArtifactMetadata
from clfew.models.side_by_side import SideBySide
from clfew.runs.folders import read_config


def find_source(
    source: str | None, metadata: ArtifactMetadata | None, spec: LabelSpec | None = None
) -> str:
    """Returns the name of the labelled source: `source`, else ./labeled or ./labelled, else the source
    in the artifact's metadata, if it has labels or `spec` names a label CSV. Raises UserError if there
    is none."""
    if source is not None:
        return source
    for folder in LABELLED_FOLDERS:
        if Path(folder).is_dir():
            return folder
    hint = "name one: a folder with a subfolder for each class, a CSV of path,label, or hf:NAME."
    data = metadata.data if metadata else {}
    before = (data.get("pretrain") or data.get("finetune") or {}).get("source")
    if before is None:
        raise UserError("No labelled images were named, and there is no folder ./labeled.", hint)
    if spec is not None and spec.listed is not None:
        return before
    if not open_source(before).is_labelled:
        raise UserError(
            "No labelled images were named, there is no folder ./labeled, and the pretraining images in "
            f"{before} have no class folders.",
            hint,
        )
    return before


def with_labels(
    source: Source, spec: LabelSpec, before: list[ArtifactMetadata]
) -> tuple[Source, np.ndarray | None]:
    """Returns the source with its labels, and the indices of the images that a label CSV lists, None
    without one. before: of the artifacts to start from. Raises UserError if there are no labels, fewer
    than two classes, or other classes than those of a classifier to start from."""
    listed = None
    if spec.listed is not None:
        source, listed = apply_label_csv(source, spec.listed)
    if not source.is_labelled:
        raise UserError(
            f"{source.spec} has no labels.",
            "put each class into its own subfolder, list path,label in a CSV (--labels FILE.csv), or "
            "name the column of the labels (--label-column NAME).",
        )
    if len(source.classes) < 2:
        raise UserError(
            f"{source.spec} has one class only, '{source.classes[0]}'.",
            "a classifier needs two: put each class into its own subfolder.",
        )
    if listed is not None and len(used := np.unique(source.labels[listed])) < 2:
        raise UserError(
            f"{spec.list_name} lists images of one class only, '{source.classes[used[0]]}'.",
            "a classifier needs two: list images of another class too.",
        )
    for metadata in before:
        if metadata.kind == "classifier" and metadata.classes != source.classes:
            differ = sorted(set(metadata.classes) ^ set(source.classes))
            raise UserError(
                "The classes differ from those of the classifier to start from "
                f"({', '.join(differ[:4])}).",
                "start from the encoder instead, such as --from runs/pretrain-1.",
            )
    return source, listed


def kept_group_by(before: list[ArtifactMetadata], source: Source) -> str | None:
    """Returns by what artifacts grouped the images of a source, None where none did."""
    steps = [step for each in before for step in each.data.values()]
    kept = [step.get("group_by") for step in steps if step.get("source") == source.spec]
    return next((each for each in kept if each), None)


def lists_all(source: Source, listed: np.ndarray | None) -> bool:
    """Returns whether all labels of a source are those of a label CSV. listed: the images that one
    lists, None without one."""
    return listed is not None and bool((source.labels >= 0).sum() == len(listed))


def held_out_of(
    source: Source,
    split_seed: int,
    listed: np.ndarray | None = None,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the images to hold out. listed: those that a label CSV lists, None without one; if these
    are all the labels, and the source has no test split of its own, nothing is held out. groups: see
    `test_indices`."""
    if lists_all(source, listed) and split_to_test(source) != "test":
        return np.array([], dtype=np.int64)
    return test_indices(source, split_seed, groups)


def readable(source: Source, listed: np.ndarray, pool: np.ndarray, spec: LabelSpec) -> np.ndarray:
    """Returns the sorted indices of the images that a label CSV lists. Raises UserError if one of them
    is in the test split or cannot be read."""
    missing = np.setdiff1d(listed, pool)
    if len(missing):
        raise UserError(
            f"{spec.list_name} lists {source.identities[missing[0]]}, which is in the test split or "
            "cannot be read.",
            "remove it from the list: test images are never trained on.",
        )
    return np.sort(listed)


@dataclass(frozen=True)
class OtherImages:
    """Pretraining images from another source than the labelled ones.

    cache, indices: the images are those at `indices` in `cache`. bad: the path of each image that cannot
    be read, and the reason.
    """

    cache: ImageCache
    indices: np.ndarray
    bad: list[tuple[str, str]]


@dataclass(frozen=True)
class LabelledData:
    """The images of a command that learns from labels, or tests on them.

    pool: indices of the images to learn from, labelled or not. test: indices of the labelled images to
    test on. split_seed, split_rule: of the test split (see `held_out.SPLIT_RULE`). label_samples: for
    each label sample, the indices of its labelled images. others: pretraining images from another
    source. groups: int64, the group of each image of the source, whose images stay on one side.
    class_shares: the expected fraction of each class. Both are None while nothing is known of them.
    contradicting: indices of images that are one file with two labels, which are not tested on.
    """

    source: Source
    cache: ImageCache
    pool: np.ndarray
    test: np.ndarray
    split_seed: int
    split_rule: int
    label_samples: list[np.ndarray] = field(default_factory=list)
    others: OtherImages | None = None
    groups: np.ndarray | None = None
    class_shares: np.ndarray | None = None
    contradicting: np.ndarray = field(default_factory=lambda: NONE)

    @property
    def known(self) -> np.ndarray:
        """Indices of the images of the pool that have labels."""
        return self.pool[self.source.labels[self.pool] >= 0]


def labelled_data(
    source: Source,
    cache: ImageCache,
    held_out: np.ndarray | None,
    split_seed: int,
    split_rule: int = SPLIT_RULE,
    learned: np.ndarray = NONE,
) -> LabelledData:
    """Returns the images to learn from and to test on, without label samples: see `split_images`.

    held_out: None for the source's test split.
    """
    groups = groups_of(source, cache)
    contradicting = NONE
    if held_out is None:
        held_out = held_out_of(source, split_seed, None, groups)
    split = split_images(cache, held_out, split_rule, learned, groups)
    test = split.test[source.labels[split.test] >= 0]
    if groups is not None:
        contradicting = contradictions(source, cache)
        test = np.setdiff1d(test, contradicting)
    data = LabelledData(source, cache, split.pool, test, split_seed, split_rule, groups=groups)
    return replace(data, contradicting=contradicting)


def say_groups(data: LabelledData) -> None:
    """Reports which images stay together, which classes cannot be tested for that, and files with two
    labels."""
    source, groups = data.source, data.groups
    if groups is None:
        return
    if words := group_words(groups[data.cache.good]):
        console.say(f"groups     {words} stay on one side of every split")
    tested, known = set(source.labels[data.test].tolist()), source.labels[data.known]
    untested = [source.classes[label] for label in np.unique(known) if label not in tested]
    if untested:
        console.say(
            f"note       {len(untested)} class{'es' if len(untested) > 1 else ''} cannot be tested: all "
            f"images belong together, of {', '.join(map(console.printable, untested[:5]))}"
        )
    if len(data.contradicting):
        first = data.contradicting[0]
        same = data.cache.digests[data.contradicting] == data.cache.digests[first]
        names = [console.printable(source.identities[i]) for i in data.contradicting[same]]
        console.say(
            f"note       {len(data.contradicting)} images are files with two labels, such as "
            f"{' and '.join(names[:4])}: they are not tested on; contradictions.csv lists them"
        )


def contradiction_rows(data: LabelledData) -> list[tuple[str, str, str]]:
    """Returns path, label and digest of each file with two labels, copies of a file one after the
    other."""
    source, digests = data.source, data.cache.digests
    order = sorted(data.contradicting.tolist(), key=lambda i: (digests[i], i))
    return [
        (source.identities[i], source.classes[source.labels[i]], f"{int(digests[i]):016x}")
        for i in order
    ]


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


def own_features_of_pool(
    encoder: SideBySide, learned: LabelledData, device: torch.device, precision: str
) -> np.ndarray:
    """Returns the own features of encoders that are used side by side, of the images of the pool."""
    cache = learned.cache
    arrays = (cache.pixels, cache.aspects, learned.pool)
    return features_of(encoder, *arrays, device, precision, standardised=False)


def uses_features(start: Start, mode: str) -> bool:
    """Returns whether the mode, or one that "auto" may choose, uses features of the start's encoder."""
    return mode != "full" and (mode != "auto" or start.is_pretrained)


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


def bounded(pool: np.ndarray, always: np.ndarray, purpose: str, most: int = MAX_IMAGES) -> np.ndarray:
    """Returns at most `most` images of the pool, evenly spaced, and those of `always`, and says so with
    the purpose: more images change little and take more time."""
    if len(pool) <= most:
        return pool
    used = np.union1d(evenly_spaced(pool, most), always)
    console.say(
        f"used       {len(used):,} of the {len(pool):,} images outside the test split {purpose}: more "
        "would change little"
    )
    return used
