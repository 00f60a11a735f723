"""The images, labels and features that fine-tuning and distillation learn from."""

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from clfew import console
from clfew.data.cache_folder import ImageCache
from clfew.data.groups import contradictions, group_words, groups_of
from clfew.data.held_out import NONE, SPLIT_RULE, split_images
from clfew.data.label_lists import CHOSEN, LabelList, counts_of, labelled_by, read_label_list
from clfew.data.labels import LabelSpec
from clfew.data.source import Source
from clfew.data.splits import evenly_spaced, split_to_test, test_indices
from clfew.errors import UserError
from clfew.finetuning.asked import AUTO
from clfew.finetuning.label_propagation import MAX_IMAGES
from clfew.finetuning.other_sources import OtherImages
from clfew.models.features import features_of
from clfew.models.metadata import ArtifactMetadata
from clfew.models.side_by_side import SideBySide


def with_labels(
    source: Source, spec: LabelSpec, before: list[ArtifactMetadata]
) -> tuple[Source, LabelList | None]:
    """Returns the source with its labels, and the list that `spec` names, None without one. before: of
    the artifacts to start from. Raises UserError if there are no labels, fewer than two classes, or
    other classes than those of a classifier to start from."""
    listed = None
    if spec.listed is not None:
        listed = read_label_list(source, spec.listed)
        source = labelled_by(source, listed)
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
    if listed is not None and len(used := np.unique(source.labels[listed.learned])) < 2:
        raise UserError(
            f"{spec.list_name} lists images of one class only, '{source.classes[used[0]]}'"
            f"{', to learn from' if listed.to_test else ''}.",
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


def lists_all(source: Source, listed: LabelList | None) -> bool:
    """Returns whether all labels of a source are those that a list has to learn from. listed: None
    without a list."""
    return listed is not None and bool((source.labels >= 0).sum() == len(listed.learned))


def draws_test(source: Source, listed: LabelList | None) -> bool:
    """Returns whether test images are drawn where the source has no test split of its own: not if a list
    has a test sample or all labels."""
    return listed is None or not (listed.to_test or lists_all(source, listed))


def held_out_of(
    source: Source,
    split_seed: int,
    listed: LabelList | None = None,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the images to hold out. listed: a list of labels, None without one. If it has a test
    sample, that is held out beside the source's own test split; if its labels are all that there are,
    and the source has no test split of its own, nothing is. groups: see `test_indices`."""
    if listed is not None and listed.to_test:
        return np.flatnonzero(source.splits == "test")
    if lists_all(source, listed) and split_to_test(source) != "test":
        return np.array([], dtype=np.int64)
    return test_indices(source, split_seed, groups)


def readable(source: Source, listed: LabelList, pool: np.ndarray) -> np.ndarray:
    """Returns the sorted indices of the images that a list has to learn from. Raises UserError if one of
    them is in the test split or cannot be read."""
    missing = np.setdiff1d(listed.learned, pool)
    if len(missing):
        raise UserError(
            f"{listed.file} lists {source.identities[missing[0]]}, which is in the test split or "
            "cannot be read.",
            "remove it from the list: test images are never trained on.",
        )
    return np.sort(listed.learned)


@dataclass(frozen=True)
class LabelledData:
    """The images of a command that learns from labels, or tests on them.

    pool: indices of the images to learn from, labelled or not. test: indices of the labelled images to
    test on. split_seed, split_rule: of the test split (see `held_out.SPLIT_RULE`). label_samples: for
    each label sample, the indices of its labelled images. others: pretraining images from another
    source. groups: int64, the group of each image of the source, whose images stay on one side,
    None where each is alone. class_shares: what is expected of the classes' shares (see `parse_shares`).
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
    class_shares: str | dict[str, float] = AUTO
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
    never: np.ndarray = NONE,
) -> LabelledData:
    """Returns the images to learn from and to test on, without label samples: see `split_images`.

    held_out: None for the source's test split. never: images that are not learned from even where they
    are not tested on, because copies of them, or images of their groups, are learned from.
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
    pool = np.setdiff1d(split.pool, never)
    data = LabelledData(source, cache, pool, test, split_seed, split_rule, groups=groups)
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
        shown = ", ".join(map(console.printable, untested[:5]))
        count = console.plural(len(untested), "class", "classes")
        # In a test split that the data or a list have, there may just be none of it.
        why = "the test images show none" if split_to_test(source) else "all images belong together"
        console.say(f"note       {count} cannot be tested: {why}, of {shown}")
    if len(data.contradicting):
        first = data.contradicting[0]
        same = data.cache.digests[data.contradicting] == data.cache.digests[first]
        names = [console.printable(source.identities[i]) for i in data.contradicting[same]]
        console.say(
            f"note       {len(data.contradicting)} images are files with two labels, such as "
            f"{' and '.join(names[:4])}: they are not tested on; contradictions.csv lists them"
        )


def say_test_sample(data: LabelledData, listed: LabelList) -> None:
    """Reports which images of a list's test sample cannot be tested on, and why there is no accuracy
    where all that is known was chosen."""
    tested = np.array([row.index for row in listed.to_test if row.label], dtype=np.int64)
    lost = np.setdiff1d(tested, np.union1d(data.test, data.contradicting))
    bad = len(np.setdiff1d(lost, data.cache.good))
    if joined := len(lost) - bad:
        console.say(
            f"note       {console.plural(joined, 'image')} of the test sample cannot be tested on: "
            "copies of them, or images of their groups, are learned from"
        )
    if bad:
        console.say(f"note       {console.plural(bad, 'image')} of the test sample cannot be read")
    hows = counts_of([row.how for row in listed.to_learn if row.label])
    if not len(data.test) and not listed.to_test and CHOSEN in hows:
        console.say(
            "note       there is no accuracy, as chosen images are no test; for one, label a random "
            "sample, too: clfew select --test 50"
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


def own_features_of_pool(
    encoder: SideBySide, learned: LabelledData, device: torch.device, precision: str
) -> np.ndarray:
    """Returns the own features of encoders that are used side by side, of the images of the pool."""
    cache = learned.cache
    arrays = (cache.pixels, cache.aspects, learned.pool)
    return features_of(encoder, *arrays, device, precision, standardised=False)


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
