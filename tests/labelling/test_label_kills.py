"""`clfew label` may be killed at any moment: no decision that was answered is lost, none is doubled."""

import csv
import http.client
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import paint
from label_clients import Client, Forked, Served, events
from marks import rest_is_slow
from slow_decisions import Slow

from clfew.errors import UserError
from clfew.labelling.labels_list import rows_of
from clfew.labelling.log import LOG, DecisionLog
from clfew.labelling.state import LABEL, NONE, NONE_NAME, State
from clfew.runs.locks import held

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


def labels(project):
    with open(project / RUN / "labels.csv", newline="", encoding="utf-8") as file:
        return {row["path"]: row["label"] for row in csv.DictReader(file) if row["label"]}


class Annotator:
    """Sends decisions of all kinds, and keeps what it has been told was done."""

    def __init__(self, serve, seed=0):
        self.serve, self.chance, self.done = serve, random.Random(seed), []
        self.thought, self.kills, self.shown = Slow(), 0, {}
        self.connect()

    def connect(self):
        self.served = self.serve()
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
            more = {"into": other} if change == "merge" else {}
            if change in ("rename", "class"):
                more = {"name": f"renamed {chance.getrandbits(40):x}"}
            return {"do": change, "class": own} | more
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

    def check(self, log, labels, names):
        """Compares the log and the labels of the images with what was answered."""
        sent = [event["request"] for event in log if "request" in event]
        assert len(sent) == len(set(sent)), "none is doubled"
        assert sent == self.done, "none is lost"
        classes = self.thought.classes()[0] | {NONE: NONE_NAME}
        thought = {
            names[image]: classes[label]
            for image, (_, kind, label) in self.thought.current().items()
            if kind == LABEL
        }
        assert thought and labels == thought


def label_with_kills(serve, decisions, each):
    """Sends decisions while the server is killed after every so many, at any moment of the next one."""
    annotator = Annotator(serve)
    for number in range(1, decisions + 1):
        if number % each == 0:
            pause = annotator.chance.uniform(0, 0.02)
            threading.Timer(pause, annotator.served.send, [signal.SIGKILL]).start()
            time.sleep(annotator.chance.choice([0, pause]))
        annotator.decide()
    time.sleep(0.1)  # The last kill may still be coming.
    annotator.decide()
    assert annotator.kills == decisions // each and len(annotator.done) > 0.8 * decisions
    return annotator


def test_nothing_is_lost_or_doubled_by_three_kills(project, serve):
    annotator = label_with_kills(lambda: serve("photos"), 90, 30)
    annotator.served.send(signal.SIGTERM)
    assert annotator.served.wait().rc == 128 + signal.SIGTERM
    names = sorted(file.name for file in (project / "photos").iterdir())
    annotator.check(events(project), labels(project), names)


