"""Names of classes and files are only text, on a page, on a terminal, in CSV and in JSON."""

import csv
import io
import json
import os
import pty
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from corpus import RGB, png
from fuzzing import fuzz
from hypothesis import strategies as st

from clfew import console
from clfew.console import printable
from clfew.data.image_files import walk_images
from clfew.data.label_lists import apply_label_csv
from clfew.data.lists import ListFile, read_list
from clfew.data.sources import open_source
from clfew.data.splits import test_indices as held_out
from clfew.distillation.parts import find_parts
from clfew.distillation.teacher import open_images, open_teacher
from clfew.models.artifacts import load_classifier
from clfew.runs.files import csv_line, guarded, unguarded, write_csv

CLASSES = [
    "<script>alert(1)<!--", "\"quoted\" 'names', &amp; more", "\x1b[31mred\x1b[2J", "two\nlines",
    "=1+1", "+1", "-1", "@SUM(A1)", "\tindented", "\rreturned", "'=1", "''-1", " spaces ",
    os.fsdecode(b"caf\xe9"), "\u202etfel", ":cat: [bold]猫🐈", "{{ 7 * 7 }}", "$\\frac{1}{0}$",
]  # fmt: skip
FILES = [
    "<img src=x onerror=alert(1)>.png",
    'it\'s "one".png',
    "\x1b]0;title\x07.png",
    "=1.png",
    "-rf\n.png",
    os.fsdecode(b"\xff.png"),
]
WITHOUT_CLASS = ["=1+1.png", "+1.png", "-rf.png", "@a.png", "\ttab.png", "\rreturn.png", "'=1.png"]
BAD = ["=bad.png", "-bad\r\n.png", "\x1b[2Jbad.png", "<script>bad.png", os.fsdecode(b"bad\xe9.png")]
FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠", "﹦", "﹢", "﹣", "﹫", "−")


