"""What ten minutes of a person's time are worth: `clfew label` beside naming random images one by one.

    python examples/benchmarks/labelling.py DATA --work DIR [--only SET ...] [--draws N]
    python examples/benchmarks/labelling.py DATA --work DIR --speed

DATA and DIR are those of selection.py, whose encoders (SimCLR from ImageNet weights) are used. The
training images of a set, at most 4,000, lie in one folder without a word of their classes, as they are
and with a tail (selection.py says how). A simulated person labels them in the page of the real server,
by its HTTP requests. Then a classifier is fitted to the labels, as `clfew finetune` fits one to frozen
features, and tested on the test split. Accuracy is the mean over the classes weighted by their shares in
the pool; balanced accuracy is their plain mean.

The person takes 1.5 s for a single image: one mental act and one key, 1.35 + 0.2 s (Card, Moran and
Newell, The Keystroke-Level Model, CACM 1980). A page of 24 images takes 4 s: a glance of 0.15 s tells
what is in an image (Thorpe, Fize and Marlot, Speed of processing in the human visual system, Nature
1996), and one key. Each correction takes 1 s, to point at the image and click (1.1 s in the model of
1980), and 0.2 s for the key of its class; where its class has no key, it is named one by one later, for
1.5 s. Together that is 0.4 s an image where a fifth is wrong; tiles took 69 % less time than single
images, 0.5 s in place of 1.5 s, in Schultz (2019, on MTurk). Of all answers, 2 % are slips. The person
does what the page suggests, and also labels its random test images, 1.5 s each, which nothing is learned
from. Whoever labels at random has no test sample.

With --speed, the classifier of the page is timed on 20,000 made-up images with 500 labels of 10, 20 and
60 classes: the graph of neighbours, which is built once; the propagation after each page; and the
judgement that follows it (which images are sure, which labels contradict their neighbours).

Results go to results/labelling.json; what the file contains is not measured again.
"""

import argparse
import http.client
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from common import Results
from scipy import stats
from selection import Images, Nothing, with_tail

from clfew.data.held_out import split_source
from clfew.data.image_cache import open_image_cache
from clfew.data.sources import open_source
from clfew.labelling.assistant import Assistant, Labels
from clfew.models.metadata import read_metadata
from clfew.selection.classifier import Known, fit_to_codes
from clfew.selection.codes import AXES, SCALE, codes_of, projection_of

RESULTS = Path(__file__).parent / "results" / "labelling.json"
SETS, VERSIONS, MOST = ("fashion-mnist-6k", "cifar10"), ("as it is", "tail"), 4000
MINUTES = (1, 2, 3, 4, 5, 7, 10)
SINGLE, PAGE, CORRECTION, KEY, SLIPS = 1.5, 4.0, 1.0, 0.2, 0.02


