"""Sources read through Hugging Face `datasets`: hf:NAME on the hub, or hf:./local on disk."""

import contextlib
import glob
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clfew.data.decode import BadImage, read_bytes
from clfew.data.groups import FIRST_RULE, with_groups
from clfew.data.layout import exact_split, list_words, split_of
from clfew.data.lists import GROUP_NAMES, LABEL_NAMES, by_its_end, likeliest, split_columns, with_columns
from clfew.data.source import RULE, SPLITS, Source, encode_labels
from clfew.errors import UserError


def open_dataset(spec: str, rule: int = RULE) -> Source:
    """Opens hf:NAME, hf:NAME:CONFIG or hf:./folder (parquet, arrow, saved data set, image folder), where
    the columns of images and labels may be named, as in hf:NAME:path=image:label=species.

    A local folder is read without any network access. rule: see `source.RULE`. Raises UserError.
    """
    named, *columns = split_columns(spec)
    name, config = named.removeprefix("hf:"), ""
    if not Path(name).expanduser().exists():
        name, _, config = name.partition(":")
    path = Path(name).expanduser()
    is_local = path.exists()
    if not is_local and name.startswith((".", "/", "~")):
        raise UserError(f"There is no folder or file {name}.", "check the spelling of the path.")
    import datasets

    try:
        with _quiet(), _offline() if is_local else contextlib.nullcontext():
            loaded = _load_local(path, rule) if is_local else datasets.load_dataset(name, config or None)
    except Exception as error:  # `datasets` raises whatever its readers and its network layer raise.
        cause = error.__cause__ or error
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise UserError(
            f"{spec} cannot be opened: {reason}",
            "a local folder is named hf:./folder; a name on the hub needs a network connection.",
        ) from None
    if not isinstance(loaded, dict):
        loaded = {"train": loaded}
    folders = _folders_of(path) if is_local else [Path(datasets.config.HF_CACHE_HOME)]
    full = with_columns(f"hf:{path.resolve()}", *columns) if is_local else spec
    return _as_source(full, loaded, folders, columns, rule)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside this context, `datasets` shows no progress bars, and nobody is told of what is loaded."""
    import datasets
    import huggingface_hub.constants

    had_bars = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with _switched_on([(huggingface_hub.constants, "HF_HUB_DISABLE_TELEMETRY")]):
            yield
    finally:
        if had_bars:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Inside this context, `datasets` uses no network. The environment, which decides this for the whole
    process and for other libraries, is left alone."""
    import datasets.config
    import huggingface_hub.constants

    modules, names = (
        (datasets.config, huggingface_hub.constants),
        ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"),
    )
    with _switched_on([(m, name) for m in modules for name in names if hasattr(m, name)]):
        yield


@contextlib.contextmanager
def _switched_on(switches: list[tuple[Any, str]]) -> Iterator[None]:
    """Inside this context, these attributes of modules are True."""
    before = [getattr(module, name) for module, name in switches]
    for module, name in switches:
        setattr(module, name, True)
    try:
        yield
    finally:
        for (module, name), value in zip(switches, before, strict=True):
            setattr(module, name, value)


def _is_saved(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in ("dataset_dict.json", "state.json"))


def _folders_of(path: Path) -> list[Path] | None:
    """Returns where the files of images lie that the rows of a local data set may name. None for a data
    set that was saved on this machine: it names the images where they were when it was saved."""
    return None if _is_saved(path) else [path if path.is_dir() else path.parent]


def _require_inside(file: Path, folders: list[Path] | None) -> Path:
    """Raises BadImage for a file that a data set names and that does not belong to it: who made it could
    have named any file of this machine."""
    resolved = file.resolve()
    if folders is not None and not any(resolved.is_relative_to(each.resolve()) for each in folders):
        raise BadImage("names a file outside the data set")
    return file


def _load_local(path: Path, rule: int) -> Any:
    import datasets

    if _is_saved(path):
        return datasets.load_from_disk(str(path))
    for kind in ("parquet", "arrow"):
        files = [path] if path.suffix == f".{kind}" else sorted(path.rglob(f"*.{kind}"))
        if files:
            return datasets.load_dataset(kind, data_files=_by_split(files, path, rule))
    return datasets.load_dataset("imagefolder", data_dir=str(path))


def _by_split(files: list[Path], root: Path, rule: int) -> dict[str, list[str]]:
    """Groups files by the split that their name has a word for (train-00000-of-00002.parquet,
    digits_test.parquet) or that their folder below `root` is named after; all others are for training.

    Rules before 3 know the word at the start of a name only.
    """
    splits: dict[str, list[str]] = {}
    for file in files:
        if rule < 3:
            words = [file.stem.split("-")[0].lower(), file.parent.name.lower()]
            split = next((SPLITS[word] for word in words if word in SPLITS), "train")
        else:
            of_folder = exact_split if file.parent in (root, root.parent) else split_of
            split = split_of(file.stem) or of_folder(file.parent.name) or "train"
        # `datasets` takes names for patterns.
        splits.setdefault(split, []).append(glob.escape(str(file)))
    return splits


