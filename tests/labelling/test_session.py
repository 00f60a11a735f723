"""A session on made-up codes: what the page is shown, and what its decisions do."""

import errno
import json
import os
import threading
import time

import numpy as np
import pytest
from made_board import Made, at_once

from clfew.labelling.labels_list import ON_PAGE
from clfew.labelling.server import Refused
from clfew.labelling.session import BATCH, MOST_NOTICES, Ended
from clfew.labelling.shown import SHOWN

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def made(tmp_path, monkeypatch):
    at_once(monkeypatch)
    return Made(tmp_path)


def test_from_the_first_image_to_the_end(made):
    shown = made.state()
    assert shown["why_no_page"] == "Pages need labels of two classes." and shown["page"] is None
    assert shown["suggest"] == "one" and shown["can_finish"] and len(shown["queue"]) == 8
    assert shown["left"] == {"images": 52, "budget": None, "test": 8}
    shown = made.to_a_page()
    assert shown["why_no_page"] is None and shown["can_finish"] is None
    assert sorted(each["name"] for each in shown["classes"]) == ["class 0", "class 1"]
    assert [each["key"] for each in shown["classes"]] == ["1", "2"]
    before = shown["labels"]
    count, shown = len(shown["page"]["images"]), made.accept(shown)
    assert before < shown["labels"] <= before + count
    assert shown["history"][0]["do"] == "page" and shown["history"][0]["count"] == count
    made.to_the_end()
    shown = made.state()
    assert shown["labels"] == 52 and shown["tested"] == 8 and shown["page"] is None
    assert shown["left"] == {"images": 0, "budget": None, "test": 0}
    assert shown["why_no_page"] == "Every image has been labelled."
    assert shown["accuracy"]["mean"] == 1 and shown["accuracy"]["images"] == 8
    assert shown["accuracy"]["low"] < 1 == shown["accuracy"]["high"]
    assert shown["curve"]["now"] == 52 and shown["sure"]["of"] == 0
    assert made.do("finish")["phase"] == "finishing"
    made.session.end(Ended("done", ["fine"], "clfew predict", "labels.csv"))
    assert made.state()["phase"] == "done" and made.state()["result"]["lines"] == ["fine"]


def test_the_version_changes_with_what_is_shown_and_not_otherwise(made):
    before = made.state()
    assert made.state() == before
    assert made.label()["version"] > before["version"]
    version = made.state()["version"]
    made.session.append({"do": "list", "digest": "0"})
    assert made.state()["version"] == version, "a page that asks often would never be at rest"


def test_a_request_that_is_sent_again_is_done_once(made):
    number = made.state()["queue"][0]["image"]
    request = {"do": "label", "request": "again", "image": number, "name": "deer"}
    one, events = made.session.do(request), len(made.log.events)
    other = made.session.do(request)
    assert one == other and len(made.log.events) == events
    made.start()
    made.session.do(request)
    assert len(made.log.events) == events, "after a restart, too"
    made.do("undo")
    made.session.do(request)
    assert made.state()["labels"] == 0, "what was undone stays undone"


def test_a_restart_shows_the_same(made):
    shown = made.to_a_page()
    made.accept(shown)
    made.do("skip", image=made.state()["queue"][0]["image"])
    made.do("unsure", image=made.state()["queue"][0]["image"])
    made.do("rename", **{"class": 1}, name="roe deer")
    made.do("undo")
    before = made.state()
    made.start()
    made.session.work_once()
    after = made.state()
    for name in ("classes", "none", "queue", "history", "unsure", "skipped", "left", "labels", "tested"):
        assert after[name] == before[name], name
    assert after["run"] == before["run"]


def test_undo_works_across_a_restart(made):
    made.labels(3)
    before = made.state()
    made.label()
    made.start()
    shown = made.do("undo")
    assert shown["queue"] == before["queue"] and shown["classes"] == before["classes"]
    assert shown["history"] == before["history"]


