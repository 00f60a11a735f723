"""Any bytes in a CSV or image file are read correctly or refused with the expected error.

With CLFEW_THOROUGH=1 each test searches for ten minutes instead of a few seconds.
"""

import contextlib
import csv
import io
import math
import os
import time
from collections import Counter

import numpy as np
import pytest
from fuzzing import THOROUGH, fuzz, rounds
from hypothesis import strategies as st
from mutations import mutate, originals

from clfew.data.decode import MAX_PIXELS, BadImage, decode, load_square
from clfew.data.label_lists import apply_label_csv
from clfew.data.lists import ListFile, read_list
from clfew.data.source import SPLITS
from clfew.data.sources import open_source
from clfew.errors import UserError

NAMES = (
    "1.png",
    "x/2.png",
    "./1.png",
    "../images/x/2.png",
    "images/1.png",
    "é.png",
    "loop",
    "x",
    "..",
    "missing.png",
    "a\0b.png",
    "n" * 300 + ".png",
    " 1.png",
    "",
    " ",
    "/",
    "/1.png",
    "\ud83d",
    "-3.png",
    "'-3.png",
    "''=3.png",
    "'",
)
LABELS = ("cat", "dog", " cat ", "é", "", " ", "a,b", 'a"b', "a\nb", "0", "'=1", "c" * 200_000)
SPLIT_NAMES = ("train", "Test", "val", "validation", "", "other")
HEADERS = (
    "path,label",
    "path",
    "path,split",
    "label,path,split",
    "path,path",
    "path,label,label",
    "name",
    "Path,label",
    "path,label,",
    "",
    "path;label",
    "\tpath",
    '"path",label',
)


@st.composite
def csv_files(draw) -> bytes:
    """Makes a mostly valid CSV file with any quoting and line ending; half of them are damaged."""
    header = draw(st.sampled_from(HEADERS[:4] * 3 + HEADERS))
    pools = {"path": NAMES, "label": LABELS, "split": SPLIT_NAMES}
    columns = [pools.get(name, NAMES) for name in header.split(",")]
    rows = draw(st.lists(st.tuples(*(st.sampled_from(pool) for pool in columns)), max_size=4))
    text = io.StringIO()
    quoting = draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
    ending = draw(st.sampled_from(("\n", "\r\n", "\r")))
    text.write(header + ending)
    csv.writer(text, quoting=quoting, lineterminator=ending).writerows(rows)
    encoding = draw(st.sampled_from(("utf-8", "utf-8-sig", "latin-1", "utf-16")))
    content = text.getvalue().encode(encoding, "replace")
    if draw(st.booleans()):
        return content
    place, length = draw(st.integers(0, len(content))), draw(st.integers(0, 3))
    damage = draw(st.one_of(st.binary(max_size=4), st.sampled_from((b'"', b"\n\n", b",", b"\0", b"\r"))))
    return content[:place] + damage + content[place + length :]


def is_plain(content: bytes) -> bool:
    """Returns whether a file is UTF-8, with commas and the columns path, label and split or some of
    them: what others mean, `rows_in` does not say."""
    first = content.decode("utf-8-sig", "surrogateescape").split("\n")[0]
    is_utf8 = not content.startswith((b"\xff\xfe", b"\xfe\xff"))
    if not is_utf8 or any(first.count(each) > first.count(",") for each in ";\t|"):
        return False
    try:
        header = next(csv.reader(io.StringIO(first, newline="")), [])
    except csv.Error:
        return True
    return not {name.strip() for name in header} - {"path", "label", "split"}


def rows_in(content: bytes) -> list[dict[str, str]] | None:
    """Returns the rows that the csv module reads; None if the file is not a valid list of images."""
    text = content.decode("utf-8-sig", "surrogateescape")
    try:
        header, *rows = [*csv.reader(io.StringIO(text, newline=""))] or [[]]
    except csv.Error:
        return None
    header = [name.strip() for name in header]
    rows = [row for row in rows if row]
    while rows and not any(rows[-1]):
        rows.pop()
    if "path" not in header or len(set(header)) < len(header):
        return None
    if not rows or any(len(row) != len(header) for row in rows):
        return None
    if not all(row[header.index("path")].strip() for row in rows):
        return None
    read = [dict(zip(header, map(as_meant, row), strict=True)) for row in rows]
    different = {tuple(row.items()): row for row in read}
    return [*different.values()] if len({row["path"] for row in read}) == len(different) else None


def as_meant(cell: str) -> str:
    """Removes apostrophes that prevent a spreadsheet from reading a part of the cell as a formula."""
    meant, begins = [], True
    for place, character in enumerate(cell):
        rest = cell[place:].lstrip("'")
        is_guard = begins and character == "'" and rest.startswith(("=", "+", "-", "@", *"\t\r\n"))
        if not is_guard:
            meant.append(character)
        begins = character in ";\t"
    return "".join(meant)


