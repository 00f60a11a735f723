"""The page of `clfew label` in a real browser, which the real command serves.

It needs the package playwright and a Chromium that is there already: `chromium` on the PATH, as Debian
has it, or the one that CLFEW_CHROMIUM names.
"""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import CLFEW, SHORT, paint
from marks import rest_is_slow
from PIL import Image

import clfew.labelling
from clfew.labelling.server import LabelServer, Refused

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = os.environ.get("CLFEW_CHROMIUM") or shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium is installed, and CLFEW_CHROMIUM names none"
)

COMMAND = f"""{SHORT}
import runpy, sys
sys.argv[0] = {str(CLFEW)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs the installed command, which fits not as long as a user's does."""
CLASSES = ("red", "green", "blue")
SIZES = ((400, 800), (1600, 1000))
SECONDS = 60
"""Longer than anything takes on a busy machine."""
CONTROLS = "button|textbox|combobox|dialog|img|group|region"
FAILED = (
    "Failed to load resource: net::ERR_",
    "Failed to load resource: the server responded with a status of 403",
)
GONE = 99
READY = "#stage[data-ready=yes]"
MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def start(tmp_path_factory, clfew):
    """Photos without class folders, whose names begin with their class, and an encoder. Read only."""
    folder = tmp_path_factory.mktemp("labelled")
    paint(folder / "painted", CLASSES, each=30)
    (folder / "photos").mkdir()
    for file in (folder / "painted").rglob("*.png"):
        file.rename(folder / f"photos/{file.parent.name}-{file.name}")
    shutil.rmtree(folder / "painted")
    clfew.ok("pretrain", "photos", "--encoder", "resnet8-w8", "--epochs", 1, cwd=folder)
    return folder


@pytest.fixture
def project(start, tmp_path):
    return Path(shutil.copytree(start, tmp_path / "project"))


@contextmanager
def served(clfew, folder, *arguments):
    """Runs `clfew label`; gives the process, which has `address`, and `said()`, all that it has
    printed."""
    with open(folder / "stdout", "w") as stdout, open(folder / "stderr", "w") as stderr:
        argv = [sys.executable, "-c", COMMAND, "label", *map(str, arguments), "--no-browser"]
        process = subprocess.Popen(argv, cwd=folder, env=clfew.env, stdout=stdout, stderr=stderr)
        try:
            process.said = lambda: (folder / "stderr").read_text()
            process.printed = lambda: (folder / "stdout").read_text()
            deadline = time.monotonic() + SECONDS
            while not (found := re.search(r"(http://127\.0\.0\.1:\d+/)\?token=\S+\n", process.said())):
                assert process.poll() is None and time.monotonic() < deadline, process.said()
                time.sleep(0.05)
            process.address, process.base = found[0].strip(), found[1]
            yield process
        finally:
            process.kill()
            process.wait()


class Window:
    """A window with the page: what is pressed in it, what it asks for, and what it complains about."""

    def __init__(self, context, address, photos):
        self.page, self.base = context.new_page(), address.partition("?")[0]
        self.names = sorted(each.name for each in photos.iterdir())
        self.asked, self.complaints = [], []
        self.page.set_default_timeout(1000 * SECONDS)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)
        self.page.goto(address)

    def _heard(self, message):
        if message.type in ("error", "warning") and not message.location["url"].endswith("/favicon.ico"):
            self.complaints.append(message.text)

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def type(self, text):
        self.page.keyboard.type(text)

    def button(self, name):
        return self.page.get_by_role("button", name=name, exact=True)

    def wait(self, selector, state="visible"):
        self.page.wait_for_selector(selector, state=state)

    def is_settled(self):
        """Waits until all is saved and the next image is shown."""
        self.wait("#saving:not(.on)", "attached")
        self.wait(READY)

    def is_one_by_one(self):
        return self.page.is_visible("#one")

    def number(self):
        return int(self.page.get_attribute("#image", "data-image"))

    def state(self):
        return self.page.request.get(self.base + "state").json()

    def answer(self, how):
        """Does how(name of the image) with the image that is asked. Returns its name once that is saved,
        None if a page is shown instead. What is pressed just after something else came up does nothing,
        so that it may have to be pressed again."""
        while True:
            self.is_settled()
            if not self.is_one_by_one():
                return None
            number = self.number()
            how(self.names[number])
            self.wait("#saving:not(.on)", "attached")
            last = self.state()["history"][:1]
            if last and last[0]["image"] == number:
                return self.names[number]

    def assert_fits(self):
        """Nothing is wider than the window, small or large, light or dark, and each control has a
        name."""
        for width, height in SIZES:
            self.page.set_viewport_size({"width": width, "height": height})
            for scheme in ("light", "dark"):
                self.page.emulate_media(color_scheme=scheme)
                wide = self.page.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, (width, scheme, self.page.inner_text("body"))
        shown = self.page.locator("body").aria_snapshot()
        assert not re.findall(rf"- (?:{CONTROLS})(?: \[.*\])?:?$", shown, re.MULTILINE), shown

    def assert_no_complaint(self, *expected):
        """expected: beginnings of what may be complained about."""
        assert [each for each in self.complaints if not each.startswith(expected)] == []
        assert [each for each in self.asked if not each.startswith(self.base)] == []


