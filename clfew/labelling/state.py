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
KEYS = "123456789"


@dataclass
class LabelClass:
    """A class. slot: its place among those with a key, None where there was none left."""

    number: int
    name: str
    slot: int | None = None


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
    their order. listed: the rows of the list that it began with. digests: of the lists that were
    written. requests: of the decisions that were made. history: events that can be undone, oldest first.
    current: what holds of each image of which something does, the last decision last; its label is what
    the class has become. counts: how many images have each class.
    """

    classes: dict[int, LabelClass] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    tests: dict[str, str] = field(default_factory=dict)
    again: dict[str, Again] = field(default_factory=dict)
    listed: list[list[Any]] = field(default_factory=list)
    digests: set[str] = field(default_factory=set)
    requests: set[str] = field(default_factory=set)
    history: list[Event] = field(default_factory=list)
    current: dict[str, Decision] = field(default_factory=dict)
    counts: Counter[int] = field(default_factory=Counter)
    _of_image: dict[str, list[Decision]] = field(default_factory=dict)
    _of_kind: dict[str, dict[str, None]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    _of_classes: list[Event] = field(default_factory=list)
    _became: dict[int, int | None] = field(default_factory=dict)
    _last: int = NONE

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
        elif do == "list":
            self.digests.add(event["digest"])
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
        if name == NONE_NAME:
            return NONE
        exact = [each.number for each in self.classes.values() if each.name == name]
        alike = [
            each.number for each in self.classes.values() if each.name.casefold() == name.casefold()
        ]
        found = exact or alike
        return found[0] if len(found) == 1 else None

    def next_number(self) -> int:
        """Returns a number that no class has had."""
        return self._last + 1

    def keys(self) -> dict[int, str | None]:
        """Returns the key of each class: a class whose name is a digit has it as its key, the others
        have what is left of 1 to 9 in the order in which they were made. Where a class without a key
        begins with a digit, none has one: then digits begin its name."""
        digits = {each.name for each in self.classes.values() if each.name in (*KEYS, "0")}
        left = iter([key for key in KEYS if key not in digits])
        found: dict[int, str | None] = {}
        for each in sorted(self.classes.values(), key=lambda each: each.slot or 10**9):
            found[each.number] = each.name if each.name in digits else next(left, None)
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
        event = next((each for each in self.history if each["n"] == number), None)
        if event is None:
            return
        self.history.remove(event)
        images = [*event.get("labels", ()), *event.get("wrong", ())]
        for image in [event["image"]] if "image" in event else images:
            left = [each for each in self._of_image[image] if each.n != number]
            self._of_image[image] = left
            self._refresh(image)
        makes = event["do"] in ("class", LABEL)
        if event in self._of_classes and not (makes and self._is_used(event["class"])):
            self._of_classes.remove(event)
            self.classes, self._became = {}, {}
            for each in self._of_classes:
                self._change_classes(each)
            self._refresh_all()

    def _refresh_all(self) -> None:
        for image in sorted(
            self._of_image, key=lambda name: [each.n for each in self._of_image[name][-1:]]
        ):
            self._refresh(image)

    def _is_used(self, number: int) -> bool:
        return any(each.label == number for made in self._of_image.values() for each in made)

    def _change_classes(self, event: Event) -> None:
        do, number = event["do"], event["class"]
        self._last = max(self._last, number)
        if do in ("class", LABEL):
            taken = {each.slot for each in self.classes.values()}
            slot = next((i for i in range(1, 10) if i not in taken), None)
            self.classes[number] = LabelClass(number, event["name"], slot)
        elif number not in self.classes:  # An event that made it has been undone since.
            return
        elif do == "rename":
            self.classes[number].name = event["name"]
        else:
            del self.classes[number]
            self._became[number] = event["into"] if do == "merge" else None
