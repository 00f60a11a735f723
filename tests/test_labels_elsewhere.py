"""What examples/labels_elsewhere.py writes for Label Studio and CVAT, and what it reads from there."""

import json
import runpy
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import pytest

from clfew.data.label_lists import read_label_list
from clfew.data.lists import parse, read_list
from clfew.data.sources import open_source
from clfew.runs.files import write_csv

EXAMPLE = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "labels_elsewhere.py"))
COLUMNS = ("path", "label", "split", "order", "how")
HOSTILE = "a&b/<i>\"#1\" 50%?d='x'.png"
ROWS = [
    ("cat/1.png", "cat", "train", 1, "chosen (herding)"),
    (HOSTILE, 'tom & "<jerry>"', "train", 2, "chosen (herding)"),
    ("Bär/löwe 猫.png", "Löwe", "test", 3, "random"),
    ("=1+1.png", "-cat", "test", 4, "random"),
    ("cat/2.png", "none of these", "train", 5, "random"),
    ("dog/3.png", "", "train", 6, "chosen (herding)"),
]
LABELS = {path: label for path, label, *_ in ROWS}
CLASSES = sorted(set(LABELS.values()) - {""})


@pytest.fixture
def labels(tmp_path, monkeypatch, put) -> str:
    """The list of a `label` run beside a folder with its images."""
    monkeypatch.chdir(tmp_path)
    for path in LABELS:
        put(tmp_path / "photos" / path)
    write_csv(tmp_path / "labels.csv", COLUMNS, ROWS)
    return "labels.csv"


def run(*arguments: str) -> None:
    EXAMPLE["main"](list(arguments))


def tasks_of(labels: str) -> list[dict]:
    run(labels, "--images", "photos", "--label-studio", "tasks.json")
    return json.loads(Path("tasks.json").read_text(encoding="utf-8"))


def annotations_of(labels: str) -> ElementTree.Element:
    run(labels, "--cvat", "annotations.xml")
    return ElementTree.parse("annotations.xml").getroot()


def test_each_image_is_a_task_with_its_names_as_they_were(labels):
    data = [task["data"] for task in tasks_of(labels)]
    assert [(d["path"], d["split"], d["order"], d["how"]) for d in data] == [
        (path, split, str(order), how) for path, _, split, order, how in ROWS
    ]


def test_a_task_refers_to_a_file_below_the_document_root(labels):
    for task in tasks_of(labels):
        parts = urlsplit(task["data"]["image"])
        assert parts.path == "/data/local-files/" and not parts.fragment
        (name,) = parse_qs(parts.query)["d"]
        assert name == f"photos/{task['data']['path']}" and Path(name).is_file()


def test_a_label_is_an_annotation_and_no_label_is_none(labels):
    for task in tasks_of(labels):
        label = LABELS[task["data"]["path"]]
        choices = [
            (each["type"], each["from_name"], each["to_name"], each["value"])
            for annotation in task["annotations"]
            for each in annotation["result"]
        ]
        assert choices == ([("choices", "choice", "image", {"choices": [label]})] if label else [])


def test_the_printed_configuration_has_the_names_and_classes_of_the_tasks(labels, capsys):
    tasks_of(labels)
    view = ElementTree.fromstring(capsys.readouterr().out)
    image, choices = view
    assert (image.tag, image.attrib) == ("Image", {"name": "image", "value": "$image"})
    assert (choices.tag, choices.attrib["name"], choices.attrib["toName"]) == (
        "Choices",
        "choice",
        "image",
    )
    assert [choice.attrib["value"] for choice in choices] == CLASSES


def test_cvat_gets_a_tag_for_each_label_and_every_image(labels, capsys):
    root = annotations_of(labels)
    assert root.tag == "annotations" and root.findtext("version") == "1.1"
    assert [name.text for name in root.iterfind("meta/task/labels/label/name")] == CLASSES
    assert capsys.readouterr().out.splitlines()[1:] == CLASSES
    tags = {image.attrib["name"]: [t.attrib["label"] for t in image] for image in root.iter("image")}
    assert tags == {path: [label] if label else [] for path, label in LABELS.items()}


def test_no_number_of_an_image_is_one_of_a_frame_of_cvat(labels):
    """CVAT would give the label to the frame of that number if it did not find the name."""
    numbers = [int(image.attrib["id"]) for image in annotations_of(labels).iter("image")]
    assert len(set(numbers)) == len(ROWS) and min(numbers) >= 10**9


def test_what_cvat_gets_comes_back_with_splits_and_guarded(labels):
    annotations_of(labels)
    run(labels, "--from-cvat", "annotations.xml", "mine.csv")
    assert Path("mine.csv").read_bytes() == Path(labels).read_bytes()


def test_tags_that_were_changed_in_cvat_replace_the_labels(labels):
    Path("export.xml").write_text(
        '<annotations><version>1.1</version><meta/><image id="0" name="cat/1.png" width="9" height="9">'
        '</image><image id="1" name="dog/3.png" width="16" height="16"><tag label="dog" source="manual">'
        "</tag></image></annotations>",
        encoding="utf-8",
    )
    run(labels, "--from-cvat", "export.xml", "mine.csv")
    listed = read_label_list(open_source("photos"), parse("mine.csv"))
    found = [row["label"] for row in read_list(parse("mine.csv")).rows]
    assert found == ["", "", "", "", "", "dog"] and len(listed.held_out) == 2


def test_groups_of_images_stay_in_the_lists(labels):
    write_csv(Path(labels), (*COLUMNS, "group"), [(*row, "burst") for row in ROWS])
    assert {task["data"]["group"] for task in tasks_of(labels)} == {"burst"}
    annotations_of(labels)
    run(labels, "--from-cvat", "annotations.xml", "mine.csv")
    assert Path("mine.csv").read_bytes() == Path(labels).read_bytes()


@pytest.mark.parametrize("name", ["bell\a.png", "latin\udce4.png"])
def test_a_name_that_no_xml_can_hold_is_named_and_nothing_is_written(labels, name):
    write_csv(Path(labels), COLUMNS, [(name, "cat", "train", 1, "random"), *ROWS])
    with pytest.raises(SystemExit, match="rename it"):
        run(labels, "--label-studio", "tasks.json", "--cvat", "annotations.xml")
    assert not Path("tasks.json").exists() and not Path("annotations.xml").exists()
