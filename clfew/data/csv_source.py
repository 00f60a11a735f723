"""Opens a list of images as a source: a CSV or its kin (see `lists`)."""

import os
from pathlib import Path

import numpy as np

from clfew.data.decode import EXTENSIONS, read_bytes
from clfew.data.groups import with_groups
from clfew.data.layout import list_words, splits_in
from clfew.data.lists import parse, read_list
from clfew.data.source import Source, encode_labels, fingerprint_of
from clfew.errors import UserError


def open_csv(spec: str) -> Source:
    """Opens a list of images, FILE or FILE:path=COLUMN:label=COLUMN. Raises UserError as `read_list`
    does, and if an image does not exist or a split is unknown."""
    named_list = parse(spec)
    path = named_list.file
    listed = read_list(named_list)
    rows, folder = listed.rows, path.parent
    named = [row["path"] for row in rows]
    found = [file_named(folder, name) for name in named]
    missing = [name for name, each in zip(named, found, strict=True) if each is None]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(rows)} images in {path} do not exist (first: {missing[0]}).",
            f"paths are relative to the list's own folder, {folder.resolve()}.",
        )
    names = [each for each in found if each is not None]
    files = [folder / name for name in names]  # An absolute name stays as it is.
    splits = splits_in(path, [row.get("split", "") for row in rows])
    class_names = [row.get("label", "").strip() for row in rows]
    labels, classes = encode_labels(class_names)
    source = Source(
        spec=named_list.spec(),
        identities=names,
        labels=labels,
        classes=classes,
        splits=np.array(splits),
        content=lambda i: read_bytes(files[i]),
        path_of=lambda i: Path(os.path.abspath(files[i])),
        # It includes the splits: moving an image to the test split must change the fingerprint.
        fingerprint=fingerprint_of(
            (f"{row.get('split', '') or 'train'} {name}", file)
            for row, name, file in zip(rows, names, files, strict=True)
        ),
        reading=list_words("list", class_names, splits, listed.reading),
    )
    groups = [row.get("group", "").strip() for row in rows]
    return with_groups(source, groups, "from the list") if any(groups) else source


def file_named(folder: Path, name: str) -> str | None:
    """Returns the name of the image file that a list means, relative to its folder: as it stands, with
    slashes for backslashes, or with the ending that it left out; None if there is none."""
    # os.path.isfile returns False for a name that is too long; pathlib raises.
    for each in dict.fromkeys((name, name.replace("\\", "/"))):
        if os.path.isfile(folder / each):
            return each
        for ending in sorted(EXTENSIONS):
            for written in (ending, ending.upper()):
                if os.path.isfile(folder / (each + written)):
                    return each + written
    return None
