"""What is found in a source without opening an image: its classes, its splits, what is left out."""

from collections import Counter
from typing import Any

import numpy as np

from clfew.data.decode import extra_for
from clfew.data.source import Source
from clfew.data.splits import indices_by_class, split_to_test
from clfew.quality.class_names import odd_names
from clfew.quality.finding import Finding

FEW = 5
"""With fewer labels than this, a class is hardly learned and its labels cannot be checked."""

_RAW = (".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".mrw", ".nef", ".nrw", ".orf", ".pef")
_MORE_RAW = (".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srw", ".x3f")
_PICTURES = (".avif", ".exr", ".hdr", ".heic", ".heif", ".hif", ".jp2", ".jxl", ".psd", ".svg", ".xcf")
_SCIENCE = (".czi", ".dcm", ".fit", ".fits", ".gz", ".lif", ".nd2", ".npy", ".npz", ".svs", ".vsi")
_FILMS = (".avi", ".mkv", ".mov", ".mp4", ".mpg", ".webm")
_ARCHIVES = (".7z", ".pdf", ".rar", ".tar", ".tgz", ".zip")
_MAY_BE_IMAGES = frozenset((*_RAW, *_MORE_RAW, *_PICTURES, *_SCIENCE, *_FILMS, *_ARCHIVES))
"""The endings of files that hold images or films and that are not read here."""


def classes_of(source: Source) -> list[dict[str, Any]]:
    """Returns a row for each class with its number of images, and of those in each split."""
    rows = []
    known = np.flatnonzero(source.labels >= 0)
    members = indices_by_class(source, known)
    for label, name in enumerate(source.classes):
        inside = members.get(label, np.array([], np.int64))
        counts = Counter(source.splits[inside].tolist())
        splits = {split: counts[split] for split in ("train", "val", "test")}
        rows.append({"class": name, "images": len(inside), **splits})
    return rows


def findings_in_listing(source: Source) -> list[Finding]:
    """Returns what is found in the names of the images and classes, and beside them."""
    rows = classes_of(source)
    found = [*_of_names(source), *_of_counts(source, rows), *_of_splits(source, rows)]
    return [*found, *_of_groups(source), *_of_left_out(source)]


def _of_names(source: Source) -> list[Finding]:
    if not (odd := odd_names(source.classes)):
        return []
    return [
        Finding(
            "class_names",
            "names of classes that look like mistakes",
            "Two spellings of one name are two classes: rename the folder, or correct the list.",
            True,
            len(odd),
            notes=odd,
        )
    ]


def _of_counts(source: Source, rows: list[dict[str, Any]]) -> list[Finding]:
    has_test = split_to_test(source) is not None
    single = [row["class"] for row in rows if row["images"] == 1 and not has_test]
    few = [f"{r['class']} {r['images']}" for r in rows if 1 < r["images"] < FEW]
    found = []
    if len(source.classes) == 1:
        says = "A classifier needs two: put each class into its own folder, or label images of another."
        found.append(Finding("one_class", "one class only", says, True, 1, notes=source.classes))
    if single and len(source.classes) > 1:
        says = "One image cannot be learned from and tested on: add images, or leave the class out."
        found.append(Finding("single", "classes of one image", says, True, len(single), notes=single))
    if few:
        says = f"A class of fewer than {FEW} labelled images is hardly learned."
        found.append(
            Finding("few", f"classes of fewer than {FEW} images", says, False, len(few), notes=few)
        )
    return found


def _of_splits(source: Source, rows: list[dict[str, Any]]) -> list[Finding]:
    """Returns what is odd about a test split that the data has: classes that only one side has."""
    test = split_to_test(source)
    if test is None:
        return []
    learned = [split for split in ("train", "val") if split != test]
    untaught = [r["class"] for r in rows if r[test] and not any(r[s] for s in learned)]
    untested = [r["class"] for r in rows if r["images"] and not r[test]]
    found = []
    if untaught:
        says = (
            "They are tested on and can never be right: add images of them to train, or leave them out."
        )
        title = f"classes that only {test} has"
        found.append(Finding("untaught", title, says, True, len(untaught), notes=untaught))
    if untested:
        says = f"The accuracy says nothing of them: add images of them to {test}."
        title = f"classes that {test} lacks"
        found.append(Finding("untested", title, says, True, len(untested), notes=untested))
    return found


def _of_groups(source: Source) -> list[Finding]:
    """Returns the groups that the data names and that its own splits tear apart."""
    if source.groups is None or split_to_test(source) is None:
        return []
    test = (source.splits == split_to_test(source)) & (source.groups >= 0)
    rest = (source.splits != split_to_test(source)) & (source.groups >= 0)
    torn = np.intersect1d(source.groups[test], source.groups[rest])
    if not len(torn):
        return []
    order = np.argsort(source.groups, kind="stable")
    starts = np.searchsorted(source.groups[order], [torn, torn + 1])
    sets = [order[a:b].tolist() for a, b in starts.T]
    says = (
        "Images that belong together are learned from and tested on, so the accuracy is too high. clfew "
        "leaves out those beside test images; better make splits of whole groups."
    )
    return [
        Finding("torn_groups", "groups on both sides of the test split", says, True, len(sets), sets)
    ]


def _of_left_out(source: Source) -> list[Finding]:
    """Returns files that may be images and are not read, and empty folders."""
    endings: Counter[str] = Counter()
    for (_, ending), count in source.left_out.files.items():
        endings[ending] += count
    unread = {ending: count for ending, count in sorted(endings.items()) if ending in _MAY_BE_IMAGES}
    found = []
    if unread:
        says = "clfew does not read them: convert them to JPEG or PNG, or move them elsewhere."
        if any(extra_for(ending) for ending in unread):
            says = "clfew does not read them: install what the line 'read as' names, or convert them."
        notes = [f"{count:,} {ending}" for ending, count in unread.items()]
        title = "files that may be images and are not read"
        found.append(Finding("not_read", title, says, True, sum(unread.values()), notes=notes))
    if empty := source.left_out.empty:
        says = "A class without images is none."
        notes = [f"{name}/" for name in empty]
        found.append(Finding("empty", "empty folders", says, False, len(empty), notes=notes))
    return found


def classes_in_words(source: Source, image: int) -> str:
    """Returns in words the class and the split of an image, as far as it has them."""
    label = source.labels[image]
    split = source.splits[image] if (source.splits != "train").any() else ""
    return ", ".join(filter(None, (source.classes[label] if label >= 0 else "", str(split))))


def count_of_splits(source: Source) -> dict[str, int]:
    """Returns the number of images of each split that there is."""
    counts = Counter(source.splits.tolist())
    return {split: counts[split] for split in ("train", "val", "test") if counts[split]}
