"""`clfew check --fix`: a list of the images of a source without what is wrong with them."""

from dataclasses import dataclass, field

import numpy as np

from clfew.data.image_cache import ImageCache
from clfew.data.source import Source
from clfew.errors import UserError
from clfew.quality.finding import Finding
from clfew.quality.pixels import split_to_test_of

UNUSABLE = ("no_image", "large", "unreadable", "flat")
UNCERTAIN = ("contradictions", "near_contradictions", "suspicious_labels")
LEAKING = ("across_splits", "torn_bursts", "torn_groups", "alike_across_splits")
"""The findings whose images are left out, whose labels are, and whose images are left out unless they
are tested on."""


@dataclass(frozen=True)
class Fixed:
    """A list of images. rows: path, label, split and group of each. left_out: the number of images left
    out for each reason. unlabelled: that of images whose label is left out. remaining: titles of
    findings that only a person can mend."""

    header: list[str]
    rows: list[list[str]]
    left_out: dict[str, int] = field(default_factory=dict)
    unlabelled: dict[str, int] = field(default_factory=dict)
    remaining: list[str] = field(default_factory=list)

    def words(self) -> str:
        """Returns in words what the list holds."""
        said = f"{len(self.rows):,} images"
        if self.left_out:
            counts = ", ".join(f"{count:,} {title}" for title, count in self.left_out.items())
            said += f"; left out: {counts}"
        if self.unlabelled:
            counts = ", ".join(f"{count:,} {title}" for title, count in self.unlabelled.items())
            said += f"; without their label: {counts}"
        if self.remaining:
            said += f"; left to you: {', '.join(self.remaining)}"
        return said


def fixed(source: Source, cache: ImageCache, findings: list[Finding], groups: np.ndarray) -> Fixed:
    """Returns the list of the images of a source without the problems that were found. groups: int64
    (N,), of each image. Raises UserError if images of the source are no files."""
    if source.path_of is None:
        raise UserError(
            f"The images of {source.spec} are not files that a list could name.",
            "leave out --fix; check.html and --format json name their rows.",
        )
    test = split_to_test_of(source)
    drop, unlabel = np.zeros(len(source), bool), np.zeros(len(source), bool)
    left_out: dict[str, int] = {}
    unlabelled: dict[str, int] = {}

    def leave_out(images: np.ndarray, title: str) -> None:
        new = images[~drop[images]]
        drop[new] = True
        left_out.update({title: left_out.get(title, 0) + len(new)} if len(new) else {})

    of_name = {each.name: each for each in findings}
    for name in UNUSABLE:
        leave_out(_images(of_name.get(name)), of_name[name].title if name in of_name else "")
    for name in LEAKING:
        images = _images(of_name.get(name))
        outside = images[source.splits[images] != test]
        leave_out(outside, "of the training side of what is on both sides of the test split")
    for name in UNCERTAIN:
        images = _images(of_name.get(name))
        new = images[~drop[images] & ~unlabel[images] & (source.labels[images] >= 0)]
        unlabel[new] = True
        unlabelled.update({of_name[name].title: len(new)} if len(new) else {})
    leave_out(_further_copies(cache, drop, source.splits == test), "further copies of the same bytes")
    mended = {*UNUSABLE, *UNCERTAIN, *LEAKING}
    return Fixed(
        *_rows(source, np.flatnonzero(~drop), unlabel, groups),
        left_out=left_out,
        unlabelled=unlabelled,
        remaining=[each.title for each in findings if each.needs_person and each.name not in mended],
    )


def _images(finding: Finding | None) -> np.ndarray:
    sets = [] if finding is None else finding.sets
    return np.unique(np.array([image for each in sets for image in each], dtype=np.int64))


def _further_copies(cache: ImageCache, dropped: np.ndarray, tested: np.ndarray) -> np.ndarray:
    """Returns the images that are copies of one that stays, of which those tested on come first."""
    kept = cache.good[~dropped[cache.good]]
    kept = kept[np.argsort(~tested[kept], kind="stable")]
    firsts = np.unique(cache.digests[kept], return_index=True)[1]
    return np.setdiff1d(kept, kept[firsts])


def _rows(
    source: Source, images: np.ndarray, unlabel: np.ndarray, groups: np.ndarray
) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows, with the columns that mean something."""
    assert source.path_of is not None
    sizes = np.bincount(groups[images], minlength=len(source))
    columns = {"path": [str(source.path_of(i)) for i in images.tolist()]}
    if source.is_labelled:
        columns["label"] = [
            source.classes[source.labels[i]] if source.labels[i] >= 0 and not unlabel[i] else ""
            for i in images.tolist()
        ]
    if (source.splits != "train").any():
        columns["split"] = source.splits[images].tolist()
    if (sizes > 1).any():
        columns["group"] = [
            source.identities[groups[i]] if sizes[groups[i]] > 1 else "" for i in images.tolist()
        ]
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]
