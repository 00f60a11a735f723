"""What `finetune` does before it fits: opens the images and the starts, new or resumed."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clfew import console
from clfew.data.content import check_content
from clfew.data.find_scale import with_scale
from clfew.data.groups import grouped, groups_of
from clfew.data.held_out import SPLIT_RULE
from clfew.data.image_cache import cached_images
from clfew.data.label_lists import LabelList, LabelRow, say_list
from clfew.data.labels import parse_labels, sample_labels, say_classes_without_label
from clfew.data.pixel_scale import scale_from
from clfew.data.source import Source
from clfew.data.sources import open_source, say_source
from clfew.data.splits import require_groups_to_test, require_testable
from clfew.errors import UsageError, UserError
from clfew.finetuning.asked import ACCURACY, EQUAL, check_metric, parse_shares, share_of_each
from clfew.finetuning.fit import Task
from clfew.finetuning.labelled_data import (
    LabelledData,
    bounded,
    draws_test,
    held_out_of,
    labelled_data,
    own_features_of_pool,
    readable,
    say_groups,
    say_test_sample,
    with_labels,
)
from clfew.finetuning.metric import metric_of
from clfew.finetuning.other_sources import check_other_sources, find_others, pool_features, uses_features
from clfew.finetuning.places import kept_group_by, known_as, renamed, say_moved
from clfew.finetuning.start import Network, Start, open_starts, relocated, side_by_side
from clfew.models.init_weights import SCRATCH, InitWeights
from clfew.models.kept_scale import scaled
from clfew.models.metadata import ArtifactMetadata, read_metadata
from clfew.quality.pixels import say_check
from clfew.runs.folders import read_config
from clfew.settings import FinetuneSettings, bands_of, labels_of
from clfew.training.device import choose_precision

SEEN = 0.1
"""Starts that hold out the same images may still have seen a few of them, by copies elsewhere. Of those
that hold out others, one has seen most of the other's."""


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to fit, new or resumed. found: where the starts are (see `find_starts`).
    listed: the list of labels, None where they are drawn. group_by: see `groups.grouped`. candidates:
    the starts to choose from, with their tasks. metric: see `metric_of`."""

    settings: FinetuneSettings
    found: list[Path | InitWeights | None]
    learned: LabelledData
    listed: LabelList | None
    group_by: str | None
    candidates: list[tuple[Start, Task]]
    metric: str

    @property
    def test_sample(self) -> list[LabelRow]:
        """The rows of the list that are tested on, labelled or not; none where it has none."""
        return self.listed.to_test if self.listed else []

    def hows(self, labelled: np.ndarray) -> list[str]:
        """Returns how the labels of some images to learn from came about, in words."""
        if self.listed is None:
            return [parse_labels(labels_of(self.settings)).drawn] * len(labelled)
        how = {row.index: row.how for row in self.listed.to_learn}
        return [how[index] for index in labelled.tolist()]


def prepare(
    settings: FinetuneSettings,
    found: list[Path | InitWeights | None],
    device: torch.device,
    resumed: Path | None = None,
) -> Prepared:
    """Opens the images and loads the starts. resumed: the folder of a run that is resumed, whose images
    must be those that it was started with. Raises UserError."""
    spec = parse_labels(labels_of(settings))
    split_rule = read_config(resumed).get("split_rule", 1) if resumed else SPLIT_RULE
    precision, _ = choose_precision(device, settings.precision)
    from_scratch = SCRATCH in (*origins_of(settings), settings.init)
    before = [read_metadata(file)[0] for file in found if isinstance(file, Path)]
    opened = open_source(settings.source or "", split_rule)
    config = read_config(resumed) if resumed else {}
    known = known_as(opened, before)
    say_moved(opened, known)
    before = [renamed(each, known, opened.spec) for each in before]
    group_by = _group_by(settings, config, before, opened, from_scratch)
    before = [] if from_scratch else before
    opened, listed = with_labels(grouped(opened, group_by), spec, before)
    if resumed is None:
        if draws_test(opened, listed):
            require_groups_to_test(opened, group_by)
        opened = scaled(opened, bands_of(settings), before)
    elif kept := scale_from(read_config(resumed).get("pixels")):
        opened = with_scale(opened, kept=kept)
    say_source(opened)
    if resumed is not None:
        check_content(resumed, read_config(resumed), opened)
    network = Network(
        settings.encoder,
        settings.size,
        settings.flip,
        settings.stage,
        settings.seed,
        split_rule=split_rule,
        from_scratch=from_scratch,
    )
    starts = open_starts(found, opened, network, device, compare=settings.mode == "auto")
    # A run that is resumed has checked its images, also where its start does not tell their content.
    known |= {config["source"]} if resumed else set()
    starts = [relocated(start, known, opened.spec) for start in starts]
    if resumed is not None:
        check_other_sources(resumed, starts, opened)
    shares, metric = _expected(settings, config, opened.classes)
    learned = _open_images(settings, starts, opened, listed, split_rule)
    learned = replace(learned, class_shares=shares)
    if len(found) > 1:
        _check_held_out(starts, learned)
    if len(found) > 1 and settings.mode != "full":
        # In mode "full" it is one network that is trained.
        own = partial(own_features_of_pool, learned=learned, device=device, precision=precision)
        starts = [side_by_side(starts, own), *starts]
    candidates = [(each, _task(each, learned, settings.mode, device, precision)) for each in starts]
    return Prepared(settings, found, learned, listed, group_by, candidates, metric)


def _expected(
    settings: FinetuneSettings, config: dict[str, Any], classes: list[str]
) -> tuple[str | dict[str, float], str]:
    """Returns what is expected of the class shares, and the metric, before anything takes long. config:
    of a run that is resumed; one of before it had them is finished with equal shares and the accuracy.
    Raises UserError for a class that there is not."""
    shares = config.get("shares", EQUAL) if config else parse_shares(settings.shares)
    metric = config.get("metric", ACCURACY) if config else settings.metric
    check_metric(metric)
    metric_of(metric, classes, False)
    if isinstance(shares, dict):
        share_of_each(shares, classes)
    return shares, metric


def origins_of(settings: FinetuneSettings) -> list[str]:
    """Returns what `--from` names: from Python it may be one name, too."""
    origin = settings.origin or []
    return [str(origin)] if isinstance(origin, (str, Path)) else [str(each) for each in origin]


def _group_by(
    settings: FinetuneSettings,
    config: dict[str, Any],
    before: list[ArtifactMetadata],
    opened: Source,
    from_scratch: bool,
) -> str | None:
    """Returns by what the images are grouped: as they were before, else as the user says. From scratch,
    they are grouped as for the pretrained network, to compare with, unless the user says otherwise.
    config: of a run that is resumed. before: of the artifacts found. Raises UsageError."""
    kept_by = config["group_by"] if "group_by" in config else kept_group_by(before, opened)
    if kept_by and settings.group_by not in (None, kept_by) and not from_scratch:
        raise UsageError(
            f"--group-by {settings.group_by} holds out other images than those that {opened.spec} was "
            f"grouped by before ({kept_by}).",
            "leave out --group-by, or pretrain with the same one.",
        )
    return settings.group_by or kept_by


def _task(start: Start, learned: LabelledData, mode: str, device: torch.device, precision: str) -> Task:
    """Returns what classifiers from a start are fitted to."""
    features = pool_features(start, learned.cache, learned.pool, learned.others, mode, device, precision)
    return Task(
        learned.cache.pixels,
        learned.cache.aspects,
        learned.pool,
        learned.source.labels,
        len(learned.source.classes),
        features,
        device,
        precision,
        is_scaled=bool(start.metadata.parts),
        groups=learned.groups,
    )


def _open_images(
    settings: FinetuneSettings,
    starts: list[Start],
    opened: Source,
    listed: LabelList | None,
    split_rule: int,
) -> LabelledData:
    """Returns the images to learn from and to test on, and the label samples. listed: the list of
    labels, None where they are drawn. Raises UserError."""
    spec = parse_labels(labels_of(settings))
    start = starts[0]
    # Where several are named, that of one which has learned from this source.
    split_seed = _split_seed(
        settings, next((s for s in starts if opened.spec in _sources_of(s)), start), opened
    )
    if listed is None:
        require_testable(opened)
    cache = cached_images(opened, max(each.metadata.side for each in starts))
    held_out = held_out_of(opened, split_seed, listed, groups_of(opened, cache))
    if listed is None:
        data = labelled_data(opened, cache, held_out, split_seed, split_rule)
        seeds = range(settings.seed, settings.seed + settings.repeat)
        label_samples = [sample_labels(opened, data.known, spec, seed) for seed in seeds]
    else:
        learned = readable(opened, listed, np.setdiff1d(cache.good, held_out))
        sample = listed.held_out
        data = labelled_data(opened, cache, held_out, split_seed, split_rule, learned, sample)
        label_samples = [learned]
    always = np.concatenate(label_samples)
    console.say(
        f"source     {settings.source}: {len(opened.classes)} classes, {len(label_samples[0])} labels "
        f"used of {len(data.pool):,} images, {len(data.test):,} more held out for testing"
    )
    if listed is not None:
        say_list(listed)
        say_test_sample(data, listed)
    say_classes_without_label(opened, label_samples)
    say_groups(data)
    say_check(opened, cache, settings.source or "")
    if learned_too := int(
        np.isin(cache.digests[data.test], np.unique(np.concatenate([s.seen for s in starts]))).sum()
    ):
        is_sample = listed is not None and len(listed.held_out)
        why = "before they were drawn" if is_sample else "it held out others"
        console.say(
            f"note       {learned_too:,} of the images held out for testing were learned from, without "
            f"labels, by what is started from: {why}"
        )
    never = data.test if listed is None else np.union1d(data.test, listed.held_out)
    # Mode "full" looks at no image without a label.
    has_use = uses_features(start, settings.mode)
    pool = bounded(data.pool, always, "for their features") if has_use else data.pool
    return replace(
        data,
        pool=pool,
        label_samples=label_samples,
        others=find_others(starts, opened, settings.mode, cache.digests[never]),
    )


def _check_held_out(starts: list[Start], learned: LabelledData) -> None:
    """Raises UserError if some starts have learned from the images to test on and others have not: then
    they have held out different images, under one name or another."""
    test = learned.cache.digests[learned.test]
    if not len(test):
        return
    seen = {s.words: float(np.isin(test, np.union1d(s.seen, s.taught)).mean()) for s in starts}
    most, least = max(seen, key=seen.__getitem__), min(seen, key=seen.__getitem__)
    if seen[most] - seen[least] > SEEN:
        raise UserError(
            f"{most} and {least} hold out different images of {learned.source.spec} for testing: "
            f"{seen[most]:.0%} of those of the second were learned from by the first.",
            "pretrain both with the same --seed, or name a source with a test split of its own.",
        )


def _sources_of(start: Start) -> set[str]:
    """Returns the sources that a start has learned from."""
    return {step["source"] for step in start.metadata.data.values() if "source" in step}


def _split_seed(settings: FinetuneSettings, start: Start, opened: Source) -> int:
    """Returns the seed of the test split: that with which the start held images out, of this source with
    labels or of any without, else the seed of the run."""
    before = start.metadata.data
    of_labels = before.get("finetune", {})
    if "pretrain" not in before and of_labels.get("source") == opened.spec:
        return int(of_labels["split_seed"])
    return int(before.get("pretrain", {}).get("split_seed", settings.seed))
