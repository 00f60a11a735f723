"""What the headers of a source's files say: formats, sizes, colours, bits."""

import io
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from clfew.data.decode import MAX_PIXELS, BadImage
from clfew.data.header import Header, read_header
from clfew.data.source import Source
from clfew.data.splits import evenly_spaced
from clfew.data.workers import decoders
from clfew.quality.finding import Finding

MOST = 100_000
"""The most headers that are read; of more images, those of as many spread evenly."""

SMALL = 16
"""An image with a side of fewer pixels shows next to nothing."""

_AT_ONCE = 512

TELLING, FEWEST = 0.25, 20
"""How much more often a class is guessed by the form of a file alone than by always naming the largest
class, in classes of at least FEWEST images, if the form is a shortcut to the class."""


@dataclass(frozen=True)
class Headers:
    """The headers that were read. indices: int64 (H,), of which images. headers: of each, or the reason
    why it has none."""

    indices: np.ndarray
    headers: list[Header | BadImage]

    @property
    def good(self) -> list[tuple[int, Header]]:
        pairs = zip(self.indices.tolist(), self.headers, strict=True)
        return [(index, each) for index, each in pairs if isinstance(each, Header)]


def read_headers(
    source: Source, progress: Callable[[int, int], None] = lambda done, total: None
) -> Headers:
    """Reads the headers of a source's files, at most MOST of them."""
    indices = evenly_spaced(np.arange(len(source)), MOST)
    headers: list[Header | BadImage] = []
    with ThreadPoolExecutor(4 * decoders()) as threads:  # A disk far away answers several at once.
        for start in range(0, len(indices), _AT_ONCE):  # Ctrl-C waits for what was begun.
            some = indices[start : start + _AT_ONCE].tolist()
            headers += threads.map(lambda index: _header(source, index), some)
            progress(len(headers), len(indices))
    return Headers(indices, headers)


def _header(source: Source, index: int) -> Header | BadImage:
    try:
        if source.path_of is not None:
            return read_header(source.path_of(index))
        return read_header(io.BytesIO(source.content(index)))
    except BadImage as error:
        return error


def summary_of(found: Headers) -> dict[str, Any]:
    """Returns numbers of formats and kinds of pixels, and the smallest, middle and largest sides."""
    good = [header for _, header in found.good]
    sides = np.array([(each.width, each.height) for each in good]).reshape(-1, 2)
    quantiles = {"smallest": 0.0, "middle": 0.5, "largest": 1.0}
    return {
        "headers": len(found.indices),
        "formats": dict(Counter(each.format for each in good).most_common()),
        "pixels": dict(Counter(each.pixels for each in good).most_common()),
        "shorter_side": {k: int(np.quantile(sides.min(1), q)) for k, q in quantiles.items()}
        if good
        else {},
        "longer_side": {k: int(np.quantile(sides.max(1), q)) for k, q in quantiles.items()}
        if good
        else {},
    }


def findings_in_headers(source: Source, found: Headers) -> list[Finding]:
    """Returns files without a header of an image, very small and very large images, and classes that the
    form of the files gives away."""
    pairs = zip(found.indices.tolist(), found.headers, strict=True)
    bad = [(index, str(each)) for index, each in pairs if isinstance(each, BadImage)]
    small = [i for i, each in found.good if min(each.width, each.height) < SMALL]
    large = [i for i, each in found.good if each.width * each.height > MAX_PIXELS]
    findings = []
    if bad:
        says = "They are skipped: replace them, or remove them."
        sets, notes = [[index] for index, _ in bad], [reason for _, reason in bad]
        title = "files that are no image by their header"
        findings.append(Finding("no_image", title, says, True, len(bad), sets, notes))
    if small:
        says = f"With fewer than {SMALL} pixels a side they show next to nothing: thumbnails, or icons."
        sets = [[index] for index in small]
        findings.append(Finding("small", "very small images", says, False, len(small), sets))
    if large:
        says = f"Images of more than {MAX_PIXELS:,} pixels are skipped: make them smaller."
        sets = [[index] for index in large]
        findings.append(Finding("large", "images that are too large", says, True, len(large), sets))
    return [*findings, *_shortcuts(source, found)]


def _shortcuts(source: Source, found: Headers) -> list[Finding]:
    """Returns which property of the files tells their classes, if one does."""
    known = [(i, header) for i, header in found.good if source.labels[i] >= 0]
    sizes = Counter(int(source.labels[i]) for i, _ in known)
    known = [(i, header) for i, header in known if sizes[int(source.labels[i])] >= FEWEST]
    if len({int(source.labels[i]) for i, _ in known}) < 2:
        return []
    largest = max(Counter(int(source.labels[i]) for i, _ in known).values()) / len(known)
    notes = []
    for what in ("format", "pixels", "size"):
        by_form: dict[str, Counter[int]] = {}
        for i, header in known:
            by_form.setdefault(getattr(header, what), Counter())[int(source.labels[i])] += 1
        # A form of few images tells their class by chance.
        guessed = sum(
            max(each.values()) for each in by_form.values() if sum(each.values()) >= FEWEST
        ) / len(known)
        if guessed - largest > TELLING * (1 - largest):
            notes.append(f"their {what} alone: {_by_form(source, by_form)}")
    if not notes:
        return []
    says = (
        "Files of one class look like one another for another reason than what they show. A classifier "
        "may learn that instead; look whether the classes come from different cameras or programs."
    )
    return [
        Finding("shortcuts", "classes told by the form of the files", says, True, len(notes), [], notes)
    ]


def _by_form(source: Source, by_form: dict[str, Counter[int]]) -> str:
    told = sorted(by_form.items(), key=lambda each: -sum(each[1].values()))[:3]
    return ", ".join(
        f"{form} is {source.classes[counts.most_common(1)[0][0]]} in "
        f"{max(counts.values()):,} of {sum(counts.values()):,}"
        for form, counts in told
    )