def test_any_of_the_last_decisions_can_be_changed(made):
    made.labels(SHOWN + 5)
    shown = made.state()
    assert len(shown["history"]) == SHOWN
    oldest = shown["history"][-1]
    other = 3 - oldest["class"]
    shown = made.do("label", image=oldest["image"], **{"class": other})
    assert made.board.decided.label(made.names[oldest["image"]]) == other
    shown = made.do("undo", n=shown["history"][5]["n"])
    assert len([row for row in shown["history"] if row["do"] == "label"]) == SHOWN


def test_a_page_that_has_changed_is_refused(made):
    shown = made.to_a_page()
    made.label()
    stale = {**shown["page"], "images": shown["page"]["images"][::-1]}
    events = len(made.log.events)
    for page in (stale, {**stale, "images": stale["images"][:-1]}, {**shown["page"], "class": 99}):
        with pytest.raises(Refused) as refused:
            made.do("page", **{"class": page["class"], "images": page["images"], "wrong": []})
        assert refused.value.status == 409 and refused.value.hint
    # An image of the page is decided one by one, in another window.
    page = made.state()["page"]
    made.do("skip", image=page["images"][0])
    with pytest.raises(Refused, match="changed"):
        made.do("page", **{"class": page["class"], "images": page["images"], "wrong": []})
    assert len(made.log.events) == events + 1
    assert page["images"][0] not in made.state()["page"]["images"]


def test_an_accepted_page_is_not_accepted_again(made):
    page = made.to_a_page()["page"]
    again = {"class": page["class"], "images": page["images"], "wrong": []}
    made.do("page", **again)
    with pytest.raises(Refused, match="changed"):
        made.do("page", **again)


def test_corrections_of_a_page(made):
    shown = made.to_a_page()
    page, names = shown["page"], made.names
    label, other = page["class"], 3 - page["class"]
    first, second, third, fourth, *rest = page["images"]
    wrong = [{"image": first, "class": other}, {"image": second, "class": 0}]
    wrong += [{"image": third, "class": None}, {"image": fourth}]
    shown = made.do("page", **{"class": label, "images": page["images"], "wrong": wrong})
    decided = made.board.decided
    assert decided.label(names[first]) == other and decided.label(names[second]) == 0
    assert {decided.label(names[n]) for n in rest} == {label}
    assert [each["image"] for each in shown["queue"][:2]] == [third, fourth]
    assert shown["suggest"] == "one", "what was marked wrong comes before another page"
    # Undo opens them all again.
    shown = made.do("undo")
    assert not any(names[n] in decided.current for n in page["images"])


def test_the_page_of_another_class_and_order_can_be_shown(made):
    shown = made.to_a_page()
    labels = {each["class"] for each in shown["choices"]}
    assert labels == {1, 2}
    for label in (1, 2):
        for order in ("surest", "doubtful"):
            page = made.do("show", **{"class": label}, order=order)["page"]
            assert (page["class"], page["order"]) == (label, order)
    events = len(made.log.events)
    page = made.do("show", **{"class": None})["page"]
    assert page["class"] == shown["choices"][0]["class"] and len(made.log.events) == events


