"""Take the labels of `clfew label` to Label Studio or CVAT, and bring labels back from there.

    python examples/labels_elsewhere.py runs/label-1/labels.csv --images ./photos \\
        --label-studio tasks.json --cvat annotations.xml

Label Studio takes labels.csv as it is: each column becomes a field of the task. Labels become
annotations, which people can correct, if tasks.json is imported in its place:

1. Start Label Studio where it may read the images. The document root is the folder that holds ./photos:
   LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=$PWD label-studio
2. Make a project, paste the labelling configuration that this script prints into Settings > Labeling
   Interface > Code, and add the absolute path of ./photos under Settings > Cloud Storage as a local
   storage. Do not sync it: Label Studio serves only folders that are a storage.
3. Import tasks.json.
4. Export as CSV when all is labelled. The file names each image in its column path, keeps the split, and
   holds only images with annotations, one line for each annotation (clfew refuses two that differ):
   clfew finetune ./photos --labels export.csv --path-column path --label-column choice

If labels.csv is imported in place of tasks.json, write `value="/data/local-files/?d=photos/$path"` in
the configuration's Image. The labels are fields beside the images then, no annotations. Images are not
shown if their names have signs like # & % + or begin like a formula. Step 4 is the same; without
--label-column clfew would read the old labels.

A project that was not made from these lists has no column path, and clfew does not find the images by
the references in its column image. `sed 's|/data/local-files/?d=photos/||' export.csv > mine.csv` makes
`photos/1.jpg`'s reference a name that --path-column image takes, unless it has signs written as %20 or
the like. Of files uploaded by a browser only `/data/upload/3/1a2b3c4d-1.jpg` is left: remove all up to
the first hyphen, and subfolders by hand.

CVAT takes annotations.xml:

1. Make a task with the labels that this script prints, of type Tag or Any. As its images choose a ZIP
   file of what is in ./photos (`cd photos && zip -r ../photos.zip .`), as that keeps subfolders' names.
2. Choose Actions > Upload annotations > CVAT 1.1 in the task. Images are found by their names without
   the ending; CVAT refuses the file if it names an image that the task lacks.
3. Export the task as "CVAT for images 1.1", unpack it and bring its tags back. Images without a tag
   have no label. (In an export as ImageNet they would be a class no_label, and the split would be lost.)
   python examples/labels_elsewhere.py runs/label-1/labels.csv --from-cvat annotations.xml mine.csv
   clfew finetune ./photos --labels mine.csv
"""

import argparse
import re
import sys
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

from clfew.data.lists import parse, read_list
from clfew.runs.files import write_bytes, write_csv, write_json

COLUMNS = ("path", "label", "split", "order", "how", "group")
UNFIT = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What neither XML nor a database can hold: control characters, and bytes that are no UTF-8."""
NO_FRAME = 10**9
"""CVAT takes the image with the number `id` where it finds no image of a name. No task has so many."""


def label_studio_tasks(rows: list[dict[str, str]], folder: str) -> list[dict]:
    """The tasks of Label Studio, those with a label with an annotation. folder: in the document root."""
    tasks = []
    for row in rows:
        url = "/data/local-files/?d=" + quote(f"{folder}/{row['path']}")
        choice = {"from_name": "choice", "to_name": "image", "type": "choices"}
        result = [{**choice, "value": {"choices": [row["label"]]}}]
        data = {"image": url, **{name: cell for name, cell in row.items() if name != "label"}}
        tasks.append({"data": data, "annotations": [{"result": result}] if row["label"] else []})
    return tasks


def label_studio_config(classes: list[str]) -> str:
    """The labelling configuration that goes with the tasks."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image")
    choices = ElementTree.SubElement(view, "Choices", name="choice", toName="image", choice="single")
    for name in classes:
        ElementTree.SubElement(choices, "Choice", value=name)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode")


def cvat_annotations(rows: list[dict[str, str]], classes: list[str]) -> bytes:
    """The file "CVAT for images 1.1", with a tag for each label."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    labels = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    labels = ElementTree.SubElement(labels, "labels")
    for name in classes:
        ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = name
    for number, row in enumerate(rows, NO_FRAME):
        image = ElementTree.SubElement(root, "image", id=str(number), name=row["path"])
        if row["label"]:
            ElementTree.SubElement(image, "tag", label=row["label"], source="manual")
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"


def cvat_labels(file: str) -> dict[str, str]:
    """The first tag of each image in an export of CVAT, "" for none."""
    found = {}
    for image in ElementTree.parse(file).iter("image"):
        tag = image.find("tag")
        found[image.attrib["name"]] = "" if tag is None else tag.attrib["label"]
    return found


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("labels", help="the labels.csv of clfew label")
    parser.add_argument("--images", default=".", help="the folder that the paths in it are within")
    parser.add_argument("--label-studio", metavar="JSON", help="writes tasks for Label Studio")
    parser.add_argument("--cvat", metavar="XML", help="writes annotations for CVAT")
    parser.add_argument(
        "--from-cvat", nargs=2, metavar=("XML", "CSV"), help="writes a list of CVAT's tags"
    )
    options = parser.parse_args(arguments)

    rows = [{"label": "", **row} for row in read_list(parse(options.labels), ("order", "how")).rows]
    if bad := [row for row in rows if UNFIT.search(row["path"] + row["label"])]:
        sys.exit(f"{bad[0]['path']!r} has signs in its name or label that no XML can hold: rename it.")
    classes = sorted({row["label"] for row in rows} - {""})
    if options.label_studio:
        folder = Path(options.images).resolve().name
        write_json(Path(options.label_studio), label_studio_tasks(rows, folder))
        print(label_studio_config(classes))
    if options.cvat:
        write_bytes(Path(options.cvat), cvat_annotations(rows, classes))
        print("labels of the CVAT task:", *classes, sep="\n")
    if options.from_cvat:
        tags = cvat_labels(options.from_cvat[0])
        columns = [name for name in COLUMNS if name in rows[0]]
        rows = [{**row, "label": tags.get(row["path"], "")} for row in rows]
        write_csv(Path(options.from_cvat[1]), columns, [[row[name] for name in columns] for row in rows])


if __name__ == "__main__":
    main(sys.argv[1:])
