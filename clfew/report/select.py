"""to_label.html: a contact sheet of what is to be labelled, in one page without network."""

from pathlib import Path
from typing import Any

from clfew.data.cache_folder import ImageCache
from clfew.data.label_lists import LabelRow
from clfew.data.source import Source
from clfew.report.render import render_page
from clfew.report.shot import shot_of
from clfew.runs.files import write_text

MOST = 1000
"""The most images of each part of the page."""


def write_select_page(
    path: Path, source: Source, cache: ImageCache, rows: list[LabelRow], result: dict[str, Any]
) -> None:
    """Writes the page. rows: of to_label.csv. result: the content of select.json. Raises UserError if it
    cannot be written."""
    tested = set(result["test"])
    is_test = [source.identities[row.index] in tested for row in rows]
    parts = [
        _part("to learn from", source, cache, [r for r, t in zip(rows, is_test, strict=True) if not t]),
        _part("to test on", source, cache, [r for r, t in zip(rows, is_test, strict=True) if t]),
    ]
    filters = {"count": lambda number: f"{number:,}"}
    page = render_page("to_label.html", filters, result=result, parts=[p for p in parts if p["total"]])
    # A lone surrogate, from a file name that is not UTF-8, cannot be encoded and is replaced.
    write_text(path, page.encode("utf-8", "replace").decode())


def _part(name: str, source: Source, cache: ImageCache, rows: list[LabelRow]) -> dict[str, Any]:
    """Returns what the page shows of some rows: those without a label first."""
    ordered = sorted(rows, key=lambda row: bool(row.label))
    return {
        "name": name,
        "total": len(rows),
        "open": sum(not row.label for row in rows),
        "shots": [
            shot_of(source, cache, row.index) | {"label": row.label, "order": row.order, "how": row.how}
            for row in ordered[:MOST]
        ],
        "more": max(0, len(rows) - MOST),
    }
