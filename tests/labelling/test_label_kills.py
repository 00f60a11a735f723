"""`clfew label` may be killed at any moment: no decision that was answered is lost, and none is doubled."""

import csv
import http.client
import json
import os
import random
import shutil
import signal
import threading
import time

import pytest
from commands import paint
from label_clients import Client, Served
from slow_decisions import Slow

from clfew.labelling.state import LABEL, NONE, NONE_NAME

RUN = "runs/label-1"


@pytest.fixture(scope="module")
def start(tmp_path_factory, clfew):
    """Photos without class folders and a pretrained encoder. Read only."""
    folder = tmp_path_factory.mktemp("labelled")
    paint(folder / "photos", classes=[""], each=30, seed=0)
    for number in range(2):
        paint(folder / f"more{number}", classes=["", "other"], each=15, seed=1 + number)
        for file in (folder / f"more{number}/other").iterdir():
            file.rename(folder / f"photos/o{number}{file.name}")
        shutil.rmtree(folder / f"more{number}")
    clfew.ok("pretrain", "photos", "--encoder", "resnet8-w8", "--epochs", 1, cwd=folder)
    return folder


@pytest.fixture
def project(start, tmp_path):
    shutil.copytree(start, tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def serve(clfew, project):
    """serve("photos") serves the project; what still runs at the end of a test is killed."""
    running = []

    def begin(*options, **more):
        running.append(Served(clfew, project, *options, **more))
        return running[-1]

    yield begin
    for each in running:
        if each.result is None:
            each.kill()


def events(project):
    return [json.loads(line) for line in (project / RUN / "decisions.jsonl").read_text().splitlines()]


def table(project):
    with open(project / RUN / "labels.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Annotator:
    """Sends decisions of all kinds, and keeps what it has been told was done."""

    def __init__(self, serve, seed=0):
        self.serve, self.chance, self.done = serve, random.Random(seed), []
        self.thought, self.kills, self.shown = Slow(), 0, {}
        self.connect("photos")

    def connect(self, *options):
        self.served = self.serve(*options)
        self.client = Client(self.served.address)
        self.shown = self.client.state()

    def decide(self):
        """Sends a decision until it is answered."""
        request = self.next() | {"request": f"{self.chance.getrandbits(64):x}"}
        while True:
            try:
                status, answer = self.client.send(request)
                break
            except (OSError, http.client.HTTPException):
                self.client.close()
                assert self.served.wait().rc == -signal.SIGKILL
                self.kills += 1
                self.connect()
        if status == 200:
            self.done.append(request["request"])
            self.think(request, answer["state"])
        else:
            assert status == 409, answer
        self.shown = answer["state"]

    def next(self):
        chance, shown = self.chance, self.shown
        classes = [each["id"] for each in shown["classes"]]
        queue = [each["image"] for each in shown["queue"]] or [chance.randrange(60)]
        image = chance.choice([queue[0], queue[0], chance.randrange(60)])
        kinds = ["skip", "unsure", "undo", "undo"] + ["name"] * (len(classes) < 6)
        kinds += ["label"] * 12 * bool(classes) + ["page"] * 6 * (shown["page"] is not None)
        do = chance.choice(kinds)
        if do == "page":
            page = shown["page"]
            wrong = chance.sample(page["images"], min(len(page["images"]), chance.randrange(3)))
            wrong = [{"image": n, "class": chance.choice([None, NONE, *classes])} for n in wrong]
            return {"do": "page", "class": page["class"], "images": page["images"], "wrong": wrong}
        if do == "name":
            return {"do": "label", "image": image, "name": f"class {chance.getrandbits(40):x}"}
        if do == "label" and chance.random() < 0.03:
            own, other = chance.choice(classes), chance.choice([NONE, *classes])
            change = chance.choice(["rename", "merge", "delete", "class"])
            name = (
                {"name": f"renamed {chance.getrandbits(40):x}"} if change in ("rename", "class") else {}
            )
            return {"do": change, "class": own, "into": other} | name
        if do == "label":
            return {"do": "label", "image": image, "class": chance.choice([NONE, *classes])}
        return {"do": do} | ({} if do == "undo" else {"image": image})

    def think(self, request, state):
        """Does itself what the request asked for."""
        event = {**request, "n": len(self.done)}
        if request["do"] == "undo":
            event["of"] = self.thought.left[-1]["n"]
        elif "name" in request and request["do"] != "rename":
            event["class"] = self.thought.ever + 1
        elif request["do"] == "page":
            wrong = {each["image"]: each["class"] for each in request["wrong"]}
            labels = {n: wrong.get(n, request["class"]) for n in request["images"]}
            event["labels"] = {n: label for n, label in labels.items() if label is not None}
            event["wrong"] = [n for n, label in labels.items() if label is None]
        self.thought.apply(event)

    def check(self, project, names):
        """Compares the log and the list with what was answered."""
        sent = [event["request"] for event in events(project) if "request" in event]
        assert len(sent) == len(set(sent)), "none is doubled"
        assert sent == self.done, "none is lost"
        classes = self.thought.classes()[0] | {NONE: NONE_NAME}
        thought = {
            names[image]: classes[label]
            for image, (_, kind, label) in self.thought.current().items()
            if kind == LABEL
        }
        assert {row["path"]: row["label"] for row in table(project) if row["label"]} == thought


def label_with_kills(project, serve, decisions, each, seed=0):
    """Sends decisions while the command is killed after every so many, at any moment of the next one."""
    annotator = Annotator(serve, seed)
    names, begun = sorted(file.name for file in (project / "photos").iterdir()), time.monotonic()
    for number in range(1, decisions + 1):
        if number % each == 0:
            pause = annotator.chance.uniform(0, 0.02)
            threading.Timer(pause, annotator.served.send, [signal.SIGKILL]).start()
            time.sleep(annotator.chance.choice([0, pause]))
        annotator.decide()
    # The last kill may still be coming.
    time.sleep(0.1)
    if annotator.served.result is not None or number % each == 0:
        annotator.decide()
    annotator.served.send(signal.SIGTERM)
    assert annotator.served.wait().rc == 128 + signal.SIGTERM
    print(f"{time.monotonic() - begun:.1f} s, {len(annotator.done)} done, {annotator.kills} kills")
    annotator.check(project, names)
    assert annotator.kills == decisions // each and len(annotator.done) > 0.8 * decisions
    return annotator


def test_nothing_is_lost_or_doubled_by_three_kills(project, serve):
    label_with_kills(project, serve, 90, 30)


@pytest.mark.slow
def test_nothing_of_ten_thousand_decisions_is_lost_or_doubled_by_twenty_kills(project, serve):
    annotator = label_with_kills(project, serve, 10_000, 500)
    kinds = {event["do"] for event in events(project)}
    assert kinds >= {"label", "skip", "unsure", "page", "undo", "class", "rename", "merge", "delete"}