def _as_source(
    spec: str,
    loaded: dict[str, Any],
    folders: list[Path] | None,
    columns: list[str | None],
    rule: int,
) -> Source:
    """folders: see `_folders_of`. columns: those of images and labels, where the user names them."""
    import datasets

    taken = {}
    tables, identities, class_names, splits = [], [], [], []
    groups: list[str] = []
    digest = hashlib.blake2b(digest_size=16)
    for split, table in loaded.items():
        features = table.features
        _require_columns(spec, columns, features)
        image = columns[0] or _image_column(spec, features)
        label = columns[1] or _label_column(spec, features, rule)
        taken = {"images": image, "labels": label}
        digest.update(f"{split}\0{table._fingerprint}\0{len(table)}\0".encode())
        of_name = exact_split(split) or split_of(split) if rule >= 3 else SPLITS.get(split)
        splits += [of_name or "train"] * len(table)
        identities += [f"{split}/{row:08d}" for row in range(len(table))]
        class_names += _label_names(spec, table, label)
        others = [column for column in features if column not in (image, label)]
        groups += _group_names(spec, table, others if rule >= FIRST_RULE else [])
        table = table.select_columns(image)
        if isinstance(features[image], datasets.Image):
            table = table.cast_column(image, datasets.Image(decode=False))
        tables.append(table)
    starts = np.cumsum([0, *map(len, tables)])

    def content(index: int) -> bytes:
        which = int(np.searchsorted(starts, index, side="right")) - 1
        (cell,) = tables[which][index - int(starts[which])].values()
        if isinstance(cell, bytes):
            return cell
        if isinstance(cell, dict) and cell.get("bytes") is not None:
            return cell["bytes"]
        if not isinstance(cell, dict) or cell.get("path") is None:
            raise BadImage("no image in this row")
        return read_bytes(_require_inside(Path(cell["path"]), folders))

    if not identities:
        raise UserError(f"{spec} has no rows.", "name a data set with images.")
    labels, classes = encode_labels(class_names)
    said = ", ".join(f"{name} from '{column}'" for name, column in taken.items() if column)
    source = Source(
        spec,
        identities,
        labels,
        classes,
        np.array(splits),
        content,
        digest.hexdigest(),
        reading=list_words("data set", class_names, splits, said),
    )
    return with_groups(source, groups, "from the data set") if any(groups) else source


def _group_names(spec: str, table: Any, columns: list[str]) -> list[str]:
    """Returns the group of each row, "" for none, from the one of these columns that is called so."""
    group = likeliest(spec, "group", GROUP_NAMES, columns)
    if group is None:
        return [""] * len(table)
    return ["" if each is None else str(each) for each in table[group]]


def _require_columns(spec: str, columns: list[str | None], features: Any) -> None:
    for column in columns:
        if column is not None and column not in features:
            raise UserError(
                f"{spec} has no column '{column}' (its columns are {', '.join(features)}).",
                "check the spelling.",
            )


def _image_column(spec: str, features: Any) -> str:
    """Returns the column of images: of the type Image, else a struct of bytes and path, as pandas and
    polars write them, else of bytes. Raises UserError if there is none."""
    import datasets

    def is_bytes(feature: Any) -> bool:
        return getattr(feature, "dtype", "") in ("binary", "large_binary")

    kinds = (
        lambda feature: isinstance(feature, datasets.Image),
        lambda feature: isinstance(feature, dict) and is_bytes(feature.get("bytes")),
        is_bytes,
    )
    for is_kind in kinds:
        for column, feature in features.items():
            if is_kind(feature):
                return column
    raise UserError(
        f"{spec} has no column of images (its columns are {', '.join(features)}).",
        "clfew needs one column of the type datasets.Image, or of the bytes of image files.",
    )


def _label_column(spec: str, features: Any, rule: int) -> str | None:
    """Returns the column of labels, or None: a ClassLabel, if possible one named label(s) or class, else
    a column whose name says so (only label, labels and class in rules before 3). Raises UserError if it
    is not clear."""
    import datasets

    typed = [c for c, f in features.items() if isinstance(f, datasets.ClassLabel)]
    named = [c for c in ("label", "labels", "class") if c in features]
    # CIFAR-100 and the like have several ClassLabel columns: fine_label comes before coarse_label.
    found = next(iter([*(c for c in typed if c in named), *typed, *named]), None)
    if found is None and rule >= 3:
        plain = (datasets.Value, list)
        others = [c for c, f in features.items() if isinstance(f, plain) or hasattr(f, "feature")]
        # The cells of a data set are not read for it: they may be large.
        return likeliest(spec, "label", LABEL_NAMES, others) or by_its_end(
            LABEL_NAMES, others, lambda column: {column}
        )
    return found


def _label_names(spec: str, table: Any, column: str | None) -> list[str]:
    if column is None:
        return [""] * len(table)
    feature = table.features[column]
    values = table[column]
    if isinstance(feature, list) or hasattr(feature, "feature"):
        feature = feature[0] if isinstance(feature, list) else feature.feature
        several = next((v for v in values if v is not None and len(v) > 1), None)
        if several is not None:
            raise UserError(
                f"{spec} gives an image {len(several)} labels in the column '{column}'.",
                "an image has one label; name another column: --label-column NAME",
            )
        values = [v[0] if v else None for v in values]
    if hasattr(feature, "int2str"):
        return ["" if v is None or v < 0 else feature.int2str(v) for v in values]
    return ["" if v is None or v == -1 else str(v) for v in values]