class Pool:
    """The images to label, in a folder that does not tell their classes, and those to test on."""

    def __init__(self, images: Images, version: str) -> None:
        self.run = images.run_of("pretrained")
        self.folder = images.work / "pools" / f"{images.name}-{version.replace(' ', '-')}"
        source, found = open_source(str(images.folder)), images.features("pretrained")
        split = split_source(source, open_image_cache(source, read_side(self.run)), 0)
        files = [source.identities[i] for i in np.union1d(split.pool, split.test)]
        chance = np.random.default_rng(0)
        rows = np.sort(chance.permutation(np.flatnonzero(~found["test"]))[:MOST])
        rows = rows if version == "as it is" else with_tail(rows, found["labels"], chance)
        rows = chance.permutation(rows)
        self.names = [f"{i:05d}{Path(files[row]).suffix}" for i, row in enumerate(rows)]
        if not self.folder.exists():
            part = self.folder.with_suffix(".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            for name, row in zip(self.names, rows, strict=True):
                shutil.copy(images.folder / files[row], part / name)
            part.rename(self.folder)
        self.classes, self.labels = source.classes, found["labels"][rows]
        self.pictures = found["pictures"][rows]
        projection = projection_of(found["features"][rows], False)
        self.codes = codes_of(found["features"][rows], projection)
        self.tested = codes_of(found["features"][found["test"]], projection)
        self.test_labels = found["labels"][found["test"]]
        self.shares = np.bincount(self.labels, minlength=len(self.classes)) / len(rows)

    def test(self, images: list[int], labels: list[int], seed: int) -> dict[str, float]:
        """Fits a classifier to labels and tests it."""
        numbers = np.unique(labels)
        correct = np.zeros(len(self.test_labels), bool)
        if len(numbers) > 1:
            known = Known(
                np.array(images),
                np.searchsorted(numbers, labels),
                [*map(str, numbers)],
                ["chosen"] * len(images),
            )
            sample = np.arange(len(self.codes))
            arguments = (None, Nothing(), known, sample, self.codes, self.pictures, seed)
            probabilities, _ = fit_to_codes(*arguments)
            correct = numbers[probabilities(self.tested).argmax(1)] == self.test_labels
        every = range(len(self.classes))
        recalls = np.array([correct[self.test_labels == c].mean() for c in every])
        accuracy = float(recalls @ self.shares)
        return {"accuracy": accuracy, "balanced_accuracy": float(recalls.mean()), "labels": len(labels)}


def read_side(run: Path) -> int:
    return read_metadata(run / "encoder.safetensors")[0].side


class Server:
    """A running `clfew label`, and the page's side of its requests."""

    def __init__(self, pool: Pool, folder: Path, seed: int) -> None:
        command = [
            sys.executable,
            "-m",
            "clfew",
            "label",
            pool.folder,
            "--from",
            pool.run,
            "--no-browser",
        ]
        command += ["--classes", ",".join(pool.classes), "--seed", seed, "--out", folder]
        self.process = subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        found = None
        while found is None:
            line = self.process.stderr.readline()
            assert line, "clfew label has ended"
            found = re.search(r"http://\S+", line)
        url = urlsplit(found[0])
        self.host, self.sent = url.netloc, 0
        self.connection = http.client.HTTPConnection(url.netloc)
        self.connection.request("GET", f"/?{url.query}")
        answer = self.connection.getresponse()
        self.cookie = answer.headers["Set-Cookie"].split(";")[0]
        answer.read()

    def ask(self, method: str, path: str, body: dict | None = None) -> dict:
        headers = {"Cookie": self.cookie, "Origin": f"http://{self.host}"}
        headers |= {"Content-Type": "application/json"} if body is not None else {}
        content = None if body is None else json.dumps(body)
        self.connection.request(method, path, content, headers)
        answer = self.connection.getresponse()
        return json.loads(answer.read())

    def do(self, **request: object) -> dict:
        self.sent += 1
        answer = self.ask("POST", "/do", {"request": f"{self.sent:x}", **request})
        assert answer["ok"], answer
        return answer["state"]

    def settled(self, state: dict, seconds: float) -> dict:
        """Returns the state once the classifier is fitted, or after the time that the person takes."""
        end = time.monotonic() + seconds
        while state["busy"] and time.monotonic() < end:
            time.sleep(0.02)
            state = self.ask("GET", "/state")
        return state

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=60)


class Person:
    """Answers what is asked, with slips, and counts the seconds."""

    def __init__(self, pool: Pool, seed: int) -> None:
        self.pool, self.chance, self.seconds = pool, np.random.default_rng(seed), 0.0

    def names(self, image: int) -> int:
        """Returns the class that the person gives an image."""
        label, classes = int(self.pool.labels[image]), len(self.pool.classes)
        slips = self.chance.random() < SLIPS
        return (label + 1 + int(self.chance.integers(classes - 1))) % classes if slips else label

    def marks(self, image: int, label: int) -> bool:
        """Returns whether the person marks an image of a page as wrong."""
        return (self.pool.labels[image] != label) != (self.chance.random() < SLIPS)


def with_clfew(pool: Pool, seed: int, work: Path) -> list[dict[str, float]]:
    """Labels in the page for ten minutes; returns a row for each time in MINUTES."""
    folder = work / "labelling" / f"{pool.folder.name}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    server, person, rows, marks = Server(pool, folder, seed), Person(pool, seed), [], list(MINUTES)
    pages = wrong = 0
    state = server.ask("GET", "/state")
    class_of = {each["id"]: pool.classes.index(each["name"]) for each in state["classes"]}
    number_of = {label: number for number, label in class_of.items()}
    keys = {each["id"] for each in state["classes"] if each["key"] is not None}
    given: dict[int, int] = {}
    while marks:
        page = state["page"]
        if page is not None and (state["suggest"] == "page" or not state["queue"]):
            label, corrections = class_of[page["class"]], []
            for image in page["images"]:
                if person.marks(image, label):
                    own = number_of[person.names(image)]
                    corrections.append({"image": image, "class": own if own in keys else None})
            named = {each["image"]: each["class"] for each in corrections}
            seconds = PAGE + CORRECTION * len(named) + KEY * sum(n is not None for n in named.values())
            state = server.do(
                do="page", wrong=corrections, images=page["images"], **{"class": page["class"]}
            )
            final = {image: named.get(image, page["class"]) for image in page["images"]}
            given |= {image: class_of[n] for image, n in final.items() if n is not None}
            pages, wrong = pages + 1, wrong + len(named)
        elif state["queue"]:
            image, left = state["queue"][0]["image"], state["left"]["test"]
            label, seconds = person.names(image), SINGLE
            state = server.do(do="label", image=image, **{"class": number_of[label]})
            if state["left"]["test"] == left:  # Else it was of the test sample.
                given[image] = label
        else:
            break
        person.seconds += seconds
        state = server.settled(state, seconds)
        while marks and person.seconds >= 60 * marks[0]:
            row = pool.test([*given], [*given.values()], seed)
            row |= {"minutes": marks.pop(0), "pages": pages, "wrong": wrong, "tests": state["tested"]}
            rows.append(row | {"shown": state["accuracy"] and state["accuracy"]["mean"]})
    server.stop()
    last = pool.test([*given], [*given.values()], seed) if marks else {}
    return rows + [last | {"minutes": each, "all_labelled": True} for each in marks]


