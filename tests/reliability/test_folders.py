"""What people have on their disks is read as they mean it, and nothing is left out silently."""

import pytest
from corpus import picture
from folders import CASES, UNLABELLED_TEST, data_sets, lay_out_case
from handmade import RGB, png
from pixels import CASES as PIXELS

from clfew.data import splits
from clfew.data.decode import BadImage
from clfew.data.label_lists import apply_label_csv
from clfew.data.lists import ListFile
from clfew.data.source import Source
from clfew.data.sources import open_source
from clfew.errors import UserError


def read(source: Source) -> list[str]:
    names = [source.classes[label] if label >= 0 else "" for label in source.labels]
    return [f"{split}:{name}" for split, name in zip(source.splits, names, strict=True)]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.kind}: {case.name}" for case in CASES])
def test_an_input_is_read_as_it_is_meant(case, tmp_path):
    spec = lay_out_case(case, tmp_path)
    if case.refused:
        with pytest.raises(UserError, match=case.refused) as error:
            open_source(spec)
        assert error.value.hint
        return
    source = open_source(spec)
    found = dict(zip(source.identities, read(source), strict=True))
    assert case.images.items() <= found.items()
    assert len(found) == len(case.images) or case.spec
    assert all(words in source.summary() for words in case.said), source.summary()
    assert source.reading and all(source.content(i) for i in range(len(source)))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return folder, data_sets(folder)


@pytest.mark.parametrize(
    "name",
    [
        "pandas",
        "polars",
        "sets [2024]",
        "numbers",
        "named [a-z]*",
        "paths",
        "words",
        "numbered",
        "unlabelled-test",
        "lists-of-one:label=objects",
    ],
)
def test_a_data_set_is_read_as_it_is_meant(sets, name):
    folder, expected = sets
    _, images, said = expected[name]
    source = open_source(f"hf:{folder / name}")
    assert read(source) == images
    assert all(words in source.summary() for words in said), source.summary()
    assert all(source.content(i).startswith(b"\x89PNG") for i in range(len(source)))


def test_there_are_enough_cases():
    assert len(CASES) + len(PIXELS) + 10 >= 120


@pytest.mark.parametrize("case", [c for c in CASES if c.kind == UNLABELLED_TEST], ids=lambda c: c.name)
def test_unlabelled_test_images_are_neither_tested_on_nor_learned_from(case, tmp_path):
    source = open_source(lay_out_case(case, tmp_path))
    held_out = splits.test_indices(source, 0)
    unlabelled = [i for i, split in enumerate(source.splits) if split == "test"]
    assert set(unlabelled) <= set(held_out)
    assert splits.split_to_test(source) in ("val", None)


def test_a_link_to_what_was_not_fetched_is_a_bad_image_with_its_reason(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/1.png").write_bytes(png(picture(1), 8, RGB))
    (tmp_path / "cat/2.png").symlink_to("../.git/annex/objects/gone.png")
    source = open_source(str(tmp_path))
    assert source.identities == ["cat/1.png", "cat/2.png"]
    with pytest.raises(BadImage, match="a link to a file that is not here"):
        source.content(1)


@pytest.mark.parametrize(
    "named", ["1.png", "photos/1.png", "{0}/photos/1.png", "{0}/store/1.png", "store/1.png"]
)
def test_a_label_list_finds_images_that_are_links(named, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "photos").mkdir()
    for name in ("1.png", "2.png"):
        (tmp_path / "store" / name).write_bytes(png(picture(1), 8, RGB))
        (tmp_path / "photos" / name).symlink_to(f"../store/{name}")
    listed = tmp_path / "list.csv"
    listed.write_text(f"path,label\n{named.format(tmp_path)},a\n")
    labelled, indices = apply_label_csv(open_source(str(tmp_path / "photos")), ListFile(listed))
    assert indices.tolist() == [0] and read(labelled) == ["train:a", "train:"]


@pytest.mark.parametrize(
    ("header", "cells", "expected"),
    [
        ("path,label,data_set", "{0},a,ISIC2019", ["train:a", "train:a"]),
        ("path,label,feature_set", "{0},a,3", ["train:a", "train:a"]),
        ("path,cat,dog_breed", "{0},1,0", ["train:cat", "train:cat"]),
        ("path,cat_label,dog_label", "{0},0,1", ["train:dog_label", "train:dog_label"]),
        ("path,has_label", "{0},1", ["train:", "train:"]),
        ("path,old_label,predicted_label", "{0},a,b", ["train:", "train:"]),
        ("path,bird_species", "{0},finch", ["train:finch", "train:finch"]),
        ("path,fine_label,score", "{0},7,0.3", ["train:7", "train:7"]),
    ],
)
def test_columns_that_end_in_a_telling_word(header, cells, expected, tmp_path):
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(png(picture(1), 8, RGB))
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join([header, cells.format("1.png"), cells.format("2.png")]))
    assert read(open_source(str(listed))) == expected
