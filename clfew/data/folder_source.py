"""Opens a folder as a source: images anywhere below it, with class folders and splits."""

import os
import sys
from pathlib import Path

import numpy as np

from clfew.data.decode import EXTENSIONS, read_bytes
from clfew.data.image_files import walk_images
from clfew.data.source import SPLITS, Source, encode_labels, fingerprint_of
from clfew.errors import UserError


def open_folder(folder: Path) -> Source:
    """Opens a folder of images. Raises UserError if it holds none.

    It has splits if images lie in a folder train/ or test/. A class is a folder at the first level, or
    at the first level within a split, that holds images itself.
    """
    images, others = walk_images(folder)
    if not images:
        found = f"only {others} other files" if others else "it is empty"
        raise UserError(
            f"There are no images in {folder} ({found}).",
            f"clfew reads {', '.join(sorted(e[1:] for e in EXTENSIONS))} files, in subfolders too.",
        )
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
    class_names = [name if name in class_folders else "" for name in class_names]
    labels, classes = encode_labels(class_names)
    return Source(
        spec=str(folder.resolve()),
        identities=images,
        labels=labels,
        classes=classes,
        splits=np.array(splits),
        content=lambda i: read_bytes(folder / images[i]),
        fingerprint=fingerprint_of((name, os.path.join(folder, name)) for name in images),
        ignored=others,
    )


def _parts(name: str) -> list[str]:
    return name.split("/")
