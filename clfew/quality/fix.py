"""`clfew check --fix`: a list of the images of a source without what is wrong with them."""

from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from clfew import console
from clfew.data.cache_folder import ImageCache
from clfew.data.source import Source
from clfew.data.splits import test_indices
from clfew.errors import UserError
from clfew.quality.finding import Finding
from clfew.quality.pixels import split_to_test_of

UNUSABLE = ("no_image", "large", "unreadable", "flat")
UNCERTAIN = ("contradictions", "near_contradictions", "suspicious_labels")
LEAKING = ("across_splits", "torn_bursts", "torn_groups")
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

    @property
    def labels(self) -> set[str]:
        """The classes that still have a label."""
        if "label" not in self.header:
            return set()
        column = self.header.index("label")
        return {row[column].strip() for row in self.rows} - {""}

    def words(self) -> str:
        """Returns in words what the list holds."""
        parts = [console.plural(len(self.rows), "image")]
        for what, counts in (("left out", self.left_out), ("without their label", self.unlabelled)):
            if counts:
                parts.append(f"{what}: {', '.join(f'{title} ({n:,})' for title, n in counts.items())}")
        if self.remaining:
            parts.append(f"left to you: {', '.join(self.remaining)}")
        return "; ".join(parts)


def require_files(source: Source) -> None:
    """Raises UserError if the images of a source are no files, which a list could name."""
    if source.path_of is None:
        raise UserError(
            f"The images of {source.spec} are not files that a list could name.",
            "leave out --fix; check.html and --format json name their rows.",
        )


def fixed(
    source: Source, cache: ImageCache, findings: list[Finding], groups: np.ndarray, seed: int
) -> Fixed:
    """Returns the list of the images of a source without the problems that were found. groups: int64
    (N,), of each image. seed: of the images that are held out, if the data have no test split.

    Labels of test images are not left out for being suspicious, or an encoder would choose the test. Of
    data without a test split the list has one. Raises UserError if nothing is left, or if images of the
    source are no files.
    """
    require_files(source)
    of_name = {each.name: each for each in findings}
    bare = Counter(name.strip() for name in source.classes)
    if twice := [name for name, count in bare.items() if count > 1]:
        raise UserError(
            f"In a list, which has no spaces at the ends of names, two classes are called '{twice[0]}'.",
            "rename the folder whose name begins or ends with a space.",
        )
    source, tested = _with_test(source, of_name, groups, seed)
    drop, unlabel = np.zeros(len(source), bool), np.zeros(len(source), bool)
    left_out: Counter[str] = Counter()
    unlabelled: Counter[str] = Counter()

    def leave_out(images: np.ndarray, title: str) -> None:
        left_out[title] += int((~drop[images]).sum())
        drop[images] = True

    for name in UNUSABLE:
        leave_out(_images(of_name.get(name)), of_name[name].title if name in of_name else "")
    for name in LEAKING:
        images = _images(of_name.get(name))
        leave_out(images[~tested[images]], "that are learned from and tested on, as copies or groups")
    for name in UNCERTAIN:
        images = _images(of_name.get(name))
        images = images[~drop[images] & ~unlabel[images] & (source.labels[images] >= 0)]
        if name == "suspicious_labels":
            images = images[~tested[images]]
        unlabel[images] = True
        unlabelled[of_name[name].title if name in of_name else ""] += len(images)
    has_label = (source.labels >= 0) & ~unlabel
    leave_out(_further_copies(cache, drop, has_label, tested), "further copies of the same bytes")
    if drop.all():
        raise UserError("No image is left to list.", "look at what is wrong: clfew check SOURCE --full")
    return Fixed(
        *_rows(source, np.flatnonzero(~drop), unlabel, groups),
        left_out=+left_out,
        unlabelled=+unlabelled,
        remaining=_remaining(findings, of_name, tested),
    )


def _with_test(
    source: Source, of_name: dict[str, Finding], groups: np.ndarray, seed: int
) -> tuple[Source, np.ndarray]:
    """Returns the source and which images are tested on: those of its own test split, else a fifth that
    is held out before suspicious labels are left out, if there are any."""
    own = split_to_test_of(source)
    if own is not None or "suspicious_labels" not in of_name:
        return source, source.splits == own
    tested = np.zeros(len(source), bool)
    tested[test_indices(source, seed, groups)] = True
    return replace(source, splits=np.where(tested, "test", source.splits)), tested


def _remaining(findings: list[Finding], of_name: dict[str, Finding], tested: np.ndarray) -> list[str]:
    """Returns in words what only a person can mend."""
    mended = {*UNUSABLE, *UNCERTAIN, *LEAKING}
    said = [each.title for each in findings if each.needs_person and each.name not in mended]
    kept = int(tested[_images(of_name.get("suspicious_labels"))].sum())
    return said + ([f"suspicious labels of test images ({kept:,})"] if kept else [])


def _images(finding: Finding | None) -> np.ndarray:
    sets = [] if finding is None else finding.sets
    return np.unique(np.array([image for each in sets for image in each], dtype=np.int64))


def _further_copies(
    cache: ImageCache, dropped: np.ndarray, has_label: np.ndarray, tested: np.ndarray
) -> np.ndarray:
    """Returns the images that are copies of one that stays, of which those with a label come first, and
    of these those tested on."""
    kept = cache.good[~dropped[cache.good]]
    kept = kept[np.lexsort((~tested[kept], ~has_label[kept]))]
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
