"""What a session of labelling has on the table: the decisions, the images that are open, the
classifier's answers and the page that is shown."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from clfew.labelling import pages
from clfew.labelling.assistant import Fit, Labels, Verdict
from clfew.labelling.log import Event
from clfew.labelling.pages import Choice, Page
from clfew.labelling.state import LABEL, ON_PAGE, SKIP, UNSURE, State
from clfew.labelling.work import Work

FEWEST_LABELS = 10
"""With fewer labels no page is proposed."""


LAST_PAGES = 2


@dataclass
class Board:
    """What is on the table.

    names: of all images of the source; their places are the numbers by which the page knows them. work:
    the images that are worked on. budget: how many images to learn from may be labelled, None for all.
    decided: what has been decided. fit, verdict: what the classifier says, and how good it is; None
    without one. order, asked_class: of the pages that were asked for, None for the class that comes by
    itself. gone: images that cannot be shown. is_open: bool (N,), of which images that are worked on
    nothing was decided.
    """

    names: list[str]
    work: Work
    budget: int | None
    decided: State = field(default_factory=State)
    fit: Fit | None = None
    verdict: Verdict | None = None
    order: str = pages.MIXED
    asked_class: int | None = None
    gone: set[str] = field(default_factory=set)
    page: Page | None = None
    is_open: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.is_open = np.ones(len(self.work.names), bool)

    @cached_property
    def numbers(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    def number(self, row: int) -> int:
        """Returns the number of an image that is worked on."""
        return self.numbers[self.work.names[row]]

    def is_there(self, name: str) -> bool:
        return name in self.numbers and name not in self.gone

    def learned(self) -> list[str]:
        """Returns the images to learn from that have a label, in the order of the decisions."""
        return [name for name in self.decided.of_kind(LABEL) if name not in self.decided.tests]

    def counts(self) -> Counter[int | None]:
        """Returns how many images to learn from have each class: those of the test sample must not tell
        what is learned from."""
        return Counter(map(self.decided.label, self.learned()))

    def budget_left(self) -> int | None:
        """Returns how many images to learn from may still be labelled, None for all."""
        if self.budget is None:
            return None
        listed = {row[0] for row in self.decided.listed if row[1]}
        return max(0, self.budget - sum(name not in listed for name in self.learned()))

    def labels(self) -> Labels | None:
        """Returns the labels to learn from, one of each picture; None where they are not of two
        classes."""
        made = {}
        for name in self.learned():
            if (row := self.work.rows.get(name)) is not None:
                made[row] = self.decided.current[name]
        numbers = sorted({each.label for each in made.values() if each.label is not None})
        if len(numbers) < 2:
            return None
        place_of = {number: place for place, number in enumerate(numbers)}
        places = [place_of[each.label] for each in made.values() if each.label is not None]
        by_one = [each.how != ON_PAGE for each in made.values()]
        return Labels(np.array(list(made), np.int64), np.array(places), numbers, np.array(by_one))

    def refresh_open(self, event: Event | None = None) -> None:
        """Finds out which images are open after an event, or anew."""
        if event is not None and event["do"] in (LABEL, SKIP, UNSURE):
            names = [event["image"]]
        else:
            self.is_open[:] = True
            names = [*self.decided.current, *self.gone]
        for name in names:
            row = self.work.rows.get(name)
            if row is not None and (name in self.decided.current or name in self.gone):
                self.is_open[row] = False

    def why_no_page(self) -> str | None:
        """Returns in words why there are no pages, None where there are some."""
        learned = self.learned()
        if len({self.decided.label(name) for name in learned}) < 2:
            return "Pages need labels of two classes."
        if len(learned) < FEWEST_LABELS:
            return f"Pages need {FEWEST_LABELS} labels."
        if self.fit is None:
            return "The classifier is being fitted."
        if self.budget_left() == 0:
            return "As many images have been labelled as --budget allows."
        return None if self.is_open.any() else "Every image has been labelled."

    def choices(self) -> list[Choice]:
        """Returns the classes of which there is a page, the one that comes first by itself first."""
        if self.fit is None or self.why_no_page() is not None:
            return []
        found = pages.choices(self.fit, self.is_open, self.counts(), self._seen())
        return [each for each in found if self.decided.now(each.label) == each.label]

    def _seen(self) -> dict[int, tuple[int, int]]:
        """Returns of the last LAST_PAGES pages of each class, how many images were right, and how many
        there were."""
        of_class: dict[int, list[tuple[int, int]]] = {}
        for event in reversed(self.decided.history):
            if event["do"] == "page" and (label := self.decided.now(event["class"])) is not None:
                right = sum(each == event["class"] for each in event["labels"].values())
                shown = len(event["labels"]) + len(event["wrong"])
                of_class.setdefault(label, []).append((right, shown))
        return {
            label: (sum(right for right, _ in last), sum(shown for _, shown in last))
            for label, found in of_class.items()
            for last in [found[:LAST_PAGES]]
        }

    def current_page(self, found: list[Choice]) -> Page | None:
        """Returns the page to show: it stays until it has been accepted, or images in it were decided
        otherwise. found: see `choices`."""
        page, fit, left = self.page, self.fit, self.budget_left()
        is_same = page is not None and self.decided.now(page.label) == page.label
        fits = page is not None and (left is None or len(page.rows) <= left)
        if page is not None and is_same and fits and all(self.is_open[row] for row in page.rows):
            return page
        self.page = None
        if fit is None or not found:
            return None
        is_there = self.asked_class in {each.label for each in found}
        label = self.asked_class if self.asked_class is not None and is_there else found[0].label
        counts = self.counts()
        is_rare = 3 * counts[label] * len(counts) < counts.total()
        few = counts[label] < pages.FEW_LABELS and is_rare
        most = pages.SIZE if left is None else min(left, pages.SIZE)
        groups = self.work.pool.groups
        new = pages.page_of(fit, label, self.order, self.is_open, groups, few, most)
        self.page = new if new.rows else None
        return self.page
