"""Reads lists of images: CSV and its kin, as people and other programs write them.

A list has one line for each image, with its path and, optionally, its label and split. The names of the
columns, what separates them and the encoding of the file are found out.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clfew.errors import UserError
from clfew.runs.files import unguarded

PATH_NAMES = (
    (
        "path", "file", "filename", "file_name", "filepath", "file_path", "image_path", "imagepath",
        "img_path", "image_file", "image_filename", "image_name",
    ),
    ("image", "img", "photo", "picture", "image_id", "img_id"),
    ("name", "id"),
)  # fmt: skip
LABEL_NAMES = (
    ("label", "labels"),
    (
        "class", "class_name", "classname", "class_label", "label_name", "category", "category_name",
        "species", "target", "tag", "diagnosis", "dx", "breed",
    ),
    ("y",),
)  # fmt: skip
SPLIT_NAMES = (("split",), ("subset", "set", "partition"))
GROUP_NAMES = (("group", "groups", "group_id", "group_name"),)
_OTHERS = (("split", SPLIT_NAMES), ("group", GROUP_NAMES))
"""The names of columns, the most telling group first, in small letters and with _ for other signs. The
first name of all wins over those of its group."""

ENDINGS = (".csv", ".tsv", ".jsonl")
_YES_OR_NO = {"", "0", "1", "0.0", "1.0", "true", "false", "yes", "no", "y", "n"}
_DELIMITERS = ",;\t|"
_SPEC = re.compile(r"(.+?)((?::(?:path|label)=[^:]+)+)")


@dataclass(frozen=True)
class ListFile:
    """A list and the columns that the user named in it, None for those to find out."""

    file: Path
    path_column: str | None = None
    label_column: str | None = None

    def spec(self) -> str:
        """Returns the list's name, absolute and with the columns (see `parse`)."""
        return with_columns(str(self.file.resolve()), self.path_column, self.label_column)


@dataclass(frozen=True)
class Listed:
    """The rows of a list.

    rows: for each image its `path` and, where the list has them, `label`, `split` and `group`, and
    `order` and `how` where these were asked for. reading: which columns were taken, in words; "" where
    these are their names.
    """

    rows: list[dict[str, str]]
    reading: str


def is_list(spec: str) -> bool:
    """Returns whether the name of a source is that of a list."""
    return not spec.startswith("hf:") and parse(spec).file.suffix.lower() in ENDINGS


def parse(spec: str) -> ListFile:
    """Parses the name of a list: FILE, or FILE:path=COLUMN:label=COLUMN."""
    name, path_column, label_column = split_columns(spec)
    if Path(name).suffix.lower() not in ENDINGS:
        return ListFile(Path(spec))
    return ListFile(Path(name), path_column, label_column)


def split_columns(spec: str) -> tuple[str, str | None, str | None]:
    """Returns what `with_columns` was called with, None for a column that is not named."""
    if (match := _SPEC.fullmatch(spec)) is None:
        return spec, None, None
    columns = dict(each.split("=", 1) for each in match[2][1:].split(":"))
    return match[1], columns.get("path"), columns.get("label")


def with_columns(spec: str, path_column: str | None, label_column: str | None) -> str:
    """Returns the name of a list or data set together with those of its columns."""
    path = f":path={path_column}" if path_column else ""
    label = f":label={label_column}" if label_column else ""
    return f"{spec}{path}{label}"


