"""hf: sources from disk. No test here may use the network."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clfew.data.decode import BadImage
from clfew.data.huggingface import _by_split
from clfew.data.source import RULE
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
    splits = _by_split([tmp_path / name for name in names], tmp_path, RULE)
    assert {split: len(files) for split, files in splits.items()} == {"train": 3, "test": 1, "val": 1}


def test_splits_of_a_saved_data_set_are_found(tmp_path, original):
    train = original[1]["train"]
    as_saved(tmp_path / "copy", {"train": train, "validation": train})
    assert np.unique(open_source(f"hf:{tmp_path / 'copy'}").splits).tolist() == ["train", "val"]


def test_a_local_data_set_changes_no_setting_of_the_process(tmp_path, original, monkeypatch):
    """Pretrained weights of a hub may still be fetched afterwards."""
    import huggingface_hub.constants

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
    before = dict(os.environ)
    as_parquet(tmp_path / "copy", original[1])
    source = open_source(f"hf:{tmp_path / 'copy'}")
    assert {k: v for k, v in os.environ.items() if k != "HF_HUB_DISABLE_TELEMETRY"} == {
        k: v for k, v in before.items() if k != "HF_HUB_DISABLE_TELEMETRY"
    }
    assert not datasets.config.HF_HUB_OFFLINE and not huggingface_hub.constants.HF_HUB_OFFLINE
    assert source.content(0)


@pytest.mark.parametrize("way", ["absolute", "relative", "link"])
def test_a_row_that_names_a_file_outside_the_data_set_is_no_image(tmp_path, put, way):
    """Whoever made a data set could have named any file of this machine."""
    secret = put(tmp_path / "secret.png")
    inside = put(tmp_path / "set" / "inside.png")
    link = tmp_path / "set" / "link.png"
    link.symlink_to(secret)
    name = {"absolute": str(secret), "relative": f"{tmp_path}/set/../secret.png", "link": str(link)}[way]
    rows = [{"bytes": None, "path": name}, {"bytes": None, "path": str(inside)}]
    features = datasets.Features({"image": datasets.Image()})
    table = pa.Table.from_pylist([{"image": row} for row in rows], schema=features.arrow_schema)
    pq.write_table(table, tmp_path / "set" / "train.parquet")
    source = open_source(f"hf:{tmp_path / 'set'}")
    with pytest.raises(BadImage, match="outside the data set"):
        source.content(0)
    assert source.content(1) == inside.read_bytes()


def test_a_row_without_an_image_is_a_bad_image(tmp_path):
    features = datasets.Features({"image": datasets.Image()})
    rows = [{"image": None}, {"image": {"bytes": None, "path": None}}]
    table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set" / "train.parquet")
    source = open_source(f"hf:{tmp_path / 'set'}")
    for index in range(2):
        with pytest.raises(BadImage, match="no image in this row"):
            source.content(index)
