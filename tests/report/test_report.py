"""The report: hostile names stay text, the page needs no other file, odd sizes neither warn nor fail."""

import io
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from marks import rest_is_slow
from PIL import Image

from clfew.finetuning.metrics import classification_report
from clfew.report import figures
from clfew.report.page import ReportDetails, percent, verdict, write_report
from clfew.report.text import flatten

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{1}{0}$ $",
    "_hidden",
    "</style><b>",
    "a\nb\x1b[31m\u202eltr",
    "猫 кот 🐈 \udce9 \x00",
    "long name " * 40,
]
ROWS = [
    {
        "step": i,
        "epoch": i / 2,
        "loss": 3 - i / 50,
        "lr": 0.1,
        "images_per_second": 90.0,
        "data_wait": 0.1,
    }
    for i in range(1, 60)
]


@pytest.fixture(autouse=True)
def no_warnings() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # matplotlib calls functions that a newer pyparsing will rename; users do not see these warnings.
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def example(
    classes: list[str], count: int, right: bool = False, **changes: Any
) -> tuple[dict[str, Any], ReportDetails]:
    """Returns the report of a test on `count` random images; with `right` no prediction is wrong.

    changes: new values of keys of the report or fields of the details; labels_used is the report's
    key labels.
    """
    random = np.random.default_rng(0)
    labels = np.arange(count) % len(classes)
    logits = random.normal(size=(count, len(classes)))
    logits[np.arange(count), labels] += 50 if right else 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    report = classification_report(probabilities.astype(np.float32), labels, classes)
    report |= {
        "temperature": 1.0,
        "ece_uncalibrated": report["ece"],
        "baselines": [
            {"name": "always the largest class", "class": classes[0], "accuracy": 0.3},
            {"name": "logistic regression", "accuracy": 0.4, "balanced_accuracy": 0.5, "macro_f1": 0.45},
        ],
        "accepted": {"accuracy": 0.95, "fraction": None, "why": "nothing shows that"},
        "seen_in_pretraining": 0,
        "seen_in_finetuning": 0,
        "source": "photos",
        "mode": "full",
        "split": "its own test split",
        "artifact": "runs/finetune-1/classifier.safetensors",
        "labels": changes.pop("labels_used", 40),
    }
    details = {
        "probabilities": probabilities.astype(np.float32),
        "labels": labels,
        "images": random.integers(0, 255, (count, 16, 16, 3), dtype=np.uint8),
        "aspects": random.uniform(0.3, 3, count).astype(np.float32),
        "features": random.normal(size=(count, 8)).astype(np.float32),
        "identities": [f"test/{i}.png" for i in range(count)],
        "curves": {"pretrain": ROWS},
        "commands": ["clfew pretrain photos", "clfew finetune --labels 40"],
        "settings": {"pretrain": {"plan": {"lr": 0.1}, "size": 28}},
    }
    report |= {key: value for key, value in changes.items() if key not in details}
    details |= {key: value for key, value in changes.items() if key in details}
    return report, ReportDetails(**details)


def write(folder: Path, *arguments: Any, **changes: Any) -> str:
    """Writes a report, checks its pictures and its page, and returns the page."""
    paths = write_report(folder, *example(*arguments, **changes))
    names = ["report.html", "confusion.png", "reliability.png", "precision_recall.png", "embedding.png"]
    assert [path.name for path in paths] == names
    for path in paths[1:]:
        check_picture(path.read_bytes())
    page = paths[0].read_text(encoding="utf-8")
    check_page(page)
    return page


def check_picture(content: bytes) -> None:
    image = Image.open(io.BytesIO(content), formats=["PNG"])
    image.load()
    assert 300 <= image.width <= 2400 and 200 <= image.height <= 2400


class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(page: str) -> None:
    """Checks that the page runs no code and fetches nothing, pictures have alt texts, links a target."""
    tags = Tags(page).tags
    names = {tag for tag, _ in tags}
    assert not names & {"script", "iframe", "object", "embed", "link", "form", "base", "b onclick"}
    identifiers = {attributes.get("id") for _, attributes in tags}
    for tag, attributes in tags:
        assert not [key for key in attributes if key.startswith("on")]
        for key in ("src", "srcset"):
            assert (attributes.get(key) or "data:image/").startswith("data:image/")
        if "href" in attributes:
            assert (attributes["href"] or "").removeprefix("#") in identifiers
        if tag == "img":
            assert attributes["alt"]
    assert "url(" not in page and "@import" not in page
    assert not re.search(r"https?://", page)