def read_list(named: ListFile, more: tuple[str, ...] = ()) -> Listed:
    """Reads a list. more: further columns that are read where the list has them.

    Cells are returned as they were before `guarded`. An image that comes twice with the same label is
    returned once; if it is in two groups, these become one. A list without a label column, whose other
    columns hold one 1 and else 0 in each row, has the name of the column with the 1 as its label. Raises
    UserError for columns that are not clear, empty paths, an image with several labels, and a file that
    has no rows or cannot be read.
    """
    path = named.file
    columns, numbered = table_of(path)
    taken = _without_classes([row for _, row in numbered], columns, _columns(named, columns, more))
    flags = _flags([row for _, row in numbered], columns, taken)
    if "label" not in taken and not flags:
        free = [column for column in columns if column not in taken.values()]
        column = by_its_end(LABEL_NAMES, free, lambda c: {str(row.get(c)) for _, row in numbered})
        taken |= {"label": column} if column else {}
    rows = []
    for number, row in numbered:
        if None in row or None in row.values():
            raise UserError(
                f"Line {number} of {path} does not have as many fields as the first line.",
                'put names that contain commas in "quotes".',
            )
        found = {name: unguarded(row[column]) for name, column in taken.items()}
        if not found["path"].strip():
            raise UserError(f"Line {number} of {path} names no image.", "fill in its path or remove it.")
        if flags:
            found["label"] = _flagged(path, number, row, flags)
        rows.append(found)
    if not rows:
        raise UserError(f"{path} has no rows.", "write one line for each image: path,label.")
    words = [f"{name} from '{column}'" for name, column in taken.items() if name != column]
    if flags:
        words.append(f"label from the {len(flags)} columns of 0 and 1")
    elif "label" not in taken and len(columns) > len(taken):
        others = [column for column in columns if column not in taken.values()]
        words.append(f"no column of labels among {', '.join(others[:6])}")
    if joined := _join_groups(rows):
        words.append(f"{joined} groups joined to others, of which an image is one too")
    return Listed(_each_once(path, rows), ", ".join(words))


def columns_of(path: Path) -> list[str]:
    """Returns the names of a list's columns. Raises UserError if it cannot be read."""
    return table_of(path)[0]


def table_of(path: Path) -> tuple[list[str], list[tuple[int, dict[Any, Any]]]]:
    """Returns the names of the columns, and the number and cells of each line that is not empty."""
    text = _decoded(path)
    if path.suffix.lower() == ".jsonl":
        return _objects(path, text)
    first = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=lambda each: (first.count(each), -_DELIMITERS.index(each)))
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UserError(f"{path} cannot be read as CSV: {error}.", "save it as UTF-8 CSV.") from None
    # Spreadsheets leave lines of delimiters alone below a table.
    while rows and not any(rows[-1][1].values()):
        rows.pop()
    return list(reader.fieldnames), rows


def _objects(path: Path, text: str) -> tuple[list[str], list[tuple[int, dict[Any, Any]]]]:
    """Returns the lines of a file with a JSON object in each, as `table_of` does."""
    numbered = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError):
            raise UserError(
                f"Line {number} of {path} is not a JSON object.",
                'write one object a line: {"file_name": "1.jpg", "label": "cat"}',
            ) from None
        numbered.append((number, {str(name).strip(): _cell(value) for name, value in row.items()}))
    columns = list(dict.fromkeys(name for _, row in numbered for name in row))
    return columns, [(number, dict.fromkeys(columns, "") | row) for number, row in numbered]


