import pytest

from clfew.quality.class_names import odd_names, similar_names

ONE_CLASS = [
    ("Cat", "cat"), ("golden retriever", "golden_retriever"), ("café", "cafe"),
    ("tabby cat", "tabbycat"),
    ("t-shirt", "T Shirt"), ("cat", "cats"), ("airplane", "airplne"), ("baseball", "basebal"),
    ("mountain_bike", "mountian_bike"), ("agricultural", "agricaltural"), ("ﬁsh", "fish"),
    ("Cafe\u0301", "Café"), ("straße", "STRASSE"), ("red fox", "red  fox"),
]  # fmt: skip
TWO_CLASSES = [
    ("cat", "bat"), ("horse", "house"), ("class1", "class2"), ("class 1", "class 11"), ("3", "8"),
    ("pear", "bear"), ("boat", "goat"), ("mouse", "moose"), ("well_A1", "well_A2"), ("a", "b"),
    ("n02085620", "n02085621"), ("0", "00x"), ("left", "right"), ("positive", "negative"),
    ("1", "-1"), ("1.5", "15"), ("1-2", "12"), ("ハハ", "パパ"), ("かき", "かぎ"),
    ("typical", "atypical"),
    ("asymmetric", "symmetric"), ("variety A", "variety B"), ("й5", "ц5"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), ONE_CLASS)
def test_two_spellings_of_one_name_are_found(first, second):
    found = similar_names(["unlike the others", second, first, "something else"])
    assert [{a, b} for a, b, _ in found] == [{first, second}]


@pytest.mark.parametrize(("first", "second"), TWO_CLASSES)
def test_two_things_are_no_spellings_of_one(first, second):
    assert similar_names([first, second]) == []


HARDLY_NAMES = [
    " cat", "cat ", "New folder", "new folder (2)", "untitled folder", "tmp", "NaN", "None", "??",
    "cat\u200b", "cat\x07",
]  # fmt: skip


@pytest.mark.parametrize("name", HARDLY_NAMES)
def test_what_is_hardly_the_name_of_a_class(name):
    (said,) = odd_names(["dog", name])
    assert name in said


def test_ordinary_names_are_not_odd():
    names = ["cat", "dog", "0", "12", "Über", "花", "other", "background", "unknown", "tree (old)"]
    assert odd_names(names) == []


def test_among_thousands_of_names_the_one_misspelled_is_found():
    names = [f"genus{i // 10}a species{i * 7919 % 10007}b" for i in range(5000)]
    assert similar_names([*names, "genus7a speceis55433b"]) == []
    misspelled = names[70].replace("species", "speceis")
    assert [set(each[:2]) for each in similar_names([*names, misspelled])] == [{names[70], misspelled}]