def test_a_page_shows_every_part(tmp_path: Path) -> None:
    page = write(tmp_path, ["cat", "dog", "eel"], 60, seen_in_pretraining=60)
    text = " ".join(Tags(page).text.split())
    for part in (
        "of 60 test images classified correctly",
        "95 % interval",
        "Most confused",
        "predicted as",
        "Most confident mistakes",
        "Sample predictions",
        "transductive",
        "Training",
        "Class by class",
        "clfew finetune --labels 40",
        "plan.lr",
        "its own test split",
        "59 steps, 29.5 epochs",
        "Precision and recall",
        "No images may be accepted unseen as 95 % right: nothing shows that.",
    ):
        assert part in text
    assert "too optimistic" not in text
    order = [page.index(f'<section id="{name}"') for name in re.findall(r'<section id="(\w+)"', page)]
    assert len(order) == 9 and order == sorted(order)


def test_hostile_names_stay_text(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    changes = {
        "identities": [f"{HOSTILE[i % 10]}/{i}" for i in range(60)],
        "commands": HOSTILE,
        "settings": {name: {name: {name: name}} for name in HOSTILE},
        "curves": {HOSTILE[0]: ROWS, HOSTILE[4]: ROWS[:1]},
        **dict.fromkeys(("source", "split", "artifact", "mode"), HOSTILE[1]),
    }
    page = write(tmp_path, HOSTILE, 60, **changes)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7 * 7 }}" in Tags(page).text
    assert not re.search("[\x00\x1b\u202e]", page)
    assert capfd.readouterr() == ("", "")


def test_the_error_before_calibration_is_shown_if_the_classifier_was_calibrated(tmp_path):
    page = write(tmp_path, ["cat", "dog"], 20, temperature=2.0, ece_uncalibrated=0.321)
    assert "ECE before calibration" in page and "32.1" in page
    assert "before calibration" not in write(tmp_path, ["cat", "dog"], 20)


@pytest.mark.parametrize(
    "classes, images", rest_is_slow([(2, 1), (2, 9), (2, 10), (20, 40), (300, 400)], 2)
)
def test_odd_sizes(tmp_path: Path, capfd: pytest.CaptureFixture[str], classes: int, images: int) -> None:
    names = [f"class_{i}" for i in range(classes)]
    page = write(tmp_path, names, images, curves={})
    assert "No training curves" in page
    assert page.count('<div class="six">') == min(classes, images, 30)
    assert capfd.readouterr() == ("", "")


def test_no_mistakes(tmp_path: Path) -> None:
    page = write(tmp_path, ["a", "b"], 20, right=True, labels_used=None)
    assert "every test image was classified correctly" in page
    assert "No class was confused with another." in page


def test_images_trained_on_make_the_accuracy_optimistic(tmp_path: Path) -> None:
    page = write(tmp_path, ["a", "b"], 12, seen_in_finetuning=5, seen_in_pretraining=7)
    assert page.index("too optimistic") < page.index("transductive") < page.index("<nav")


def test_unusual_values_do_not_stop_it(tmp_path: Path) -> None:
    broken = np.zeros((12, 3), np.float32)
    broken[0] = np.nan
    write(
        tmp_path,
        ["a", "b"],
        12,
        features=broken,
        aspects=np.array([0, np.nan, np.inf, 1e-9] * 3),
        curves={"pretrain": [{"step": 1, "loss": 2.0}], "finetune": [], "other": [{"step": 1}]},
        settings={},
        commands=[],
        labels=np.zeros(12, np.int64),
    )


def test_only_images_on_the_page_are_read(tmp_path: Path) -> None:
    class Counting(list):
        reads = 0

        def __getitem__(self, index: Any) -> Any:
            self.reads += 1
            return super().__getitem__(index)

    images = Counting(np.zeros((90, 8, 8, 3), np.uint8))
    write(tmp_path, ["a", "b"], 90, images=images)
    assert 0 < images.reads <= 24 + 2 * 6 + 2 * 2


@pytest.mark.parametrize("theme", [figures.LIGHT, figures.DARK])
def test_pictures_take_any_name(theme: figures.Theme, capfd: pytest.CaptureFixture[str]) -> None:
    labels = np.arange(10)
    check_picture(figures.confusion_picture(np.eye(10, dtype=int).tolist(), HOSTILE, theme))
    points = np.arange(20.0).reshape(10, 2)
    check_picture(figures.embedding_picture(points, labels, labels > 5, HOSTILE, theme))
    for name in HOSTILE[4:6]:
        check_picture(figures.curves_picture(ROWS, name, theme))
    assert capfd.readouterr() == ("", "")