def _cell(value: Any) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _decoded(path: Path) -> str:
    """Returns the text of a file in UTF-8, or in UTF-16 with a mark of its byte order."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read as CSV: {error}.", "save it as UTF-8 CSV.") from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        try:
            return content.decode("utf-16")
        except UnicodeDecodeError:
            raise UserError(f"{path} is not whole UTF-16 text.", "save it as UTF-8 CSV.") from None
    return content.decode("utf-8-sig", "surrogateescape")


def _columns(named: ListFile, columns: list[str], more: tuple[str, ...]) -> dict[str, str]:
    """Returns which column holds each of path, label, split, group and `more`. Raises UserError if it is
    not clear."""
    path, listed = named.file, ", ".join(columns) or "empty"
    taken: dict[str, str] = {}
    given = {"path": named.path_column, "label": named.label_column}
    others = (*_OTHERS, *((name, ((name,),)) for name in more))
    for column in given.values():
        if column is not None and column not in columns:
            raise UserError(
                f"{path} has no column '{column}' (its first line is: {listed}).", "check the spelling."
            )
    for name, groups in (("path", PATH_NAMES), ("label", LABEL_NAMES), *others):
        free = [each for each in columns if each not in (*taken.values(), *given.values())]
        column = given.get(name) or likeliest(path, name, groups, free)
        if column is not None:
            taken[name] = column
    if "path" not in taken:
        raise UserError(
            f"{path} has no column 'path' (its first line is: {listed}).",
            "the first line must be path,label (and split), or name the column: --path-column NAME",
        )
    repeated = [name for name, count in Counter(columns).items() if count > 1]
    for column in taken.values():
        if column in repeated:
            raise UserError(
                f"{path} has the column '{column}' more than once (its first line is: {listed}).",
                "give each column a name of its own.",
            )
    return taken


def likeliest(
    path: str | Path, name: str, groups: tuple[tuple[str, ...], ...], columns: list[str]
) -> str | None:
    """Returns the column with the most telling name, None if there is none. Raises UserError for two."""
    for group in groups:
        found = list(dict.fromkeys(c for c in columns if _normal(c) in group))
        exact = [c for c in found if _normal(c) == name]
        if len(exact or found) == 1:
            return (exact or found)[0]
        if found and name not in ("path", "label"):
            return None
        if found:
            raise UserError(
                f"{path} has several columns that may be the {name}: {', '.join(found)}.",
                f"name the right one: --{name}-column {found[0]}",
            )
    return None


def by_its_end(
    groups: tuple[tuple[str, ...], ...], columns: list[str], cells: Callable[[str], set[str]]
) -> str | None:
    """Returns the one column whose name ends in a telling word (fine_label, bird_species); None where
    there are several, or where its cells only say yes or no (has_label)."""
    words = {word for group in groups[:2] for word in group}
    found = [c for c in dict.fromkeys(columns) if _normal(c).rsplit("_", 1)[-1] in words]
    is_one = len(found) == 1 and {cell.strip().lower() for cell in cells(found[0])} - _YES_OR_NO
    return found[0] if is_one else None


def _normal(column: str) -> str:
    return re.sub(r"[^\w]+", "_", column.lower())


def _flags(rows: list[dict[Any, Any]], columns: list[str], taken: dict[str, str]) -> list[str]:
    """Returns the columns, one for each class, that hold 0 and 1; none where labels are named."""
    others = [column for column in columns if column not in taken.values()]
    if "label" in taken or len(others) < 2:
        return []
    cells = {str(row.get(column)).strip() for row in rows for column in others}
    return others if cells and cells <= {"0", "1", "0.0", "1.0"} else []


def _without_classes(
    rows: list[dict[Any, Any]], columns: list[str], taken: dict[str, str]
) -> dict[str, str]:
    """Returns which column holds what, without one called split, group or so that is a class: one of the
    columns of 0 and 1, of which no row has two with a 1."""
    for name in [each for each in taken if each not in ("path", "label")]:
        others = {each: column for each, column in taken.items() if each != name}
        flags = _flags(rows, columns, others)
        if taken.get(name) in flags and all(sum(float(row[c]) for c in flags) <= 1 for row in rows):
            taken = others
    return taken


def _flagged(path: Path, number: int, row: dict[Any, Any], flags: list[str]) -> str:
    """Returns the one column whose cell is 1, "" if none is. Raises UserError for several."""
    found = [column for column in flags if float(row[column]) == 1]
    if len(found) > 1:
        raise UserError(
            f"Line {number} of {path} gives an image several labels: {', '.join(found)}.",
            "an image has one label: keep one, or name a column: --label-column NAME",
        )
    return found[0] if found else ""


def _join_groups(rows: list[dict[str, str]]) -> int:
    """Gives groups that share an image one name: all of them stay on one side of every split. Returns
    how many have another name now."""
    renamed: dict[str, str] = {}

    def name_of(group: str) -> str:
        while (other := renamed.get(group)) is not None:
            # Shorter for the next time: chains of groups may be long.
            renamed[group] = group = renamed.get(other, other)
        return group

    first: dict[str, str] = {}
    for row in rows:
        if group := name_of(row.get("group", "").strip()):
            before = name_of(first.setdefault(row["path"], group))
            if before != group:
                renamed[group] = before
    if renamed or first:
        for row in rows:
            row["group"] = name_of(first.get(row["path"], ""))
    return len(renamed)


_OF_IMAGE = ("path", "label", "split", "group")
"""What an image has one of, however often a list names it."""


def _each_once(path: Path, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Returns each image once. Raises UserError for one with several labels or splits."""
    first: dict[str, dict[str, str]] = {}
    for row in rows:
        before = first.setdefault(row["path"], row)
        differ = next((name for name in row if name in _OF_IMAGE and before[name] != row[name]), None)
        if differ is not None:
            raise UserError(
                f"{path} gives {row['path']} two {differ}s, '{before[differ]}' and '{row[differ]}'.",
                "give each image one line: an image has one label.",
            )
    return list(first.values())
