"""What has been decided, made from the events of the log, one after the other.

Events name images by their names in the source, so that they hold wherever the images lie:

    {"do": "listed", "rows": [[name, label, split, order, how, group], …]}   the list that it began with
    {"do": "asked", "images": […], "how": "chosen (herding)"}     images to label, in their order
    {"do": "test", "images": […], "how": "random"}                the test sample, in its order
    {"do": "class", "class": 3, "name": "lynx"}
    {"do": "label", "image": name, "class": 3}     with "name", it makes the class; 0: "none of these"
    {"do": "skip", "image": name}    {"do": "unsure", "image": name}
    {"do": "page", "class": 3, "labels": {name: class, …}, "wrong": [name, …]}
    {"do": "rename", "class": 3, "name": …}    {"do": "merge", "class": 3, "into": 2}
    {"do": "delete", "class": 3}
    {"do": "again", "images": {name: class, …}}    labels to ask once more, with the neighbours' class
    {"do": "served", "port": 8123}
    {"do": "undo", "of": 17}
    {"do": "list", "digest": …}                      of labels.csv, before it is written

Each may have "request": what is sent twice is done once.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from clfew.labelling.log import Event

NONE, NONE_NAME = 0, "none of these"
"""The class of images that belong to none of the others. It is a label like any other: a classifier that
learns it can say it."""

LABEL, SKIP, UNSURE, WRONG = "label", "skip", "unsure", "wrong"
"""What is decided of an image: a label; to come back at the end; to stay without a label; to be asked
next, as it was marked wrong in a page."""

BY_ONE, ON_PAGE, LISTED = "by one", "on a page", "listed"

KINDS = (LABEL, SKIP, UNSURE, WRONG)
OF_CLASSES = ("class", "rename", "merge", "delete")
UNDOABLE = ("label", "skip", "unsure", "page", *OF_CLASSES)
KEYS = tuple("123456789")
DIGITS = ("0", *KEYS)


@dataclass
class LabelClass:
    """A class. key: the digit that stands for it, None where there was none left."""

    number: int
    name: str
    key: str | None = None


@dataclass(frozen=True)
class Decision:
    """What event `n` decided of an image. label: the number of the class, None for no label. how:
    BY_ONE, ON_PAGE, or LISTED, in the list that it began with."""

    n: int
    kind: str
    label: int | None = None
    how: str = BY_ONE


@dataclass(frozen=True)
class Again:
    """A label that is asked once more since event `n`. neighbours: the class that its neighbours
    have."""

    n: int
    neighbours: int


@dataclass
class State:
    """What has been decided.

    classes: by number, in the order in which they were made. asked, tests: the images to label and those
    to test on, in their order, with how they came there. again: images that are asked once more, in
    their order. listed: the rows of the list that it began with. requests: of the decisions that were
    made. history: events that can be undone, oldest first. pages, singles: how many of them are pages,
    and decisions one by one of images to learn from. current: what holds of each image of which
    something does, the last decision last; its label is what the class has become. counts: how many
    images have each class.
    """

    classes: dict[int, LabelClass] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    tests: dict[str, str] = field(default_factory=dict)
    again: dict[str, Again] = field(default_factory=dict)
    listed: list[list[Any]] = field(default_factory=list)
    requests: set[str] = field(default_factory=set)
    history: list[Event] = field(default_factory=list)
    pages: int = 0
    singles: int = 0
    current: dict[str, Decision] = field(default_factory=dict)
    counts: Counter[int] = field(default_factory=Counter)
    _of_image: dict[str, list[Decision]] = field(default_factory=dict)
    _of_kind: dict[str, dict[str, None]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    _of_classes: list[Event] = field(default_factory=list)
    _became: dict[int, int | None] = field(default_factory=dict)
    _last: int = NONE

    @classmethod
    def of(cls, events: Iterable[Event]) -> "State":
        """Returns what events have decided."""
        state = cls()
        for event in events:
            state.apply(event)
        return state

    def apply(self, event: Event) -> None:
        """Does what an event says."""
        do = event["do"]
        if event.get("request"):
            self.requests.add(event["request"])
        if do == "undo":
            self._undo(event["of"])
            return
        if do in UNDOABLE:
            self.history.append(event)
            self._count(event, 1)
        if do in OF_CLASSES or "name" in event:
            self._of_classes.append(event)
            self._change_classes(event)
            if do in ("merge", "delete"):
                self._refresh_all()
        if do in (LABEL, SKIP, UNSURE):
            self._decide(event["image"], Decision(event["n"], do, event.get("class")))
        elif do == "page":
            for name, label in event["labels"].items():
                self._decide(name, Decision(event["n"], LABEL, label, ON_PAGE))
            for name in event["wrong"]:
                self._decide(name, Decision(event["n"], WRONG, how=ON_PAGE))
        elif do == "asked":
            self.asked |= dict.fromkeys(event["images"], event["how"])
        elif do == "test":
            self.tests |= dict.fromkeys(event["images"], event["how"])
        elif do == "again":
            self.again |= {name: Again(event["n"], n) for name, n in event["images"].items()}
        elif do == "listed":
            self._begin(event)

    def label(self, image: str) -> int | None:
        """Returns the number of the class of an image, None without a label."""
        made = self.current.get(image)
        return made.label if made is not None else None

    def of_kind(self, kind: str) -> list[str]:
        """Returns the images of which a kind of decision holds, in the order of the decisions."""
        return list(self._of_kind[kind])

    def now(self, number: int | None) -> int | None:
        """Returns what a class has become: another one where it was merged, None where it was
        deleted."""
        while number is not None and number in self._became:
            number = self._became[number]
        return number if number == NONE or number in self.classes else None

    def name_of(self, number: int) -> str:
        return NONE_NAME if number == NONE else self.classes[number].name

    def number_of(self, name: str) -> int | None:
        """Returns the number of the class of a name, whatever the case of its letters if none has it as
        it is and no two differ in nothing else; None for no class."""
        names = {NONE: NONE_NAME} | {each.number: each.name for each in self.classes.values()}
        # Two have one name where that of one of them was given again, and then came back by undo.
        exact = [number for number, each in names.items() if each == name]
        alike = [number for number, each in names.items() if each.casefold() == name.casefold()]
        return exact[0] if exact else alike[0] if len(alike) == 1 else None

    def next_number(self) -> int:
        """Returns a number that no class has had."""
        return self._last + 1

    def keys(self) -> dict[int, str | None]:
        """Returns the key of each class. Where a class without a key begins with a digit, none has one:
        then digits begin its name."""
        found = {each.number: each.key for each in self.classes.values()}
        without = [self.classes[number].name for number, key in found.items() if key is None]
        return dict.fromkeys(found) if any(name[0].isdigit() for name in without) else found

    def _begin(self, event: Event) -> None:
        """Takes over the rows of the list that it began with."""
        self.listed = event["rows"]
        number_of = {each.name: each.number for each in self.classes.values()} | {NONE_NAME: NONE}
        for name, label, *_ in self.listed:
            if label:
                self._decide(name, Decision(event["n"], LABEL, number_of[label], LISTED))

    def _decide(self, image: str, decision: Decision) -> None:
        self._of_image.setdefault(image, []).append(decision)
        self._refresh(image)

    def _refresh(self, image: str) -> None:
        """Finds out what holds of an image: nothing where nothing was decided, or its class was
        deleted."""
        if (before := self.current.pop(image, None)) is not None:
            del self._of_kind[before.kind][image]
            if before.label is not None:
                self.counts[before.label] -= 1
        made = self._of_image.get(image)
        if not made:
            return
        now = made[-1]
        if now.kind == LABEL:
            now = replace(now, label=self.now(now.label))
            if now.label is None:
                return
            self.counts[now.label] += 1
        self.current[image] = now
        self._of_kind[now.kind][image] = None

    def _undo(self, number: int) -> None:
        """Takes back an event: what held before it holds again. A class that it made stays if images
        have it."""
        places = reversed(range(len(self.history)))
        place = next((i for i in places if self.history[i]["n"] == number), None)
        if place is None:
            return
        event = self.history.pop(place)
        self._count(event, -1)
        images = [*event.get("labels", ()), *event.get("wrong", ())]
        had_more = False
        for image in [event["image"]] if "image" in event else images:
            left = [each for each in self._of_image[image] if each.n != number]
            self._of_image[image] = left
            self._refresh(image)
            had_more |= bool(left)
        makes = event["do"] in ("class", LABEL)
        if event in self._of_classes and not (makes and self._is_used(event["class"])):
            self._of_classes.remove(event)
            self.classes, self._became = {}, {}
            for each in self._of_classes:
                self._change_classes(each)
            had_more = True
        if had_more:  # In the order of the decisions that hold again.
            self._refresh_all()

    def _refresh_all(self) -> None:
        for image in sorted(
            self._of_image, key=lambda name: [each.n for each in self._of_image[name][-1:]]
        ):
            self._refresh(image)

    def _count(self, event: Event, times: int) -> None:
        if event["do"] == "page":
            self.pages += times
        elif "image" in event and event["image"] not in self.tests:
            self.singles += times

    def _is_used(self, number: int) -> bool:
        """Returns whether images have a class, or one that was merged into it."""
        labels = {each.label for made in self._of_image.values() for each in made}
        return any(number in (label, self.now(label)) for label in labels)

    def _change_classes(self, event: Event) -> None:
        do, number = event["do"], event["class"]
        self._last = max(self._last, number)
        if do in ("class", LABEL):
            self.classes[number] = LabelClass(number, event["name"])
        elif number not in self.classes:  # An event that made it has been undone since.
            return
        elif do == "rename":
            self.classes[number].name = event["name"]
        else:
            del self.classes[number]
            self._became[number] = event["into"] if do == "merge" else None
        self._give_keys()

    def _give_keys(self) -> None:
        """Gives each class without a key what is left of 1 to 9, in the order in which they were made;
        the others keep theirs. A class whose name is a digit has it as its key."""
        own = {each.name for each in self.classes.values() if each.name in DIGITS}
        for each in self.classes.values():
            if each.name in own:
                each.key = each.name
            elif each.key in own or each.key == "0":
                each.key = None
        taken = {each.key for each in self.classes.values()}
        left = iter([key for key in KEYS if key not in taken])
        for each in self.classes.values():
            if each.key is None:
                each.key = next(left, None)