class Person:
    """Presses the key of the class of each image, and keeps in mind what was pressed."""

    def __init__(self, window):
        self.window, self.classes, self.pressed = window, [], {}

    def name(self, image):
        """Says by its key which class an image has, or by its name where there is none yet."""
        label = image.split("-")[0]
        if label in self.classes:
            self.window.press(str(1 + self.classes.index(label)))
            return
        self.window.press("+")
        self.window.type(label)
        self.window.press("Enter")
        self.classes.append(label)

    def label(self, how=None, as_what=None):
        """Labels the image that is asked. Returns its name, None if a page is shown instead."""
        image = self.window.answer(how or self.name)
        if image is not None:
            self.pressed[image] = as_what or image.split("-")[0]
        return image

    def label_until(self, is_done):
        while not is_done() and self.label():
            pass


def table(file):
    with open(file, newline="", encoding="utf-8") as opened:
        return {row["path"]: row for row in csv.DictReader(opened)}


@pytest.mark.slow
def test_from_photos_to_predictions(clfew, chromium, project):
    """40 images by their keys, a page, a reload, a server that is killed, classes that change, the
    end."""
    context = chromium.new_context()
    with served(clfew, project, "photos", "--test", 12) as process:
        window = Window(context, process.address, project / "photos")
        person = Person(window)
        window.is_settled()
        window.assert_fits()  # Without a class yet.
        person.label_until(lambda: len(person.pressed) >= 10 and len(person.classes) == 3)
        window.assert_fits()
        _press_each_key(window, person)
        _change_one_of_the_last_decisions(window)
        _reload_and_open_another(window, person, context, project)
        _change_classes(window, person)
        base = process.base
        process.kill()
        process.wait()
        window.is_settled()
        waiting = window.names[window.number()]
        person.name(waiting)
        window.page.get_by_text("1 decision is not saved yet").wait_for()
        window.assert_fits()
    with served(clfew, project, "photos") as process:
        assert process.base == base and "goes on" in process.said()
        window.page.get_by_text("Open the address that it printed").wait_for()
        newer = Window(context, process.address, project / "photos")
        window.wait("#banner:not(.warn)", "attached")
        window.is_settled()
        assert newer.state()["history"][0]["image"] == window.names.index(waiting)
        person.pressed[waiting] = waiting.split("-")[0]
        newer.page.close()
        person.label_until(lambda: len(person.pressed) >= 40 and window.page.is_visible("#pages"))
        _accept_a_page(window, person)
        _finish(window)
        assert process.wait(SECONDS) == 0
        assert process.said().splitlines()[-1].startswith("next: clfew predict ")
        assert "test images" in process.printed()
    rows = table(project / "runs/label-1/labels.csv")
    assert {path: row["label"] for path, row in rows.items() if row["label"]} == {
        path: label for path, label in person.pressed.items() if label
    }
    assert sum(row["split"] == "test" for row in rows.values()) == 12
    window.assert_no_complaint(*FAILED)
    predicted = clfew.ok("predict", "photos/red-000.png", "--format", "jsonl", cwd=project).rows()
    assert len(predicted) == 1
    context.close()


def _press_each_key(window, person):
    """Type-ahead, undo, none of these, unsure, skip."""

    def type_on(image):
        window.type(image[:2])
        window.page.locator("#match", has_text=image.split("-")[0]).wait_for()
        window.press("Enter")

    typed = person.label(type_on)
    window.is_settled()
    window.press("Backspace")
    window.is_settled()
    assert window.names[window.number()] == typed and "Undone" in window.page.inner_text("#status")
    assert person.label() == typed
    person.label(lambda image: window.press("-"), "none of these")
    for key in "? ":
        image = person.label(lambda image, key=key: window.press(key))
        person.pressed[image] = ""
    state = window.state()
    assert len(state["unsure"]) == len(state["skipped"]) == 1 and state["none"]["labels"] == 1


def _change_one_of_the_last_decisions(window):
    """To another class and back, by a click on its picture."""
    entry = next(each for each in window.state()["history"] if each["do"] == "label" and each["class"])
    classes, n = window.state()["classes"], entry["n"]
    own = next(each for each in classes if each["id"] == entry["class"])
    asked = window.number()
    for each in (next(each for each in classes if each is not own), own):
        window.page.locator(f'.past[data-n="{n}"]').click()
        window.wait(f'#frame[data-image="{entry["image"]}"]')
        window.press(each["key"])
        window.is_settled()
        last = window.state()["history"][0]
        assert (last["image"], last["class"]) == (entry["image"], each["id"])
        n = last["n"]
    assert window.number() == asked