def walked(value):
    yield value
    if isinstance(value, (dict, list)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from walked(each)


def test_nothing_is_said_of_an_image_of_the_test_sample(tmp_path, monkeypatch):
    """Neither in a page, nor as a label that is asked once more, nor anywhere else but in the queue, the
    history and the lists of what the person has said."""
    at_once(monkeypatch)
    made = Made(tmp_path, (25, 25), tests=12, width=0.9)
    chance = np.random.default_rng(0)
    tested = {made.names.index(name) for name in made.tests}
    for _ in range(50):
        shown = made.state()
        if not shown["queue"]:
            break
        page = shown["page"]
        assert page is None or not set(page["images"]) & tested
        assert all(each["again"] is None for each in shown["queue"] if each["image"] in tested)
        assert all(set(each) == {"image", "again"} for each in shown["queue"])
        for row in shown["history"]:
            assert set(row) == {"n", "do", "image", "class", "count", "text"}
        rest = {
            k: v for k, v in shown.items() if k not in ("queue", "history", "page", "unsure", "skipped")
        }
        assert not any(name in json.dumps(rest) for name in made.tests)
        for each in walked(rest):
            assert not (isinstance(each, list) and tested & {n for n in each if type(n) is int})
        if page is not None and chance.random() < 0.2:
            made.accept(shown)
        else:  # Now and then a slip, so that labels are asked once more.
            number = shown["queue"][0]["image"]
            kind = made.kind[made.names[number]] ^ int(chance.random() < 0.15)
            made.do("label", image=number, name=f"class {kind}")
        made.session.work_once()
    again = [event for event in made.log.events if event["do"] == "again"]
    assert again and not any(set(event["images"]) & set(made.tests) for event in again)


def test_labels_of_the_test_sample_change_nothing_of_the_pages(tmp_path, monkeypatch):
    at_once(monkeypatch)
    pages = []
    for right in (True, False):
        folder = tmp_path / str(right)
        folder.mkdir()
        made = Made(folder, (30, 30))
        for kind in (0, 1):
            made.do("class", name=f"class {kind}")
        for name in made.tests:
            kind = made.kind[name] if right else 1 - made.kind[name]
            made.do("label", image=made.names.index(name), name=f"class {kind}")
        shown = made.to_a_page()
        kinds = {each["id"]: each["name"] for each in shown["classes"]}
        pages.append((kinds[shown["page"]["class"]], shown["page"]["images"], shown["sure"]))
        assert shown["accuracy"]["mean"] == right
    assert pages[0] == pages[1]


def test_a_label_that_contradicts_its_neighbours_is_asked_once_more_with_both(made):
    made.to_a_page()
    slip = next(
        n for n, name in enumerate(made.names) if name not in (*made.tests, *made.board.decided.current)
    )
    kind = made.kind[made.names[slip]]
    ids = {each["name"]: each["id"] for each in made.state()["classes"]}
    wrong, right = ids[f"class {1 - kind}"], ids[f"class {kind}"]
    made.do("label", image=slip, **{"class": wrong})
    for _ in range(12):
        made.session.work_once()
        asked = {each["image"]: each["again"] for each in made.state()["queue"] if each["again"]}
        if asked:
            break
        made.label()
    assert asked == {slip: {"label": wrong, "neighbours": right}}
    made.do("label", image=slip, **{"class": wrong})
    made.session.work_once()
    assert not any(each["again"] for each in made.state()["queue"])


def test_the_budget_is_kept(tmp_path, monkeypatch):
    at_once(monkeypatch)
    made = Made(tmp_path, (40, 40), budget=15)
    shown = made.to_a_page()
    while (left := made.state()["left"]["budget"]) > 4:
        made.label()
    shown = made.state()
    assert len(shown["page"]["images"]) <= left, "a page is not larger than what may be labelled"
    made.do("page", **{"class": shown["page"]["class"], "images": shown["page"]["images"], "wrong": []})
    made.session.work_once()
    while made.state()["queue"]:
        made.label()
    shown = made.state()
    assert shown["left"]["budget"] == 0 and shown["labels"] == 15 and shown["tested"] == 8
    assert shown["page"] is None and "--budget" in shown["why_no_page"]
    assert shown["can_finish"] is None


def test_images_that_are_gone_do_not_use_up_the_budget(tmp_path, monkeypatch):
    at_once(monkeypatch)
    made = Made(tmp_path, (40, 40), budget=12, tests=0)
    for each in list(made.state()["queue"])[:6]:
        made.session.gone(each["image"], "No such file")
    made.to_the_end()
    assert made.state()["labels"] == 12 and len(made.state()["notices"]) == 6


def test_an_image_that_is_gone_is_skipped_with_a_word(made):
    page = made.to_a_page()["page"]
    queued = made.state()["queue"][0]["image"]
    for number in (page["images"][3], queued, queued):
        made.session.gone(number, "No such \x1b file")
    shown = made.state()
    assert page["images"][3] not in shown["page"]["images"] and shown["queue"][0]["image"] != queued
    assert [each["id"] for each in shown["notices"]] == [1, 2], "once each"
    name = made.names[page["images"][3]]
    assert shown["notices"][0]["text"] == f"{name} cannot be shown (No such \\x1b file): it is skipped."


def test_more_images_are_asked_for_before_the_first_ones_run_out(tmp_path, monkeypatch):
    at_once(monkeypatch)
    made = Made(tmp_path, (60, 60))
    first = len(made.board.decided.asked)
    for _ in range(60):
        if len(made.board.decided.asked) > first:
            break
        made.label()
        made.session.work_once()
    hows = list(made.board.decided.asked.values())
    assert hows[0] == "chosen (herding)" and hows[-1] == "chosen (uncertain)"
    assert 0 < len(made.board.decided.asked) - first <= BATCH and ON_PAGE not in hows
    assert len(made.state()["queue"]) == 8


def test_a_full_disk_refuses_the_decision_and_nothing_is_lost(made, monkeypatch):
    made.labels(3)
    before, events = made.state(), made.log.path.read_bytes()
    number = before["queue"][0]["image"]
    request = {"do": "label", "request": "full", "image": number, "name": "lynx"}
    with monkeypatch.context() as faults:
        faults.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(NO_SPACE))
        with pytest.raises(Refused) as refused:
            made.session.do(request)
        assert refused.value.status == 507 and "safe" in refused.value.hint
        assert made.state() == before and made.log.path.read_bytes() == events
    shown = made.session.do(request)
    assert shown["labels"] + shown["tested"] == 4 and shown["history"][0]["text"] == "lynx"


