"""Whatever is sent instead of a decision is refused in a sentence, and nothing is written."""

import pytest
from made_board import Made, at_once

from clfew.labelling.requests import MOST_NAME
from clfew.labelling.server import Refused

HUGE, DEEP = 10**18, [[[[{}]]]]
NO_NUMBERS = (None, True, False, "0", 0.0, 1.0, -1, HUGE, -HUGE, [], [0], {}, DEEP)
NO_NAMES = (
    *(None, True, 0, 1.5, [], ["lynx"], {"name": "lynx"}, DEEP),
    *("", " ", "\t\n", "a\0b", "\0", "a\x1b[31mb", "\ud83d", "a\udcffb", "\u202eb", "\x7f", "\ufeff"),
    *("x" * (MOST_NAME + 1), "x " * MOST_NAME + "x"),
)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A session with a page of a class, after all kinds of decisions. No test changes it."""
    with pytest.MonkeyPatch.context() as patch:
        at_once(patch)
        made = Made(tmp_path_factory.mktemp("table"))
        made.to_a_page()
        for do in ("skip", "unsure"):
            made.do(do, image=made.state()["queue"][0]["image"])
        made.do("class", name="lynx")
        yield made


def refused(table, request, statuses=(400, 409)):
    """Sends a request that must be refused; returns the refusal."""
    before, log = table.state(), table.log.path.read_bytes()
    with pytest.raises(Refused) as found:
        table.session.do({"request": "malformed", **request})
    error = found.value
    assert error.status in statuses and error.sentence.endswith(".")
    assert table.log.path.read_bytes() == log and table.state() == before
    assert "malformed" not in table.board.decided.requests
    return error


@pytest.mark.parametrize("sent", [None, "", "x" * 65, 7, True, [], {}, DEEP])
def test_a_request_needs_its_own_number(table, sent):
    refused(table, {"do": "class", "name": "wolf", "request": sent}, [400])


def test_a_request_without_a_number_is_refused(table):
    with pytest.raises(Refused) as found:
        table.session.do({"do": "class", "name": "wolf"})
    assert found.value.status == 400


@pytest.mark.parametrize(
    "do",
    [None, "", 0, True, [], {}, DEEP, "Label", "label ", "listed", "asked", "test", "again", "served"],
)
def test_what_is_no_decision_is_refused(table, do):
    refused(table, {"do": do, "image": 0, "class": 1, "images": [], "rows": [], "how": "random"}, [400])
    refused(table, {}, [400])


@pytest.mark.parametrize("do", ["label", "skip", "unsure"])
@pytest.mark.parametrize("image", [*NO_NUMBERS, 60])
def test_an_image_is_a_number_of_one(table, do, image):
    if image == 0 and type(image) is int:
        return
    refused(table, {"do": do, "image": image, "class": 1}, [400])
    refused(table, {"do": do, "class": 1}, [400])


@pytest.mark.parametrize(
    "number", [each for each in NO_NUMBERS if type(each) is not int] + [-1, 9, HUGE]
)
def test_a_class_is_a_number_of_one(table, number):
    for request in (
        {"do": "label", "image": 0, "class": number},
        {"do": "rename", "class": number, "name": "wolf"},
        {"do": "delete", "class": number},
        {"do": "merge", "class": number, "into": 1},
        {"do": "merge", "class": 1, "into": number},
    ):
        refused(table, request, [409])
    if number is not None:
        refused(table, {"do": "show", "class": number}, [409])


def test_none_of_these_is_not_a_class_to_change(table):
    for request in ({"do": "rename", "name": "wolf"}, {"do": "delete"}, {"do": "merge", "into": 1}):
        refused(table, {**request, "class": 0}, [409])
    for name in ("none of these", "None  of These"):
        refused(table, {"do": "class", "name": name}, [409])
        refused(table, {"do": "rename", "class": 1, "name": name}, [409])


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_name_is_printable_and_not_too_long(table, name):
    for request in ({"do": "class"}, {"do": "rename", "class": 1}, {"do": "label", "image": 0}):
        refused(table, {**request, "name": name}, [400])


def test_a_name_is_given_once(table):
    refused(table, {"do": "class", "name": "CLASS 0"}, [409])
    refused(table, {"do": "class", "name": " class \t 0 "}, [409])
    refused(table, {"do": "rename", "class": 1, "name": "Lynx"}, [409])
    refused(table, {"do": "class"}, [400])
    refused(table, {"do": "merge", "class": 1, "into": 1}, [409])


@pytest.mark.parametrize("order", ["", 0, None, [], {}, False])
def test_an_order_that_is_not_there_is_the_usual_one(table, order):
    page = table.do("show", **{"class": None}, order=order)["page"]
    assert page["order"] == "mixed"


@pytest.mark.parametrize("order", ["SUREST", 1, True, [1], {"a": 1}, DEEP])
def test_an_unknown_order_is_refused(table, order):
    refused(table, {"do": "show", "class": 1, "order": order}, [400])


@pytest.mark.parametrize("wrong", [None, True, 7, "", {}, [7], [None], [[]], [{}], [{"image": None}]])
def test_corrections_of_a_page_are_images_of_it(table, wrong):
    page = table.state()["page"]
    refused(
        table, {"do": "page", "class": page["class"], "images": page["images"], "wrong": wrong}, [400]
    )


@pytest.mark.parametrize("image", [None, True, "0", 0.5, [], {}, HUGE, -1])
def test_a_corrected_image_is_a_number_of_one_in_the_page(table, image):
    page = table.state()["page"]
    shown = {"do": "page", "class": page["class"], "images": page["images"]}
    refused(table, {**shown, "wrong": [{"image": image, "class": 1}]}, [400])
    other = next(n for n in range(60) if n not in page["images"])
    refused(table, {**shown, "wrong": [{"image": other, "class": 1}]}, [400])
    refused(table, {**shown, "wrong": [{"image": float(page["images"][0])}]}, [400])


@pytest.mark.parametrize("number", [True, "1", 1.0, [], {}, 9, HUGE])
def test_a_corrected_image_is_of_a_class_that_there_is(table, number):
    page = table.state()["page"]
    wrong = [{"image": page["images"][0], "class": number}]
    refused(
        table, {"do": "page", "class": page["class"], "images": page["images"], "wrong": wrong}, [409]
    )


@pytest.mark.parametrize("images", [None, True, 7, "", {}, [], [None], DEEP])
def test_a_page_names_its_images(table, images):
    page = table.state()["page"]
    refused(table, {"do": "page", "class": page["class"], "images": images, "wrong": []}, [409])
    refused(table, {"do": "page", "class": images, "images": page["images"], "wrong": []}, [409])
    refused(table, {"do": "page", "class": page["class"], "wrong": []}, [409])
    refused(table, {"do": "page", "class": page["class"], "images": page["images"]}, [400])


@pytest.mark.parametrize("number", [None, True, 1.0, "1", [], {}, DEEP, 0, -1, HUGE])
def test_undo_names_a_decision_that_there_is(table, number):
    refused(table, {"do": "undo", "n": number}, [409])


def test_what_can_not_be_undone_is_refused(table):
    asked = next(event for event in table.log.events if event["do"] == "asked")
    refused(table, {"do": "undo", "n": asked["n"]}, [409])


def test_finish_needs_labels_of_two_classes(tmp_path):
    made = Made(tmp_path)
    assert refused(made, {"do": "finish"}, [409]).sentence == made.state()["can_finish"]
    made.do("label", image=made.state()["queue"][0]["image"], name="deer")
    refused(made, {"do": "finish"}, [409])
    made.do("label", image=made.names.index(made.tests[0]), name="fox")
    refused(made, {"do": "finish"}, [409])
    # "None of these" is a label like any other.
    made.do("label", image=made.state()["queue"][0]["image"], **{"class": 0})
    assert made.do("finish")["phase"] == "finishing"
    refused(made, {"do": "skip", "image": 0}, [409])
    refused(made, {"do": "finish"}, [409])


def test_undo_without_a_decision_is_refused(tmp_path):
    made = Made(tmp_path)
    refused(made, {"do": "undo"}, [409])
    made.do("class", name="deer")
    made.do("undo")
    refused(made, {"do": "undo"}, [409])


@pytest.mark.parametrize(
    "name", ["x" * MOST_NAME, "<b>deer</b>", '"', "'; --", "=1+1", "鹿", "🦊", "a/b", "é"]
)
def test_any_other_name_is_taken_as_it_is(tmp_path, name):
    made = Made(tmp_path)
    shown = made.do("label", image=0, name=f"  {name} ")
    assert [each["name"] for each in shown["classes"]] == [name]
    assert made.do("label", image=1, name=name)["classes"][0]["labels"] == 2
    made.start()
    assert made.state()["classes"][0]["name"] == name