def test_confusion_colours_are_fractions_of_the_row() -> None:
    """Rows of 1,000 and of 10 images with the same fractions look the same; an empty row is white."""
    content = figures.confusion_picture([[500, 500, 0], [5, 5, 0], [0, 0, 0]], ["a", "b", "c"])
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).reshape(-1, 3)
    colours, counts = np.unique(pixels, axis=0, return_counts=True)
    most = sorted(zip(counts.tolist(), colours.tolist(), strict=True), reverse=True)[:3]
    areas = {tuple(colour): count for count, colour in most}
    paper = areas.pop((255, 255, 255))
    (first, area), (second, other) = areas.items()
    assert area == pytest.approx(other, rel=0.1) and paper > 2 * area
    assert {first[0] < first[2], second[0] < second[2]} == {True, False}  # A blue and an orange.


def test_names_are_shortened_in_the_middle() -> None:
    assert figures.readable("short", 0) == "short"
    assert figures.readable("golden retriever of the north 12", 0) == "golden retr…rth 12"
    assert figures.readable("\ue000\ue001", 6) == "class 7"
    assert figures.readable("a\ue000\n b", 6) == "a▯ b"


def test_embedding_is_seeded_and_bounded() -> None:
    features = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    shown, points = figures.embed(features, seed=3)
    assert points.shape == (40, 2) and shown.tolist() == list(range(40))
    np.testing.assert_array_equal(points, figures.embed(features, seed=3)[1])
    for count, width in ((1, 4), (3, 1), (12, 1)):
        assert figures.embed(np.ones((count, width), np.float32))[1].shape == (count, 2)


def test_embedding_keeps_clusters_apart() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = 8 * np.eye(3)[labels] + random.normal(size=(60, 3))
    _, points = figures.embed(features)
    gaps = np.linalg.norm(points[:, None] - points, axis=2) + 1e9 * np.eye(60)
    assert (labels[gaps.argmin(1)] == labels).mean() > 0.95


def test_thumbnails_keep_their_aspect_and_small_ones_their_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 255, (28, 28, 3), dtype=np.uint8)
    content, mime = figures.thumbnail(image, 1.0)
    assert mime == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), image)
    for aspect, size in (
        (2.0, (160, 80)),
        (0.5, (80, 160)),
        (1e9, (160, 20)),
        (float("nan"), (160, 160)),
    ):
        content, mime = figures.thumbnail(np.zeros((224, 224, 3), np.uint8), aspect)
        assert mime == "image/jpeg" and Image.open(io.BytesIO(content)).size == size


def test_settings_are_flattened() -> None:
    nested = {"a": {"b": [1, 2], "c": None}, "d": [{"e": 1}, {"e": 2}], "f": {}}
    assert flatten(nested) == [("a.b", "1, 2"), ("a.c", "–"), ("d.0.e", "1"), ("d.1.e", "2")]


def test_percent_and_verdict() -> None:
    assert (percent(0.8035), percent(1.0, 0), percent(None)) == ("80.3\u202f%", "100\u202f%", "–")


def test_the_verdict_on_calibration_says_what_the_images_can_tell() -> None:
    def of(confidence, accuracy, images):
        return verdict(np.full(images, confidence), np.arange(images) < accuracy * images)

    assert "over-confident" in of(0.9, 0.8, 1000) and "under-confident" in of(0.7, 0.8, 1000)
    assert "over-confident" in of(0.95, 0.5, 20)
    # 16 of 20 is what a confidence of .9 shows by chance.
    assert "On 20 images, which is a rough estimate, no" in of(0.9, 0.8, 20)
    assert "On 1 image, which" in of(0.6, 1, 1)
    groups = np.repeat([0.7, 0.9], 1000)  # Each is wrong by .1, in other directions.
    assert "not for every group" in verdict(groups, np.arange(2000) % 5 > 0)
    assert "can be trusted" in of(0.8, 0.8, 2000)


@pytest.mark.parametrize("images", [50, 200, 1000])
def test_a_perfectly_calibrated_classifier_is_rarely_called_wrong(images) -> None:
    random, wrong = np.random.default_rng(0), 0
    for _ in range(60):
        confidence = random.beta(4, 2, images).clip(0.1)
        said = verdict(confidence, random.random(images) < confidence)
        wrong += "confident:" in said or "not for every group" in said
    assert wrong <= 9  # Of 60, a twentieth for each of the two claims at most, and chance.