def at_random(pool: Pool, seed: int) -> list[dict[str, float]]:
    """Names random images one by one for as long."""
    order, person = np.random.default_rng(seed).permutation(len(pool.names)).tolist(), Person(pool, seed)
    labels = [person.names(image) for image in order]
    rows = []
    for minutes in MINUTES:
        count = min(len(order), int(60 * minutes / SINGLE))
        rows.append({"minutes": minutes, **pool.test(order[:count], labels[:count], seed)})
    return rows


def speed(classes: int) -> dict[str, float]:
    """Times the classifier of the page: seconds, the median of five fits."""
    chance = np.random.default_rng(0)
    cluster = chance.integers(200, size=20_000)
    vectors = chance.normal(size=(200, AXES))[cluster] + chance.normal(size=(20_000, AXES))
    vectors *= SCALE / np.linalg.norm(vectors, axis=1, keepdims=True)
    codes = np.round(vectors).astype(np.int16)
    started = time.perf_counter()
    assistant = Assistant(codes, np.arange(20_000), codes[:50])
    row, fits = {"graph": time.perf_counter() - started}, []
    rows = chance.permutation(20_000)[:500]
    labels = Labels(rows, cluster[rows] % classes, range(classes), np.ones(500, bool))
    for _ in range(5):
        started = time.perf_counter()
        fit = assistant.fit(labels)
        fits.append(time.perf_counter() - started)
    started = time.perf_counter()
    assistant.judge(fit)
    return row | {"propagation": float(np.median(fits)), "judgement": time.perf_counter() - started}


def reached(minutes: np.ndarray, accuracies: np.ndarray, wanted: float) -> float | None:
    """Returns after how many minutes an accuracy is reached, by straight lines between measurements."""
    above = np.flatnonzero(accuracies >= wanted)
    if not len(above):
        return None
    i = int(above[0])
    if i == 0:
        return float(minutes[0])
    before = (wanted - accuracies[i - 1]) / (accuracies[i] - accuracies[i - 1])
    return float(minutes[i - 1] + before * (minutes[i] - minutes[i - 1]))


def show(done: dict[str, list[dict]], draws: int) -> None:
    """Prints for each set the means at each time, the differences with their interval, and when clfew
    has what random labelling has after ten minutes."""
    for key in dict.fromkeys(key.split(", clfew")[0] for key in done if ", clfew" in key):
        both = [[done[f"{key}, {way}, {seed}"] for seed in range(draws)] for way in ("clfew", "random")]
        for measure in ("accuracy", "balanced_accuracy"):
            one, other = (np.array([[row[measure] for row in rows] for rows in way]) for way in both)
            print(f"{key}, {measure.replace('_', ' ')}")
            for place, minutes in enumerate(MINUTES):
                apart = 100 * (one - other)[:, place]
                reach = stats.t.ppf(0.975, draws - 1) * apart.std(ddof=1) / draws**0.5
                labels = [np.mean([rows[place]["labels"] for rows in way]) for way in both]
                print(
                    f"  {minutes:2d} min: {100 * one[:, place].mean():.1f} with {labels[0]:.0f} labels, "
                    f"random {100 * other[:, place].mean():.1f} with {labels[1]:.0f}: "
                    f"{apart.mean():+.1f} [{apart.mean() - reach:.1f}, {apart.mean() + reach:.1f}]"
                )
            when = reached(np.array(MINUTES, float), one.mean(0), other.mean(0)[-1])
            words = "not within ten minutes" if when is None else f"after {when:.1f} minutes"
            print(f"  what random labelling has after ten minutes is there {words}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--only", nargs="*", default=SETS)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    results = Results(given.results)
    if given.speed:
        for classes in (10, 20, 60):
            row = results.get(f"speed, {classes} classes", partial(speed, classes))
            print(f"{classes} classes: " + ", ".join(f"{k} {v:.2f} s" for k, v in row.items()))
        return
    for name, version in itertools.product(given.only, VERSIONS):
        pool = Pool(Images(name, given.data, given.work, given.minutes), version)
        for seed in range(given.draws):
            key = f"{name}, {version}"
            results.get(f"{key}, clfew, {seed}", partial(with_clfew, pool, seed, given.work))
            results.get(f"{key}, random, {seed}", partial(at_random, pool, seed))
    show(results.done, given.draws)


if __name__ == "__main__":
    main()