def _reload_and_open_another(window, person, context, project):
    """Both show what was shown before, and a second window follows."""
    kept = ("classes", "queue", "history", "unsure", "skipped", "left", "labels", "tested")
    window.is_settled()
    before, number = window.state(), window.number()
    window.page.reload()
    window.is_settled()
    assert (
        window.number() == number and [window.state()[key] == before[key] for key in kept] == [True] * 8
    )
    second = Window(context, window.base, project / "photos")
    second.is_settled()
    assert second.number() == number
    person.label()
    second.wait(f'#past > :first-child[data-n="{window.state()["history"][0]["n"]}"]')
    second.is_settled()
    assert second.number() == window.number()
    second.assert_no_complaint()
    second.page.close()


def _accept_a_page(window, person):
    """Two images are wrong: the first by the key of its class, the second without."""
    window.is_settled()
    page = window.state()["page"]
    name_of = {each["id"]: each["name"] for each in window.state()["classes"]}
    other = next(each for each in window.state()["classes"] if each["id"] != page["class"])
    window.press("ArrowRight", other["key"], "ArrowRight", " ")
    window.page.get_by_text("2 images are marked wrong").wait_for()
    window.assert_fits()
    window.press("Enter")
    window.is_settled()
    assert window.state()["history"][0]["do"] == "page"
    for number in page["images"]:
        person.pressed[window.names[number]] = name_of[page["class"]]
    first, second = (window.names[number] for number in page["images"][:2])
    person.pressed[first] = other["name"]
    assert window.is_one_by_one() and window.names[window.number()] == second
    assert person.label() == second


def _change_classes(window, person):
    """A class with a dangerous name is merged, another one is deleted: of its images nothing is known
    then."""
    page = window.page
    merged = person.label(lambda image: _new_class(window, "lime"))
    gone = person.label(lambda image: _new_class(window, "odd"))
    window.button("Classes").click()
    dialog = page.get_by_role("dialog", name="Classes")
    window.assert_fits()
    dialog.get_by_role("button", name=re.compile("Rename .lime")).click()
    window.type(MARKUP)
    window.press("Enter")
    dialog.get_by_text(MARKUP, exact=True).wait_for()
    window.assert_fits()
    dialog.get_by_role("button", name=re.compile("Merge .*<img")).click()
    dialog.get_by_role("combobox").select_option(label="green")
    dialog.get_by_role("button", name="Merge", exact=True).click()
    dialog.get_by_text(MARKUP, exact=True).wait_for(state="detached")
    dialog.get_by_role("button", name=re.compile("Delete .odd")).click()
    page.get_by_role("dialog", name="Delete this class?").get_by_role("button", name="Delete").click()
    dialog.get_by_role("button", name=re.compile("Delete .odd")).wait_for(state="detached")
    window.press("Escape")
    person.pressed[merged], person.pressed[gone] = "green", ""
    for opened in ("Keys", re.compile("Unsure and skipped")):
        page.get_by_role("button", name=opened).click()
        window.assert_fits()
        window.press("Escape")


def _new_class(window, name):
    window.press("+")
    window.type(name)
    window.press("Enter")


def _finish(window):
    """By the keyboard alone."""
    window.page.locator("#stage").focus()
    for _ in range(60):
        window.press("Shift+Tab")
        if window.page.evaluate("document.activeElement.id") == "finish":
            break
    window.press("Enter")
    window.page.get_by_role("dialog", name="Finish labelling?").wait_for()
    window.assert_fits()
    window.press("Enter")
    window.wait("#message")
    window.assert_fits()
    window.page.get_by_role("heading", name="The classifier is ready").wait_for()
    assert window.page.inner_text("#next-command") == "clfew predict image.jpg"
    window.assert_fits()


