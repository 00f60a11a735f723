"""hf: sources from disk. No test here may use the network."""

import numpy as np
import pytest

from clfew.data.huggingface import _by_split
from clfew.data.sources import open_source
from clfew.errors import UserError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    # Also restores what open_dataset sets for a local folder.
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


@pytest.fixture
def original(tmp_path, put):
    """A folder with splits and classes, and its images as Hugging Face data sets."""
    root = tmp_path / "original"
    tables = {}
    for split, numbers in (("train", range(4)), ("test", range(4, 6))):
        paths = [put(root / split / ("cat", "dog")[n % 2] / f"{n}.png", n % 2) for n in numbers]
        paths.sort()
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
        )
        rows = {
            "image": [{"bytes": p.read_bytes(), "path": None} for p in paths],
            "label": [("cat", "dog").index(p.parent.name) for p in paths],
        }
        tables[split] = datasets.Dataset.from_dict(rows, features=features)
    return root, tables


def as_parquet(root, tables):
    for split, table in tables.items():
        (root / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")


def as_saved(root, tables):
    datasets.DatasetDict(tables).save_to_disk(root)


def as_image_folder(root, tables):
    for split, table in tables.items():
        encoded = table.cast_column("image", datasets.Image(decode=False))
        for i, row in enumerate(encoded):
            file = root / split / ("cat", "dog")[row["label"]] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(row["image"]["bytes"])


@pytest.mark.parametrize("write", [as_parquet, as_saved, as_image_folder])
def test_local_data_sets_hold_the_images_labels_and_splits_of_the_folder(tmp_path, original, write):
    folder, tables = original
    write(tmp_path / "copy", tables)
    source, expected = open_source(f"hf:{tmp_path / 'copy'}"), open_source(str(folder))
    assert source.classes == expected.classes == ["cat", "dog"]
    assert len(set(source.identities)) == len(source) == len(expected) == 6

    def contents(a):
        return sorted((str(a.splits[i]), int(a.labels[i]), a.content(i)) for i in range(len(a)))

    assert contents(source) == contents(expected)
    assert source.spec == f"hf:{(tmp_path / 'copy').resolve()}"


def test_a_relative_name_is_a_folder_on_disk(tmp_path, original, monkeypatch):
    as_parquet(tmp_path / "copy", original[1])
    monkeypatch.chdir(tmp_path)
    assert len(open_source("hf:./copy")) == 6
    assert len(open_source("hf:./copy/data/test-00000-of-00001.parquet")) == 2


def test_the_fingerprint_changes_with_the_data(tmp_path, original):
    tables = original[1]
    prints = []
    for name, rows in (("a", 4), ("b", 3)):
        as_parquet(tmp_path / name, {"train": tables["train"].select(range(rows))})
        source = open_source(f"hf:{tmp_path / name}")
        prints.append(source.fingerprint)
        assert open_source(f"hf:{tmp_path / name}").fingerprint == source.fingerprint
    assert prints[0] != prints[1]


def test_unlabelled_rows_and_columns_of_names(tmp_path, original):
    table = original[1]["train"]
    bare = table.remove_columns("label")
    as_parquet(tmp_path / "bare", {"train": bare})
    assert not open_source(f"hf:{tmp_path / 'bare'}").is_labelled
    as_parquet(tmp_path / "named", {"train": bare.add_column("label", ["b", None, "a", "b"])})
    source = open_source(f"hf:{tmp_path / 'named'}")
    assert source.classes == ["a", "b"] and source.labels.tolist() == [1, -1, 0, 1]


def test_a_label_of_minus_one_is_no_label(tmp_path, original):
    table = original[1]["train"]
    hidden = table.map(lambda row, i: {"label": -1 if i == 0 else row["label"]}, with_indices=True)
    as_parquet(tmp_path / "copy", {"train": hidden})
    source = open_source(f"hf:{tmp_path / 'copy'}")
    assert source.labels[0] == -1 and (source.labels[1:] >= 0).all()


def test_a_data_set_without_images_is_a_user_error(tmp_path):
    (tmp_path / "copy").mkdir()
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "copy" / "train.parquet")
    with pytest.raises(UserError, match="no column of images"):
        open_source(f"hf:{tmp_path / 'copy'}")


def test_a_folder_that_is_no_data_set_is_a_user_error(tmp_path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "train.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(UserError, match="cannot be opened"):
        open_source(f"hf:{tmp_path / 'copy'}")


def test_files_are_sorted_into_splits_by_name_or_folder(tmp_path):
    names = [
        "train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "test/0000.parquet",
        "validation-0.parquet",
        "0001.parquet",
    ]
    splits = _by_split([tmp_path / name for name in names])
    assert {split: len(files) for split, files in splits.items()} == {"train": 3, "test": 1, "val": 1}


def test_splits_of_a_saved_data_set_are_found(tmp_path, original):
    train = original[1]["train"]
    as_saved(tmp_path / "copy", {"train": train, "validation": train})
    assert np.unique(open_source(f"hf:{tmp_path / 'copy'}").splits).tolist() == ["train", "val"]
