"""How a folder of images is understood: which of its folders are splits, which are classes.

Names alone decide, so that it can be told without opening a file, and is the same on every machine.
"""

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clfew.errors import UserError

SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""The words for splits, those that `datasets` knows."""

UNLABELLED = ("unlabeled", "unlabelled")
LABELLED_FOLDERS = ("labeled", "labelled")
"""clfew's own words for folders of images without labels and of class folders. The latter are looked for
too when no source is named."""

IMAGE_WORDS = ("image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "jpg", "jpeg")
"""Names of folders that say nothing of what their images show."""

_DATE = re.compile(r"(19|20)\d\d([-_. ]?\d\d){0,2}")
_DELIMITERS = "-._ 0-9"
_PATTERNS = {
    split: re.compile(rf"(^|[{_DELIMITERS}])({'|'.join(words)})($|[{_DELIMITERS}])")
    for split, words in SPLIT_WORDS.items()
}


def split_of(name: str) -> str | None:
    """Returns "train", "val" or "test" if a name contains a word for it between the delimiters that
    `datasets` knows (train2017, Test Set, digits_test), None for other names."""
    return next((split for split, found in _PATTERNS.items() if found.search(name.lower())), None)


def exact_split(name: str) -> str | None:
    """Returns "train", "val" or "test" if a name is a word for it, in any capitals."""
    return next((split for split, words in SPLIT_WORDS.items() if name.lower() in words), None)


def splits_in(file: Path, cells: list[str]) -> list[str]:
    """Returns "train", "val" or "test" for each cell of a list's column of splits, "train" for an empty
    one. file: the list. Raises UserError for another word."""
    names = [cell.strip() for cell in cells]
    splits = [exact_split(name) or split_of(name) or "" if name else "train" for name in names]
    if "" in splits:
        raise UserError(
            f"{file} has the split '{names[splits.index('')]}'.",
            "the column split must hold train, val or test.",
        )
    return splits


@dataclass(slots=True)
class _Folder:
    """What lies in a folder: the number of images in it itself, and its folders below which there are
    others."""

    loose: int = 0
    below: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Layout:
    """How folders are understood.

    root: the folder, relative to the source and with a slash at its end, whose folders are classes or
    splits; "" for the source itself. splits: the split of each folder of the root that is one.
    is_beside: whether the other folders of the root are classes. inner: whether splits lie within the
    classes (cat/train/, cat/test/). without_classes: the folders of splits whose only folder is no class
    (test/images/).
    """

    root: str = ""
    splits: dict[str, str] = field(default_factory=dict)
    is_beside: bool = True
    inner: bool = False
    without_classes: frozenset[str] = frozenset()

    def of(self, name: str) -> tuple[str, str]:
        """Returns the split and the class, "" for none, of an image by its relative name."""
        first, second = _first_two(name, self.root)
        if not first:
            return "train", ""
        if self.inner:
            return split_of(second) or "train", first
        if first in self.splits:
            has_none = first in self.without_classes or second.lower() in UNLABELLED
            return self.splits[first], "" if has_none else second
        is_class = self.is_beside and first.lower() not in UNLABELLED
        return "train", first if is_class else ""


def folder_of(name: str) -> str:
    """Returns the folder in which an image lies, with a slash at its end, "" for the source itself."""
    folder, slash, _ = name.rpartition("/")
    return folder + slash


def _first_two(name: str, root: str) -> tuple[str, str]:
    """Returns the first two of the folders below the root in which an image lies, "" where there is
    none."""
    if not name.startswith(root):
        return "", ""
    first, slash, rest = name[len(root) :].partition("/")
    second, deeper, _ = rest.partition("/")
    return sys.intern(first) if slash else "", sys.intern(second) if deeper else ""


def understand(names: Iterable[str]) -> Layout:
    """Returns how a folder is understood, by the relative names of the images below it.

    A folder called train, val or test is a split if class folders lie below it, or if all folders are
    called so. Every other folder is a class, however deep its images lie; but not one for unlabelled
    images, and none beside splits. A loose folder called test or val beside at least two classes holds
    images without labels.
    """
    # Each folder once: there are many fewer of them than images.
    counts = Counter(folder_of(name) for name in names)
    root = _root_of(counts)
    folders = _folders(counts, root)
    named = {name: split_of(name) for name in folders}
    exact = {name: split for name in folders if (split := exact_split(name))}
    plain = [n for n in folders if n not in exact and n.lower() not in (*UNLABELLED, *LABELLED_FOLDERS)]
    if folders and _are_albums(folders):
        return Layout(root, is_beside=False)
    if _is_inner(folders):
        return Layout(root, inner=True)
    if not plain and any(n.lower() in LABELLED_FOLDERS and folders[n].below for n in folders):
        labelled = {n: "train" for n in folders if n.lower() in LABELLED_FOLDERS}
        return _of_splits(root, labelled | exact, folders)
    others = {n: s for n, s in named.items() if n.lower() not in (*UNLABELLED, *LABELLED_FOLDERS)}
    if others and None not in others.values() and _are_splits(others, folders):
        return _of_splits(root, {n: s for n, s in others.items() if s}, folders)
    if any(folders[name].below for name in exact) and not _is_thing(exact, plain, folders):
        return _of_splits(root, exact, folders)
    loose = {n: s for n, s in exact.items() if not folders[n].below}
    if "test" not in loose.values():
        loose = {n: s for n, s in loose.items() if s != "train"}
    return Layout(root, loose if len(plain) >= 2 else {})


def _of_splits(root: str, splits: dict[str, str], folders: dict[str, _Folder]) -> Layout:
    """Returns a layout of splits. The only folder of a split is no class if it is called images, or if
    the other splits have several classes and it is none of them (test/unknown/)."""
    without = set()
    for name in splits:
        inner = folders[name].below
        if len(inner) == 1:
            (only,) = inner
            others = {each for n in splits if n != name for each in folders[n].below}
            if only.lower() in IMAGE_WORDS or (len(others) > 1 and only not in others):
                without.add(name)
    return Layout(root, splits, is_beside=False, without_classes=frozenset(without))


MOST_NAMED = 6
"""The most classes that are named when a source is opened."""


def class_words(counts: Mapping[str, int], notes: Mapping[str, str] | None = None) -> str:
    """Returns the number of classes in words, with the first few by name. counts: the number of images
    of each. notes: what is said of some."""
    each = [
        f"{name} {count:,}{(notes or {}).get(name, '')}"
        for name, count in sorted(counts.items())[:MOST_NAMED]
    ]
    more = f" and {len(counts) - MOST_NAMED} more" if len(counts) > MOST_NAMED else ""
    return f"{len(counts)} class{'es' if len(counts) != 1 else ''} ({', '.join(each)}{more})"


def split_words(
    splits: list[str], class_names: list[str], folders: Mapping[str, str] | None = None
) -> str:
    """Returns in words how many images each split has and which is tested on, if it is not test.
    class_names: of each image, "" for no label. folders: the split of each folder that is one."""
    counts = Counter(splits)
    labelled = Counter(split for split, name in zip(splits, class_names, strict=True) if name)
    if set(counts) <= {"train"}:
        return ", no test split: a fifth is held out" if labelled else ""
    where = defaultdict(list)
    for name, split in (folders or {}).items():
        where[split].append(f"{name}/")
    named = [
        f"{split} {counts[split]:,}{' in ' + ' and '.join(where[split]) if where[split] else ''}"
        for split in ("train", "val", "test")
        if counts[split]
    ]
    said = f"; splits: {', '.join(named)}"
    if not labelled or labelled["test"]:
        return said
    why = "test has no labels: " if counts["test"] else "no test split: "
    return f"{said}; {why}{'val is tested on' if labelled['val'] else 'a fifth of train is held out'}"


def list_words(kind: str, class_names: list[str], splits: list[str], columns: str) -> str:
    """Returns in words how a list or data set was understood. kind: "list" or "data set". class_names,
    splits: of each image. columns: those that were taken, in words."""
    counts = Counter(class_names)
    unlabelled = counts.pop("", 0)
    said = f"a {kind} of {len(class_names):,} images{f' ({columns})' if columns else ''}"
    said += f": {class_words(counts)}" if counts else ", without labels"
    if counts and unlabelled:
        said += f", {unlabelled:,} without a label"
    return said + split_words(splits, class_names)


def _are_albums(folders: dict[str, _Folder]) -> bool:
    """Returns whether all folders are called after years, months or days and hold folders alone: how
    cameras and photo managers sort, which says nothing of what the images show."""
    return all(_DATE.fullmatch(name) and not folder.loose for name, folder in folders.items())


def _are_splits(named: dict[str, str | None], folders: dict[str, _Folder]) -> bool:
    """Returns whether folders that are all called like splits are splits."""
    return any(s in ("train", "test") for s in named.values()) or any(folders[n].below for n in named)


def _is_thing(exact: dict[str, str], plain: list[str], folders: dict[str, _Folder]) -> bool:
    """Returns whether the only folder called like a split is a class like those beside it: its images
    lie as deep as theirs, or in one folder."""
    if len(exact) > 1 or len(plain) < 2:
        return False
    (name,) = exact
    return len(folders[name].below) == 1 or all(folders[each].below for each in plain)


def _is_inner(folders: dict[str, _Folder]) -> bool:
    """Returns whether every folder holds splits and nothing else, one of them to train on."""
    inner = {split_of(name) for folder in folders.values() for name in folder.below}
    is_whole = all(folder.below and not folder.loose for folder in folders.values())
    return is_whole and len(folders) > 1 and None not in inner and "train" in inner and len(inner) > 1


def _root_of(counts: Counter[str]) -> str:
    """Returns the folder in which there is more than one folder, where those above it hold one each and
    no image (archive/photos/cat/, archive/photos/dog/); "" where that is the source itself."""
    root = ""
    while len(folders := _folders(counts, root)) == 1 and root not in counts:
        ((name, folder),) = folders.items()
        if folder.loose or exact_split(name) or name.lower() in UNLABELLED:
            return ""
        root += f"{name}/"
    return root if len(folders) > 1 else ""


def _folders(counts: Counter[str], root: str) -> dict[str, _Folder]:
    """Returns the folders of the root below which there are images. counts: the number of images in each
    folder (see `folder_of`)."""
    folders: dict[str, _Folder] = defaultdict(_Folder)
    for name, count in counts.items():
        first, second = _first_two(name, root)
        if first and second:
            folders[first].below.add(second)
        elif first:
            folders[first].loose += count
    return dict(folders)