def is_meant(folder: object, name: str) -> str | None:
    """Returns the name of the file that a list means, which may lack its ending; None for none."""
    return next((n for n in (name, f"{name}.png") if is_file(folder, n)), None)


def is_file(*parts: object) -> bool:
    return os.path.isfile(os.path.join(*map(str, parts)))


@pytest.fixture
def images(tmp_path, put, monkeypatch):
    """Four images, one in a subfolder, and a link to itself. The current folder is the one above."""
    for name in ("1.png", "x/2.png", "-3.png", "é.png"):
        put(tmp_path / "images" / name)
    (tmp_path / "images/loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "images"


def test_csv_files(images):
    file = images / "list.csv"
    source = open_source(str(images))

    def holds(content):
        file.write_bytes(content)
        if not is_plain(content):
            for read in (lambda: read_list(ListFile(file)), lambda: open_source(str(file))):
                with contextlib.suppress(UserError):
                    read()
            return
        expected = rows_in(content)
        check_rows(file, expected)
        check_as_source(file, expected or [])
        check_as_labels(source, file, expected or [])

    fuzz(300, holds, content=st.one_of(st.binary(max_size=60), csv_files(), csv_files()))


def check_rows(file, expected):
    try:
        rows = read_list(ListFile(file)).rows
    except UserError as error:
        assert expected is None and error.message and error.hint
    else:
        assert rows == expected


def check_as_source(file, rows):
    splits = [row.get("split", "").lower() or "train" for row in rows]
    is_right = all(is_meant(file.parent, row["path"]) for row in rows) and set(splits) <= set(SPLITS)
    try:
        source = open_source(str(file))
    except UserError:
        assert not (rows and is_right)
        return
    assert rows and is_right
    assert source.identities == [is_meant(file.parent, row["path"]) for row in rows]
    assert source.splits.tolist() == [SPLITS[split] for split in splits]
    labels = [source.classes[c] if c >= 0 else "" for c in source.labels]
    assert labels == [row.get("label", "").strip() for row in rows]
    assert all(source.content(i).startswith(b"\x89PNG") for i in range(len(source)))


def check_as_labels(source, file, rows):
    splits = [SPLITS.get(row.get("split", "").lower() or "train", "") for row in rows]
    tested = next((split for split in ("test", "val") if split in splits), None)
    learned = [
        row
        for row, split in zip(rows, splits, strict=True)
        if split != tested and row.get("label", "").strip()
    ]
    try:
        labelled, chosen = apply_label_csv(source, ListFile(file))
    except UserError:
        names = [row["path"] for row in rows]
        assert not (learned and "" not in splits and set(names) <= set(source.identities))
        return
    assert learned and "" not in splits and max(Counter(chosen.tolist()).values()) == 1
    names = [row["label"].strip() for row in learned]
    assert [labelled.classes[c] for c in labelled.labels[chosen]] == names
    for index, row in zip(chosen, learned, strict=True):
        held = os.path.join(source.spec, source.identities[index])
        places = [os.path.join(base, row["path"]) for base in (source.spec, file.parent, os.getcwd())]
        assert any(is_file(place) and os.path.samefile(place, held) for place in places)


@pytest.mark.filterwarnings("ignore")  # Pillow warns about unusual content of a file.
def test_damaged_images():
    """Mutated files of every format decode to an RGB image or are bad; nothing else comes out."""
    files = originals()
    for name, content in files.items():
        assert decode(content).mode == "RGB", f"{name} is not read as it was written"
    counts, slowest = Counter(), 0.0
    for number in rounds():
        for kind, (name, content) in enumerate(files.items()):
            for turn in range(80):
                random = np.random.default_rng([number, kind, turn])
                damaged = mutate(content, list(files.values()), random)
                started = time.process_time()
                where = f"{name}, round {number}, turn {turn}"
                counts[check_decoded(damaged, int(random.integers(1, 40)), where)] += 1
                slowest = max(slowest, time.process_time() - started)
    print(
        f"damaged images: {counts.total():,}, {counts[True]:,} of them decoded; slowest {slowest:.1f} s"
    )
    # Otherwise the mutations would be too weak or too strong to test the decoders.
    assert min(counts[True], counts[False]) > 0.05 * counts.total()
    if THOROUGH:
        assert slowest < 60


def check_decoded(content: bytes, side: int, where: str) -> bool:
    """Returns whether the image can be decoded; asserts documented exceptions, sizes and types."""
    try:
        image = decode(content)
        assert image.mode == "RGB" and 0 < image.width * image.height <= MAX_PIXELS, where
        pixels, aspect = load_square(content, side)
    except BadImage as error:
        assert str(error), where
        return False
    assert pixels.shape == (side, side, 3) and pixels.dtype == np.uint8, where
    assert 0 < aspect < math.inf, where
    return True
