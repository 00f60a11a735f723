"""Opens a folder as a source: images anywhere below it, with class folders and splits."""

import os
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from clfew.data.decode import EXTENSIONS, read_bytes
from clfew.data.groups import FIRST_RULE, with_groups
from clfew.data.image_files import walk_images
from clfew.data.layout import (
    MOST_NAMED,
    Layout,
    class_words,
    folder_of,
    list_words,
    split_words,
    understand,
)
from clfew.data.lists import Listed, ListFile, columns_of, read_list
from clfew.data.source import SPLITS, Source, encode_labels, fingerprint_of
from clfew.errors import UserError

Metadata = list[tuple[str, Listed, dict[str, dict[str, str]]]]
"""Of each metadata file its name, what it lists, and the row of each image by the image's name."""


def open_folder(folder: Path, rule: int) -> Source:
    """Opens a folder of images. rule: see `source.RULE`. Raises UserError if it holds none."""
    images, left_out = walk_images(folder)
    if not images:
        found = f"only {left_out.words()}" if left_out.words() else "it is empty"
        raise UserError(
            f"There are no images in {folder}: {found}.",
            f"clfew reads {', '.join(sorted(e[1:] for e in EXTENSIONS))} files, in subfolders too.",
        )
    if rule < 3:
        splits, class_names = read_before(images)
        reading, metadata = "", []
    else:
        layout = understand(images)
        one_of_each = {folder_of(name): name for name in images}
        read = {folder: layout.of(name) for folder, name in one_of_each.items()}
        splits = [read[folder_of(name)][0] for name in images]
        class_names = [read[folder_of(name)][1] for name in images]
        reading = _words(layout, images, splits, class_names)
        metadata = _metadata(folder, images)
        if (described := _described(metadata, images, splits)) is not None:
            class_names, reading = described
    labels, classes = encode_labels(class_names)
    source = Source(
        spec=str(folder.resolve()),
        identities=images,
        labels=labels,
        classes=classes,
        splits=np.array(splits),
        content=lambda i: read_bytes(folder / images[i]),
        path_of=lambda i: Path(os.path.abspath(folder)) / images[i],
        fingerprint=fingerprint_of((name, os.path.join(folder, name)) for name in images),
        left_out=left_out,
        reading=reading,
        rule=rule,
    )
    return _grouped(source, metadata) if rule >= FIRST_RULE else source


def _metadata(folder: Path, images: list[str]) -> Metadata:
    """Reads each metadata.csv or metadata.jsonl in the folder or in one at its first level, as
    `datasets` has them."""
    found = []
    for place in ("", *dict.fromkeys(f"{name.split('/')[0]}/" for name in images if "/" in name)):
        for file in ("metadata.csv", "metadata.jsonl"):
            named = ListFile(folder / place / file, path_column="file_name")
            if not named.file.is_file() or "file_name" not in columns_of(named.file):
                continue
            listed = read_list(named)
            names = [row["path"].replace("\\", "/").removeprefix("./") for row in listed.rows]
            of_images = {place + name: row for name, row in zip(names, listed.rows, strict=True)}
            found.append((place + file, listed, of_images))
    return found


def _grouped(source: Source, metadata: Metadata) -> Source:
    """Returns the source with the groups in metadata files, whether these have labels or not."""
    groups: dict[str, str] = {}
    for _, _, of_images in metadata:
        groups |= {name: row["group"].strip() for name, row in of_images.items() if "group" in row}
    if not any(groups.values()):
        return source
    names = [groups.get(name, "") for name in source.identities]
    files = " and ".join([file for file, listed, _ in metadata if "group" in listed.rows[0]][:3])
    return with_groups(source, names, f"from {files}") if any(names) else source


def _described(metadata: Metadata, images: list[str], splits: list[str]) -> tuple[list[str], str] | None:
    """Returns the class of each image, and how it was read in words, where metadata files have labels;
    None where none has."""
    names: dict[str, str] = {}
    files, columns = [], ""
    for file, listed, of_images in metadata:
        if "label" in listed.rows[0]:
            files.append(file)
            columns = listed.reading
            names |= {name: row["label"].strip() for name, row in of_images.items()}
    if not files:
        return None
    missing = len(set(names) - set(images))
    class_names = [names.get(name, "") for name in images]
    said = list_words("folder", class_names, splits, f"labels from {' and '.join(files[:3])}: {columns}")
    return class_names, said + (f"; {missing:,} of the images listed do not exist" if missing else "")


def _words(layout: Layout, images: list[str], splits: list[str], class_names: list[str]) -> str:
    """Returns in words how a folder was understood."""
    counts = Counter(class_names)
    unlabelled = counts.pop("", 0)
    within = f" in {layout.root}" if layout.root else ""
    if not counts:
        said = f"images without class folders: {unlabelled:,}"
    else:
        deeper = _subfolders(sorted(counts)[:MOST_NAMED], images, class_names)
        said = f"class folders{within}: {class_words(counts, deeper)}"
        if unlabelled:
            said += f", {unlabelled:,} image{'s' if unlabelled > 1 else ''} without a label"
    return said + split_words(splits, class_names, layout.splits)


def _subfolders(named: list[str], images: list[str], class_names: list[str]) -> dict[str, str]:
    """Returns for each of some classes whose images lie in folders of its own, in words, in how many."""
    folders = defaultdict(set)
    for image, name in zip(images, class_names, strict=True):
        if name in named:
            parent = os.path.dirname(image)
            if os.path.basename(parent) != name:
                folders[name].add(parent)
    return {n: f" in {len(f)} subfolder{'s' if len(f) > 1 else ''}" for n, f in folders.items()}


def read_before(images: list[str]) -> tuple[list[str], list[str]]:
    """Returns splits and class names as rules 1 and 2 have them: there are splits if images
    lie in a folder train/ or test/; a class is a folder at the first level, or at the first level within
    a split, that holds images itself."""
    # Names are split into parts anew for each use, and each class name is kept once: for millions of
    # names the parts would take gigabytes.
    has_splits = any(p[0] in ("train", "test") and len(p) > 1 for p in map(_parts, images))
    splits, class_names = [], []
    for p in map(_parts, images):
        in_split = has_splits and p[0] in SPLITS and len(p) > 1
        splits.append(SPLITS[p[0]] if in_split else "train")
        below = p[1:] if in_split else p
        # If there are splits, folders beside them (unlabeled/, extra/) are not classes.
        in_class = len(below) > 1 and (in_split or not has_splits)
        class_names.append(sys.intern(below[0]) if in_class else "")
    # A first-level folder is a class if it holds images itself, not only folders of images.
    class_folders = {
        name
        for p, name in zip(map(_parts, images), class_names, strict=True)
        if name and len(p) == (3 if has_splits else 2)
    }
    return splits, [name if name in class_folders else "" for name in class_names]


def _parts(name: str) -> list[str]:
    return name.split("/")