@pytest.mark.slow
def test_a_telephone_and_names_that_are_no_words(clfew, chromium, project):
    """All by touch, in a small window, with classes that are named like markup and like digits."""
    context = chromium.new_context(
        has_touch=True, is_mobile=True, viewport={"width": 400, "height": 800}
    )
    with served(clfew, project, "photos", "--classes", f"{MARKUP},3,blue", "--test", 0) as process:
        window = Window(context, process.address, project / "photos")
        name_of = {"red": MARKUP, "green": "3", "blue": "blue"}
        classes = window.page.get_by_role("group", name="Classes", exact=True)

        def tap(image):
            button = classes.get_by_role("button").filter(has_text=name_of[image.split("-")[0]])
            button.first.tap()

        window.is_settled()
        assert classes.get_by_text(MARKUP).is_visible()
        assert [each["key"] for each in window.state()["classes"]] == ["1", "3", "2"]
        assert all(window.answer(tap) for _ in range(15))
        window.page.locator("#to-pages").tap()
        window.is_settled()
        page = window.state()["page"]
        window.page.locator(".tile").nth(1).tap()
        window.page.get_by_text("1 image is marked wrong").wait_for()
        window.assert_fits()
        window.page.set_viewport_size({"width": 400, "height": 800})
        window.page.locator("#accept").tap()
        window.page.get_by_text(f"page of {len(page['images'])}").first.wait_for(state="attached")
        window.is_settled()
        assert window.is_one_by_one() and window.number() == page["images"][1]
        assert window.answer(tap)
        window.assert_no_complaint()
    context.close()


WORST = {
    "page": {"suggest": "page"},
    "failed": {
        "phase": "failed",
        "result": {"lines": ["y" * 500, MARKUP], "next": "z" * 300, "list": "l" * 300},
    },
    "one by one": {},
    "nothing left": {
        "queue": [],
        "page": None,
        "choices": [],
        "can_finish": "A classifier needs labels of two classes.",
    },
    "image gone": {
        "queue": [{"image": GONE, "again": None}],
        "sure": None,
        "accuracy": None,
        "curve": None,
    },
    "stopped": {"phase": "stopped"},
}
"""What a server could say at the worst: the rest of it is in `shown`."""


def shown(**what):
    """Returns what a server says, with classes of the worst names there can be."""
    names = [
        "w" * 200,
        MARKUP,
        "\u05d0\u05d1\u05d2 (\u05d3",
        "\u202eevil",
        "a b " * 40,
        *(f"class {n}" for n in range(60)),
    ]
    classes = [
        {"id": n, "name": name, "key": str(n) if n < 10 else None, "labels": 12345}
        for n, name in enumerate(names, 1)
    ]
    kinds = ("label", "skip", "unsure", "page", "rename", "merge", "delete", "class")
    history = [
        {
            "n": n,
            "do": do,
            "image": n if n < 3 else None,
            "class": n + 1,
            "count": 24,
            "text": names[n % 5],
        }
        for n, do in enumerate(kinds)
    ]
    whole = {
        "version": 1, "run": "a", "source": "photos" * 30, "phase": "labelling", "classes": classes,
        "none": {"labels": 12345}, "queue": [{"image": 1, "again": {"label": 1, "neighbours": 2}}],
        "page": {"class": 1, "order": "mixed", "images": [*range(10, 34)], "found": 12345},
        "why_no_page": None, "choices": [{"class": n, "found": 12345} for n in range(1, 60)],
        "suggest": "one", "history": history, "unsure": [*range(40, 90)], "skipped": [3],
        "left": {"images": 1234567, "budget": 12345, "test": 12345}, "labels": 12345, "tested": 12345,
        "sure": {"fraction": 0.999, "images": 12345, "of": 12346},
        "accuracy": {"mean": 0.987, "low": 0.9, "high": 0.99, "images": 12345, "unsure": 12},
        "curve": {"changed": 0.0012, "before": 12345, "now": 23456, "enough": True}, "busy": True,
        "notices": [{"id": n, "text": "x" * 300} for n in range(3)], "can_finish": None, "result": None,
    }  # fmt: skip
    return whole | what


@pytest.mark.parametrize("what", rest_is_slow(WORST.values(), count=2), ids=WORST)
def test_the_worst_names_and_numbers_fit(chromium, what, tmp_path):
    """In each state, with every dialog."""
    page = Path(clfew.labelling.__file__).with_name("page.html").read_text(encoding="utf-8")

    def picture(number, size):
        if number == GONE:
            raise Refused(410, "The image is gone.")
        image = io.BytesIO()
        Image.new("RGB", (3 + 400 * (number % 2), 300), (number, 90, 90)).save(image, "PNG")
        return image.getvalue(), "image/png"

    server = LabelServer(page, lambda request: shown(**what), lambda: shown(**what), picture)
    server.start()
    context = chromium.new_context()
    try:
        window = Window(context, server.address, tmp_path)
        window.wait(
            "#message" if what.keys() & {"phase", "page"} else "#frame p" if "sure" in what else READY
        )
        window.assert_fits()
        assert window.page.locator("img[src=x]").count() == 0
        for name in () if "phase" in what else ("Classes", "Keys", "Finish", re.compile("Unsure and")):
            window.page.get_by_role("button", name=name).first.click(force=True)
            window.assert_fits()
            window.press("Escape")
        window.assert_no_complaint("Failed to load resource: the server responded with a status of 410")
    finally:
        context.close()
        server.stop()