@pytest.mark.slow
def test_nothing_of_ten_thousand_decisions_is_lost_or_doubled_by_twenty_kills(clfew, tmp_path):
    """The real session, server and log, on made-up codes: they start in a moment."""
    script = Path(__file__).with_name("label_nursery.py")
    paths = os.pathsep.join([str(script.parent), str(script.parents[1])])
    nursery = subprocess.Popen(
        [sys.executable, script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=clfew.env | {"PYTHONPATH": paths},
    )
    with nursery:
        annotator = label_with_kills(lambda: Forked(nursery, tmp_path), 10_000, 500)
        annotator.served.send(signal.SIGKILL)
        annotator.served.wait()
        nursery.stdin.close()
    log = DecisionLog(tmp_path / LOG)
    log.close()
    state, names = State(), [f"{i:03d}.jpg" for i in range(80)]
    for event in log.events:
        state.apply(event)
    rows, lost = rows_of(SimpleNamespace(identities=names), state)
    assert not lost and not log.damaged
    annotator.check(log.events, {names[row.index]: row.label for row in rows if row.label}, names)
    kinds = {event["do"] for event in log.events}
    assert kinds >= {"label", "skip", "unsure", "page", "undo", "class", "rename", "merge", "delete"}


@pytest.mark.parametrize(("number", "rc"), rest_is_slow([(signal.SIGINT, 130), (signal.SIGTERM, 143)]))
def test_a_signal_stops_it_with_the_command_to_go_on_and_it_goes_on(project, serve, number, rc):
    served = serve("photos", "--test", 5, "--classes", "deer,fox")
    before = Client(served.address).label(7)
    assert [each["name"] for each in before["classes"]] == ["deer", "fox"]
    served.send(number)
    stopped = served.wait()
    assert stopped.rc == rc and "Traceback" not in stopped.stderr
    assert stopped.next == ["clfew label"]
    assert sorted(labels(project).values()) == ["deer"] * 4 + ["fox"] * 3
    result = json.loads((project / RUN / "label.json").read_text())
    assert len(result["test"]) == 5 and sum(result["labels"].values()) + result["tested"] == 7
    served = serve(*stopped.next[0].split()[2:])
    assert "goes on    runs/label-1" in served.said()
    after = Client(served.address).state()
    for name in ("classes", "history", "left", "labels", "tested", "run"):
        assert after[name] == before[name], name
    assert not (project / "runs/label-2").exists()


def test_a_second_one_in_the_same_run_is_refused(clfew, project):
    """The first one holds the folder's lock, as `held` does here."""
    served = Served(clfew, project, "photos")
    Client(served.address).label(2)
    served.kill()
    log = (project / RUN / LOG).read_bytes()
    with held(project / RUN):
        said = clfew.refused("label", "photos", "--no-browser", cwd=project)
    assert "Another clfew is working in" in said and "label-1" in said
    assert (project / RUN / LOG).read_bytes() == log


def test_it_is_locked_while_it_serves(project, serve):
    served = serve("photos")
    with pytest.raises(UserError, match="Another clfew is working"), held(project / RUN):
        pass
    served.kill()
    with held(project / RUN):
        pass


def test_a_list_that_somebody_has_changed_is_not_written_over(clfew, project, serve):
    served = serve("photos")
    Client(served.address).label(4)
    served.send(signal.SIGTERM)
    served.wait()
    file = project / RUN / "labels.csv"
    changed = file.read_text().replace("deer", "roe deer")
    file.write_text(changed)
    said = clfew.refused("label", "photos", "--no-browser", cwd=project)
    assert "runs/label-1/labels.csv has been changed" in said
    assert "clfew label --labels runs/label-1/labels.csv" in said
    assert file.read_text() == changed
    # Each of the two ways out that the hint names.
    served = serve("photos", "--labels", "runs/label-1/labels.csv")
    state = Client(served.address).state()
    assert [each["name"] for each in state["classes"]] == ["fox", "roe deer"]
    assert state["labels"] + state["tested"] == 4 and (project / "runs/label-2").is_dir()
    served.kill()
    file.unlink()
    served = serve("--out", RUN)
    assert [each["name"] for each in Client(served.address).state()["classes"]] == ["deer", "fox"]


def test_images_that_vanish_between_two_starts_are_left_out_with_a_word(project, serve):
    served = serve("photos")
    client = Client(served.address)
    state = client.label(8)
    names = sorted(file.name for file in (project / "photos").iterdir())
    labelled = [row["image"] for row in state["history"] if row["image"] is not None][:2]
    waiting = state["queue"][0]["image"]
    served.kill()
    for number in (*labelled, waiting):
        (project / "photos" / names[number]).unlink()
    served = serve("photos")
    assert "2 labelled images cannot be found any more" in served.said()
    client = Client(served.address)
    after = client.state()
    left = [name for name in names if (project / "photos" / name).exists()]
    coming = {left[each["image"]] for each in after["queue"]}
    assert len(coming) == 8 and [row["image"] for row in after["history"][:2]] == [None, None]
    client.label(3)
    client.do("undo")
    served.send(signal.SIGTERM)
    assert served.wait().rc == 143
    gone = {names[number] for number in (*labelled, waiting)}
    assert not gone & set(labels(project)) and len(labels(project)) == 8 - 2 + 2


def test_a_torn_and_damaged_log_goes_on(project, serve):
    served = serve("photos")
    Client(served.address).label(6)
    served.kill()
    log = project / RUN / LOG
    rows = log.read_bytes().splitlines(keepends=True)
    of_labels = [i for i, row in enumerate(rows) if b'"do":"label"' in row]
    rows[of_labels[2]] = rows[of_labels[2]].replace(b'"do"', b'"\xff\0')
    log.write_bytes(b"".join([*rows, rows[of_labels[-1]][:25]]))
    served = serve("photos")
    assert "1 line of runs/label-1/decisions.jsonl cannot be read" in served.said()
    state = Client(served.address).label(1)
    assert state["labels"] + state["tested"] == 6
    numbers = [json.loads(row)["n"] for row in log.read_bytes().splitlines() if b"\xff" not in row]
    assert numbers == sorted(set(numbers)) and log.read_bytes().endswith(b"\n")


def test_a_disk_that_is_full_from_the_beginning_is_an_error_with_a_hint(clfew, project):
    full = """
import errno, os
from clfew.labelling import log
def refuse(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
log._write_at = refuse
"""
    result = clfew("label", "photos", "--no-browser", cwd=project, faults=full)
    assert result.rc == 1 and "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
    assert len(lines) == 2 and "No space left" in lines[0]