def test_a_page_that_a_full_disk_refused_can_be_sent_again(made, monkeypatch):
    shown = made.to_a_page()
    with monkeypatch.context() as faults:
        faults.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(NO_SPACE))
        with pytest.raises(Refused):
            made.accept(shown)
    made.board.fit = None  # Whatever the classifier says meanwhile.
    assert made.accept(shown)["history"][0]["do"] == "page"


class Worker:
    """The session's thread, as `clfew label` has it."""

    def __init__(self, session):
        self.session = session
        self.thread = threading.Thread(target=session.work, daemon=True)
        self.thread.start()

    def wait(self, what):
        end = time.monotonic() + 20
        while not what(self.session.state()):
            assert time.monotonic() < end and self.thread.is_alive()
            time.sleep(0.01)

    def stop(self):
        self.session.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()


def test_if_the_classifier_fails_labelling_goes_on_with_a_word(made, monkeypatch, capsys):
    worker = Worker(made.session)
    with monkeypatch.context() as faults:
        faults.setattr(made.session.board, "labels", lambda: 1 / 0)
        made.labels(3)
        worker.wait(lambda shown: shown["notices"] and not shown["busy"])
    assert "ZeroDivisionError" in made.state()["notices"][-1]["text"]
    assert len(made.state()["notices"]) <= MOST_NOTICES
    made.labels(12)
    worker.wait(lambda shown: shown["page"] is not None and not shown["busy"])
    worker.stop()
    assert "could not be fitted" in capsys.readouterr().err


def test_a_page_waits_for_the_classifier_that_knows_the_one_before(tmp_path):
    made = Made(tmp_path)
    worker = Worker(made.session)
    made.labels(20)
    worker.wait(lambda shown: shown["page"] is not None and not shown["busy"])
    shown = made.accept(made.state())
    assert not shown["busy"] and len(made.board.fit.labels.rows) == shown["labels"]
    worker.stop()


def test_what_is_shown_can_be_sent_whatever_the_names_are(tmp_path, monkeypatch):
    at_once(monkeypatch)
    names = [f"\udcff{i} \"'<b>\n\0.jpg" for i in range(40)]
    made = Made(tmp_path, (20, 20), tests=4, names=names)
    for number in (3, 5):
        made.session.gone(number, "\udcff")
    shown = made.to_a_page()
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    made.start()
    assert made.state()["labels"] == shown["labels"]
