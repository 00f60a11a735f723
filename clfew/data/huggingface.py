"""Sources read through Hugging Face `datasets`: hf:NAME on the hub, or hf:./local on disk."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clfew.data.decode import BadImage, read_bytes
from clfew.data.source import SPLITS, Source, encode_labels
from clfew.errors import UserError


def open_dataset(spec: str) -> Source:
    """Opens hf:NAME, hf:NAME:CONFIG or hf:./folder (parquet, arrow, saved data set, image folder).

    A local folder is read without any network access. Raises UserError.
    """
    name, config = spec.removeprefix("hf:"), ""
    if not Path(name).expanduser().exists():
        name, _, config = name.partition(":")
    path = Path(name).expanduser()
    is_local = path.exists()
    if not is_local and name.startswith((".", "/", "~")):
        raise UserError(f"There is no folder or file {name}.", "check the spelling of the path.")
    import datasets

    try:
        with _quiet(), _offline() if is_local else contextlib.nullcontext():
            loaded = _load_local(path) if is_local else datasets.load_dataset(name, config or None)
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
    return _as_source(f"hf:{path.resolve()}" if is_local else spec, loaded, folders)


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


def _load_local(path: Path) -> Any:
    import datasets

    if _is_saved(path):
        return datasets.load_from_disk(str(path))
    for kind in ("parquet", "arrow"):
        files = [path] if path.suffix == f".{kind}" else sorted(path.rglob(f"*.{kind}"))
        if files:
            return datasets.load_dataset(kind, data_files=_by_split(files))
    return datasets.load_dataset("imagefolder", data_dir=str(path))


def _by_split(files: list[Path]) -> dict[str, list[str]]:
    """Groups files by the split that their name starts with (train-00000-of-00002.parquet) or that their
    folder is named after; all others are for training."""
    splits: dict[str, list[str]] = {}
    for file in files:
        words = [file.stem.split("-")[0].lower(), file.parent.name.lower()]
        split = next((SPLITS[word] for word in words if word in SPLITS), "train")
        splits.setdefault(split, []).append(str(file))
    return splits


def _as_source(spec: str, loaded: dict[str, Any], folders: list[Path] | None) -> Source:
    """folders: see `_folders_of`."""
    import datasets

    tables, identities, class_names, splits = [], [], [], []
    digest = hashlib.blake2b(digest_size=16)
    for split, table in loaded.items():
        features = table.features
        image = next((c for c, f in features.items() if isinstance(f, datasets.Image)), None)
        if image is None:
            raise UserError(
                f"{spec} has no column of images (its columns are {', '.join(features)}).",
                "clfew needs one column of the type datasets.Image.",
            )
        label = _label_column(features)
        digest.update(f"{split}\0{table._fingerprint}\0{len(table)}\0".encode())
        splits += [SPLITS.get(split, "train")] * len(table)
        identities += [f"{split}/{row:08d}" for row in range(len(table))]
        class_names += _label_names(table, label)
        tables.append(table.select_columns(image).cast_column(image, datasets.Image(decode=False)))
    starts = np.cumsum([0, *map(len, tables)])

    def content(index: int) -> bytes:
        which = int(np.searchsorted(starts, index, side="right")) - 1
        (cell,) = tables[which][index - int(starts[which])].values()
        if cell is None:
            raise BadImage("no image in this row")
        if cell["bytes"] is not None:
            return cell["bytes"]
        if cell["path"] is None:
            raise BadImage("no image in this row")
        return read_bytes(_require_inside(Path(cell["path"]), folders))

    if not identities:
        raise UserError(f"{spec} has no rows.", "name a data set with images.")
    labels, classes = encode_labels(class_names)
    return Source(spec, identities, labels, classes, np.array(splits), content, digest.hexdigest())


def _label_column(features: Any) -> str | None:
    """Returns the column of labels, or None: a ClassLabel, if possible one named label(s) or class, else
    another column of such a name."""
    import datasets

    typed = [c for c, f in features.items() if isinstance(f, datasets.ClassLabel)]
    named = [c for c in ("label", "labels", "class") if c in features]
    # CIFAR-100 and the like have several ClassLabel columns: fine_label comes before coarse_label.
    return next(iter([*(c for c in typed if c in named), *typed, *named]), None)


def _label_names(table: Any, column: str | None) -> list[str]:
    if column is None:
        return [""] * len(table)
    feature = table.features[column]
    values = table[column]
    if hasattr(feature, "int2str"):
        return ["" if v is None or v < 0 else feature.int2str(v) for v in values]
    return ["" if v is None else str(v) for v in values]
