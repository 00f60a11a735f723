"""Sessions on made-up codes, without images or an encoder."""

import numpy as np

from clfew.labelling import session as module
from clfew.labelling.board import Board
from clfew.labelling.log import LOG, DecisionLog
from clfew.labelling.session import Session
from clfew.labelling.work import Work
from clfew.selection.codes import SCALE
from clfew.selection.pool import pool_of


def codes_of(sizes, width=0.3, dim=24, seed=0):
    """Codes of clusters, and the cluster of each. width: of a cluster, with centres about 1.4 apart."""
    chance = np.random.default_rng(seed)
    centres = chance.normal(size=(len(sizes), dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    vectors = centres[cluster] + width * chance.normal(size=(len(cluster), dim)) / np.sqrt(dim) * 2
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.round(SCALE * vectors).astype(np.int16), cluster


class Made:
    """A session on clusters. kind: the cluster of each image by its name. The last `tests` images of a
    random order are the test sample."""

    def __init__(self, folder, sizes=(30, 30), tests=8, budget=None, seed=0, names=None, width=0.3):
        codes, cluster = codes_of(sizes, width, seed=seed)
        self.names = names or [f"{i:03d}.jpg" for i in range(len(codes))]
        self.folder, self.budget = folder, budget
        self.kind = dict(zip(self.names, cluster.tolist(), strict=True))
        order = np.random.default_rng(seed).permutation(len(codes))
        tested = np.sort(order[len(codes) - tests :])
        pool = np.sort(order[: len(codes) - tests])
        everyone = np.arange(len(codes))
        worked = pool_of(pool, everyone, everyone, self.names)
        self.tests = [self.names[i] for i in tested]
        self.work = Work(
            worked,
            {self.names[i]: row for row, i in enumerate(worked.images)},
            codes[worked.images],
            self.tests,
            codes[tested],
            0,
        )
        self.count, self.log = 0, None
        self.start()
        if tests:
            self.session.append({"do": "test", "images": self.tests, "how": "random"})
        self.session.ask(40)

    def start(self):
        """Starts a session, as a new process does."""
        if self.log is not None:
            self.log.close()
        self.log = DecisionLog(self.folder / LOG)
        self.board = Board(self.names, self.work, self.budget)
        self.session = Session("photos", self.board, self.log)
        return self.session

    def do(self, do, **more):
        """Sends a decision; returns what is shown then."""
        self.count += 1
        return self.session.do({"do": do, "request": f"r{self.count}", **more})

    def state(self):
        return self.session.state()

    def label(self, **more):
        """Labels the image that is asked for, as what it is, in classes of the clusters' names."""
        number = self.state()["queue"][0]["image"]
        return self.do("label", image=number, name=f"class {self.kind[self.names[number]]}", **more)

    def labels(self, count):
        for _ in range(count):
            shown = self.label()
        return shown

    def to_a_page(self):
        """Labels until there is a page."""
        for _ in range(60):
            self.label()
            self.session.work_once()
            if (shown := self.state())["page"] is not None:
                return shown
        raise AssertionError("there is no page")

    def to_the_end(self):
        """Labels all that may be labelled, one by one as far as that goes."""
        for _ in range(200):
            shown = self.state()
            if shown["queue"]:
                self.label()
            elif shown["page"] is not None:
                self.accept(shown)
            else:
                return
            self.session.work_once()
        raise AssertionError("there is no end")

    def accept(self, shown, **more):
        page = shown["page"]
        name = {each["id"]: each["name"] for each in shown["classes"]}[page["class"]]
        images = page["images"]
        wrong = [n for n in images if f"class {self.kind[self.names[n]]}" != name]
        wrong = [{"image": number, "class": None} for number in wrong]
        return self.do("page", **({"class": page["class"], "images": images, "wrong": wrong} | more))


def at_once(monkeypatch):
    """Where no thread fits the classifier, a page need not wait for it."""
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.0)