@pytest.fixture(scope="module")
def worked(clfew, tiny, tmp_path_factory):
    """A folder in which commands were run on these names, and the bytes that each has printed."""
    folder = tmp_path_factory.mktemp("names")
    random = np.random.default_rng(0)
    names = [f"{label}/{file}" for label in CLASSES for file in FILES] + WITHOUT_CLASS
    for number, name in enumerate(names):
        file = folder / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 60, (8, 8, 3))
        pixels[..., number // len(FILES) % 3] += 10 * (number // len(FILES))
        file.write_bytes(png(pixels, 8, RGB))
    for name in BAD:
        (folder / "photos" / name).write_bytes(b"")
    printed = {}

    def run(name, *command, stdin="", rc=0):
        result = clfew(*command, cwd=folder, stdin=stdin)
        assert result.rc == rc, result.stderr
        printed[name] = [(clfew.home / stream).read_bytes() for stream in ("stdout", "stderr")]

    run("pretrain", "pretrain", "photos", *tiny)
    run("finetune", "finetune", "--labels", "2/class", "--mode", "knn")
    run("again", "finetune", "--labels", "runs/finetune-1/labels.csv", "--mode", "knn")
    run("eval", "eval", "--from", "runs/finetune-1")
    run("embed", "embed", "photos")
    for output in ("table", "json", "csv"):
        run(output, "predict", "photos", "--format", output, rc=1)
    run("missing", "finetune", CLASSES[2], "--labels", "1%", rc=1)
    return folder, sorted(names), printed


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def written(file):
    """Returns the rows of a CSV and asserts that a spreadsheet reads no cell as a formula."""
    rows = rows_of(file.read_bytes().decode("utf-8", "surrogateescape"))
    assert rows and not any(cell.startswith(FORMULA) for row in rows for cell in row.values())
    return rows


class Page(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def test_the_report_shows_names_as_text(worked):
    page = (worked[0] / "runs/eval-1/report.html").read_text(encoding="utf-8")
    assert all(c.isprintable() or c == "\n" for c in page.replace("\u202f", " "))
    read = Page(page)
    for tag, attributes in read.tags:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form", "svg")
        assert not any(name.startswith("on") for name in attributes), attributes
        assert all(attributes.get(a, "data:").startswith(("data:", "#")) for a in ("src", "href"))
    shown = {attributes["title"] for _, attributes in read.tags if "title" in attributes}
    for name in CLASSES:
        assert printable(name) in read.text and printable(name) in shown
    # There are so few test images that the page shows all of them, with their names.
    source = open_source(str(worked[0] / "photos"))
    tested = {printable(source.identities[i]) for i in held_out(source, 0)} - set(map(printable, BAD))
    assert len(tested) == len(CLASSES)
    assert all(any(name in title for title in shown) for name in tested)


def test_what_is_printed_holds_no_control_characters(worked):
    for name, streams in worked[2].items():
        checked = streams[1:] if name == "csv" else streams  # For CSV see the test on a terminal.
        for content in checked:
            text = content.decode()
            assert all(c.isprintable() or c == "\n" for c in text), (name, text)
    lines = worked[2]["table"][0].decode().splitlines()
    assert len(lines) == len(worked[1]) + len(BAD)
    table = worked[2]["eval"][0].decode()
    assert all(printable(label).strip() in table for label in CLASSES)
    assert printable(CLASSES[2]) in worked[2]["missing"][1].decode()


def read_all(descriptor):
    content = b""
    try:
        while block := os.read(descriptor, 65536):
            content += block
    except OSError:  # On Linux, this means that the other end is closed.
        pass
    return content.decode()


@pytest.mark.slow
def test_csv_on_a_terminal_sends_no_control_characters(clfew, worked):
    ours, theirs = pty.openpty()
    process = clfew.popen(
        "predict",
        "photos",
        "--format",
        "csv",
        cwd=worked[0],
        stdout=theirs,
        stderr=theirs,
        env={"TERM": "xterm-256color", "NO_COLOR": "1"},
    )
    os.close(theirs)
    text = read_all(ours)
    os.close(ours)
    assert process.wait(120) == 1
    rows, message = text.replace("\r\n", "\n").split(
        "\x1b", 1
    )  # The message's own bold, after all rows.
    assert all(c.isprintable() or c == "\n" for c in rows)
    assert printable(CLASSES[2]) in rows and printable(CLASSES[3]) in rows and "hint" in message


def test_csv_holds_no_formula_and_every_name(worked):
    folder, names, printed = worked
    for command in ("pretrain", "finetune", "eval", "embed"):
        rows = written(folder / f"runs/{command}-1/bad_images.csv")
        assert {unguarded(row["path"]) for row in rows} == set(BAD)
    rows = written(folder / "runs/embed-1/paths.csv")
    assert sorted(unguarded(row["path"]) for row in rows) == names
    labels = written(folder / "runs/finetune-1/labels.csv")
    assert {unguarded(row["label"]) for row in labels} == set(CLASSES)
    rows = rows_of(printed["csv"][0].decode())
    cells = [cell for row in rows for cell in row.values()]
    assert not any(cell.startswith(FORMULA) for cell in cells)
    spelled = {name.encode("utf-8", "backslashreplace").decode() for name in CLASSES}
    assert len(rows) == len(names) + len(BAD)
    assert {unguarded(row["label"]) for row in rows if row["label"]} <= spelled


def test_a_run_s_labels_csv_reproduces_its_label_sample(worked):
    folder, _, _ = worked
    first, again = (folder / f"runs/finetune-{number}/labels.csv" for number in (1, 2))
    assert first.read_bytes() == again.read_bytes()
    models = [load_classifier(file.with_name("classifier.safetensors")) for file in (first, again)]
    assert [metadata.classes for _, metadata, _ in models] == [sorted(CLASSES)] * 2
    weights = [model.state_dict() for model, _, _ in models]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_labelled_images_of_a_classifier_are_found_again(worked, monkeypatch):
    monkeypatch.chdir(worked[0])
    teacher = open_teacher(worked[0] / "runs/finetune-1/classifier.safetensors")
    images = open_images(teacher, find_parts(teacher.metadata, None))
    rows = read_list(ListFile(worked[0] / "runs/finetune-1/labels.csv")).rows
    found = {(images.source.identities[i], sorted(CLASSES)[images.labels[i]]) for i in images.labelled}
    assert found == {(row["path"], row["label"]) for row in rows} and len(found) == 2 * len(CLASSES)


def test_json_holds_every_name(worked):
    folder, names, printed = worked
    contents = [file.read_bytes() for file in folder.glob("runs/*/*.json")] + [printed["json"][0]]
    assert len(contents) > 6
    for content in contents:
        json.loads(content)
        assert all(0x20 <= byte < 0x7F or byte == 0x0A for byte in content)
    assert json.loads((folder / "runs/eval-1/report.json").read_bytes())["classes"] == sorted(CLASSES)
    rows = json.loads(printed["json"][0])
    assert sorted(os.path.relpath(row["path"], "photos") for row in rows) == sorted(names + BAD)
    assert {row["label"] for row in rows} <= {*CLASSES, None}


def test_a_csv_source_may_name_files_as_formulas(tmp_path):
    for number, name in enumerate(WITHOUT_CLASS):
        (tmp_path / name).write_bytes(png(np.full((8, 8, 3), number), 8, RGB))
    write_csv(tmp_path / "list.csv", ["path", "label"], [(name, "=1") for name in WITHOUT_CLASS])
    source = open_source(str(tmp_path / "list.csv"))
    assert source.identities == WITHOUT_CLASS and source.classes == ["=1"]
    assert source.content(2) == (tmp_path / WITHOUT_CLASS[2]).read_bytes()
    # A list written by hand needs no apostrophe.
    (tmp_path / "list.csv").write_text("path,label\n=1+1.png,-1\n+1.png,-1\n")
    source = open_source(str(tmp_path / "list.csv"))
    assert source.identities == WITHOUT_CLASS[:2] and source.classes == ["-1"]


def test_a_class_keeps_the_spaces_of_its_folder(image_folder, tmp_path):
    source = open_source(str(image_folder({" a": 2, "a": 2, "b ": 2})))
    write_csv(tmp_path / "labels.csv", ["path", "label"], [(" a/000.png", " a"), ("b /000.png", "b ")])
    labelled, named = apply_label_csv(source, ListFile(tmp_path / "labels.csv"))
    assert labelled.classes == source.classes == [" a", "a", "b "]
    assert [labelled.classes[c] for c in labelled.labels[named]] == [" a", "b "]
    # Spaces around a label that is not a folder's name are removed.
    (tmp_path / "labels.csv").write_text("path,label\n a/000.png,  a\nb /000.png, b \n")
    labelled, named = apply_label_csv(source, ListFile(tmp_path / "labels.csv"))
    assert [labelled.classes[c] for c in labelled.labels[named]] == ["a", "b"]


def test_every_cell_comes_back_and_none_is_a_formula():
    text = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=8)
    text |= st.text("'=+-@＝＋－＠﹦−\t\r\n;,\"a", max_size=6)

    def holds(cells):
        (read,) = csv.reader(io.StringIO(csv_line(cells), newline=""), lineterminator="\n")
        parts = [part for cell in read for part in re.split("[;\t]", cell)]
        assert not any(part.startswith(FORMULA) for part in parts)
        assert [unguarded(cell) for cell in read] == cells
        assert all(unguarded(guarded(cell)) == cell for cell in cells)

    fuzz(300, holds, cells=st.lists(text, min_size=1, max_size=4))


def test_numbers_are_no_formulas():
    assert csv_line([-1, -0.5, None, "-1", True]) == "-1,-0.5,,'-1,True\n"


def test_folders_are_walked_whatever_their_names(worked):
    names, others = walk_images(worked[0] / "photos")
    assert sorted(names) == sorted(worked[1] + BAD) and others.words() == ""


def test_messages_hold_no_control_characters_and_no_markup(capsys):
    console.say("a\x1b[31mb\nc :cat: [bold]d[/bold]")
    console.next_command("clfew eval --from 'a\x1b[31mb\nc' :cat:")
    err = capsys.readouterr().err
    assert (
        err == "a\\x1b[31mb\\nc :cat: [bold]d[/bold]\nnext: clfew eval --from 'a\\x1b[31mb\\nc' :cat:\n"
    )
