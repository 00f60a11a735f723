"""Which run of `clfew label` goes on, and with what: its list, groups, budget, encoder and test."""

import csv
import os
import signal

import pytest
from commands import paint
from label_clients import Client, events
from marks import rest_is_slow

from clfew.labelling.log import LOG

RUN = "runs/label-1"


@pytest.fixture(scope="module")
def start(tmp_path_factory, clfew):
    """Photos without class folders, more of them elsewhere, and a pretrained encoder. Read only."""
    folder = tmp_path_factory.mktemp("labelled")
    paint(folder / "photos", classes=[""], each=40, seed=0)
    paint(folder / "others", classes=[""], each=24, seed=1)
    clfew.ok("pretrain", "photos", "--encoder", "resnet8-w8", "--epochs", 1, cwd=folder)
    return folder


def cut(project, kept):
    """Leaves the first events of the log, as a process that was killed while it began."""
    lines = (project / RUN / LOG).read_text().splitlines(keepends=True)
    (project / RUN / LOG).write_text("".join(lines[:kept]))
    (project / RUN / "labels.csv").unlink(missing_ok=True)


def a_list(project, rows, header="path,label,split,group"):
    (project / "so_far.csv").write_text("\n".join([header, *rows]) + "\n")
    return "so_far.csv"


def test_without_a_source_the_last_labelling_goes_on(serve, project):
    first = serve("others", "--test", 4)
    Client(first.address).label(3)
    first.kill()
    again = serve()
    assert "goes on    runs/label-1" in again.said()
    state = Client(again.address).state()
    assert state["source"] == "others" and state["labels"] + state["tested"] == 3


def test_after_pretraining_on_other_images_these_are_labelled(serve, project, clfew):
    serve("photos", "--test", 4).kill()
    clfew.ok("pretrain", "others", "--encoder", "resnet8-w8", "--epochs", 1, cwd=project)
    served = serve()
    assert "goes on" not in served.said()
    assert events(project, "runs/label-2") and Client(served.address).state()["source"] == "others"


def test_budget_and_encoder_hold_when_it_goes_on(serve, project, clfew):
    serve("photos", "--test", 0, "--budget", 7, "--from", "runs/pretrain-1").kill()
    clfew.ok("pretrain", "photos", "--encoder", "resnet8-w8", "--epochs", 1, cwd=project)
    served = serve("photos")
    assert Client(served.address).state()["left"]["budget"] == 7
    assert "runs/pretrain-1/encoder" in served.said().replace(os.sep, "/")


def test_groups_of_the_list_hold_when_it_goes_on(serve, project):
    # Of each pair, one image is tested on: labels of the other must not be learned from.
    rows = [f"{i:03d}.png,{'deer' if i % 2 else 'fox'},train," for i in range(10, 16)]
    for i in range(4):
        rows += [f"{i:03d}.png,deer,test,pair{i}", f"{i + 4:03d}.png,,train,pair{i}"]
    first = serve("photos", "--labels", a_list(project, rows))
    left = Client(first.address).state()["left"]["images"]
    first.kill()
    again = serve("photos")
    assert Client(again.address).state()["left"]["images"] == left
    again.send(signal.SIGTERM)
    assert again.wait().rc == 143
    with open(project / RUN / "labels.csv", newline="") as file:
        groups = {row["path"]: row["group"] for row in csv.DictReader(file)}
    assert groups["000.png"] == groups["004.png"] == "pair0"


@pytest.mark.parametrize("kept", rest_is_slow([4, 1, 2, 3, 5]))
def test_killed_while_it_began_it_begins_the_same(serve, project, kept):
    rows = [f"{i:03d}.png,{'deer' if i % 2 else 'fox'},train," for i in range(6)]
    rows += [f"{i:03d}.png,,train," for i in range(6, 12)] + ["012.png,,test,", "013.png,deer,test,"]
    serve("photos", "--labels", a_list(project, rows)).kill()

    def begun():
        found = [each for each in events(project) if each["do"] not in ("served", "list", "again")]
        return [{key: each[key] for key in each if key not in ("n", "at")} for each in found][:6]

    whole = begun()
    assert [each["do"] for each in whole] == ["class", "class", "listed", "test", "asked", "asked"]
    cut(project, kept)
    serve("photos").kill()
    assert begun() == whole


def test_a_class_that_was_made_in_the_page_is_not_made_again(serve, project):
    first = serve("photos", "--test", 4)
    Client(first.address).label(2, ["lynx", "fox"])
    first.kill()
    again = serve("photos", "--classes", "lynx,deer")
    names = [each["name"] for each in Client(again.address).state()["classes"]]
    assert names == ["lynx", "fox", "deer"]


@pytest.mark.slow
def test_an_image_with_a_label_that_cannot_be_read_does_not_stop_the_end(serve, project, clfew):
    rows = [f"{i:03d}.png,{'deer' if i % 2 else 'fox'},train," for i in range(12)]
    named = a_list(project, rows)
    content = (project / "photos/003.png").read_bytes()
    (project / "photos/003.png").write_bytes(content[: len(content) // 2])
    served = serve("photos", "--labels", named, "--test", 4)
    client = Client(served.address)
    (project / "photos/005.png").unlink()
    client.do("finish")
    ended = served.wait()
    assert ended.rc == 0, ended.stderr
    with open(project / RUN / "labels.csv", newline="") as file:
        listed = {row["path"] for row in csv.DictReader(file)}
    assert not listed & {"003.png", "005.png"} and len(listed) == 14


@pytest.mark.parametrize(("listed", "drawn"), [(0, 13), (30, 9), (39, 0), (40, 0)])
def test_the_usual_test_sample_is_as_large_as_can_be(serve, project, listed, drawn):
    rows = [f"{i:03d}.png,{'deer' if i % 2 else 'fox'},train," for i in range(listed)]
    options = ["--labels", a_list(project, rows)] if rows else []
    served = serve("photos", *options)
    assert Client(served.address).state()["left"]["test"] == drawn


def test_what_cannot_go_on_is_refused(serve, project, clfew):
    stopped = serve("photos", "--test", 4, "--seed", 3, "--group-by", "(.*)0")
    stopped.send(signal.SIGTERM)
    assert stopped.wait().rc == 143
    other = a_list(project, ["001.png,deer,train,", "002.png,fox,train,"])
    for options, words, rc in (
        (("photos", "--test", 5), "has a test sample of 4 images", 1),
        (("photos", "--seed", 4), "goes on with --seed 3, not with 4", 2),
        (("photos", "--group-by", 1), "goes on with --group-by (.*)0, not with 1", 2),
        (("others", "--out", RUN), "others are not those of runs/label-1", 1),
        (("photos", "--out", RUN, "--labels", other), "goes on with the labels that it has", 2),
    ):
        said = clfew.refused("label", *options, "--no-browser", cwd=project, rc=rc)
        assert words in said, options


def test_the_same_images_elsewhere_go_on(serve, project):
    first = serve("photos", "--test", 4)
    Client(first.address).label(3)
    first.kill()
    (project / "photos").rename(project / "moved")
    again = serve("moved", "--out", RUN)
    state = Client(again.address).state()
    assert state["labels"] + state["tested"] == 3 and not (project / "runs/label-2").exists()
