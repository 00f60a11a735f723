"""check.html: what `clfew check` found, with the pictures side by side, in one page without network."""

from pathlib import Path
from typing import Any

from clfew.console import printable
from clfew.data.cache_folder import ImageCache
from clfew.data.source import Source
from clfew.quality.finding import Finding
from clfew.quality.listing import classes_in_words
from clfew.report.render import render_page
from clfew.report.shot import shot_of
from clfew.runs.files import write_text

SETS, IN_SET, NOTES = 48, 8, 200
"""The most sets of a finding, pictures of a set, and lines of a finding without pictures on the page."""


def write_check_page(
    path: Path, source: Source, cache: ImageCache | None, findings: list[Finding], result: dict[str, Any]
) -> None:
    """Writes the page. cache: where the images are decoded, None where they are not. result: the content
    of check.json. Raises UserError if it cannot be written."""
    ordered = sorted(findings, key=lambda each: not each.needs_person)
    shown = [_shown(source, cache, each) for each in ordered]
    filters = {"count": lambda number: f"{number:,}"}
    page = render_page("check.html", filters, result=result, findings=shown)
    # A lone surrogate, from a file name that is not UTF-8, cannot be encoded and is replaced.
    write_text(path, page.encode("utf-8", "replace").decode())


def _shown(source: Source, cache: ImageCache | None, finding: Finding) -> dict[str, Any]:
    """Returns what the page shows of a finding."""
    sets: list[dict[str, Any]] = [
        {
            "images": [
                shot_of(source, cache, image) | {"class": printable(classes_in_words(source, image))}
                for image in images[:IN_SET]
            ],
            "more": max(0, len(images) - IN_SET),
            "note": finding.notes[i] if i < len(finding.notes) and len(images) < 2 else "",
        }
        for i, images in enumerate(finding.sets[:SETS])
    ]
    lines = [] if finding.sets else finding.notes
    return {
        "finding": finding,
        "sets": sets,
        "is_single": all(len(each["images"]) == 1 for each in sets),
        "more_sets": max(0, len(finding.sets) - SETS),
        "lines": lines[:NOTES],
        "more_lines": max(0, len(lines) - NOTES),
    }
