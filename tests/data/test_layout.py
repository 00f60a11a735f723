"""How folders are understood, by the names in them."""

import pytest

from clfew.data.layout import understand


def read(*names):
    layout = understand(names)
    return {name: layout.of(name) for name in names}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Every competition: the test images have no labels.
        ("train/cat/1.jpg val/cat/2.jpg test/3.jpg", "train cat, val cat, test "),
        ("train/cat/1 val/cat/2 test/images/3", "train cat, val cat, test "),
        # Words that are splits and also things.
        ("bus/1 car/2 train/3", "train bus, train car, train train"),
        ("bus/a/1 car/a/2 train/a/3", "train bus, train car, train train"),
        ("bus/1 car/2 train/yard/3", "train bus, train car, train train"),
        ("cat/1 dog/2 test/3", "train cat, train dog, test "),
        ("cat/1 dog/2 val/3", "train cat, train dog, val "),
        ("cat/1 dog/2 train/3 test/4", "train cat, train dog, train , test "),
        ("val/1 other/2", "train val, train other"),
        # Names of splits.
        ("Training/cat/1 Testing/cat/2", "train cat, test cat"),
        ("Train/cat/1 Validation/cat/2", "train cat, val cat"),
        ("TRAIN/cat/1 dev/cat/2", "train cat, val cat"),
        ("train/cat/1 eval/cat/2", "train cat, test cat"),
        ("seg_train/sea/1 seg_test/sea/2", "train sea, test sea"),
        ("train2017/1 val2017/2", "train , val "),
        ("train_images/cat/1 test_images/2", "train cat, test "),
        ("test tube/1 flask/2", "train test tube, train flask"),
        ("pretrained/1 attest/2", "train pretrained, train attest"),
        # Class folders.
        ("deer/site1/100MEDIA/1 fox/2", "train deer, train fox"),
        ("deer/site1/1 fox/site1/2", "train deer, train fox"),
        ("cat/1 dog/2 unlabeled/3", "train cat, train dog, train "),
        ("cat/1 dog/2 Unlabelled/a/3", "train cat, train dog, train "),
        ("labeled/cat/1 labeled/dog/2 unlabeled/3", "train cat, train dog, train "),
        ("labelled/cat/1 unlabelled/x/3 test/cat/4", "train cat, train , test cat"),
        ("train/cat/1 train/unlabeled/2 test/cat/3", "train cat, train , test cat"),
        ("2020/may/1 2021/june/2", "train , train "),
        ("2020/1 2021/2", "train 2020, train 2021"),
        ("train/cat/1 train/dog/1b test/unknown/2", "train cat, train dog, test "),
        ("train/cat/1 train/dog/1b test/cat/2", "train cat, train dog, test cat"),
        # Folders around it all.
        ("archive/cat/1 archive/dog/2", "train cat, train dog"),
        ("a/b/train/cat/1 a/b/test/cat/2", "train cat, test cat"),
        ("only/deep/1", "train only"),
        ("only/1", "train only"),
        ("a/cat/1 a/dog/2 loose", "train a, train a, train "),
        # Splits within the classes.
        ("cat/train/1 cat/test/2 dog/train/3 dog/test/4", "train cat, test cat, train dog, test dog"),
        ("cat/left/1 cat/test/2 dog/train/3", "train cat, train cat, train dog"),
        # No folders, and folders beside splits.
        ("1 2", "train , train "),
        ("train/1 test/2", "train , test "),
        ("train/cat/1 test/cat/2 extra/3 4", "train cat, test cat, train , train "),
        ("1 cat/2 dog/3", "train , train cat, train dog"),
    ],
)
def test_folders_are_understood_as_they_are_meant(name, expected):
    found = read(*name.replace("tube/", "tube/").split(" ")) if "tube" not in name else None
    if found is None:
        found = read("test tube/1", "flask/2")
    assert [f"{split} {label}" for split, label in found.values()] == expected.split(", ")
