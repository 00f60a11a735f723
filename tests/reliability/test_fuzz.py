"""Any option or image leads to a correct result or to a UserError.

With CLFEW_THOROUGH=1 each test searches for ten minutes instead of a few seconds.
"""

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fuzzing import fuzz
from hypothesis import strategies as st

from clfew.data.augment import (
    CROP_RATIO,
    Recipe,
    crop_boxes,
    evaluation_view,
    random_views,
    resampling_matrix,
)
from clfew.data.labels import LabelSpec, parse_labels, sample_labels
from clfew.data.lists import ListFile
from clfew.data.randomness import ImageRandom
from clfew.data.source import Source
from clfew.errors import UserError
from clfew.training import budget
from clfew.training.batch import Batches, TrainingData
from clfew.training.optim import choose_pretraining, learning_rate
from clfew.training.plan import Plan

CPU = torch.device("cpu")

PIECES = (
    "0",
    "1",
    "2",
    "40",
    "100",
    "007",
    "٣",
    "²",
    ".",
    ".5",
    "%",
    " %",
    "/class",
    "/",
    "all",
    "csv",
    ".csv",
    "mine.csv",
    "-",
    "+",
    "e",
    "_",
    "nan",
    "inf",
    " ",
    "\n",
    "\t",
    "\0",
    "9" * 5000,
    "0" * 400,
    "a" * 300,
    "\ud800",
    "é",
)
SPECS = st.one_of(
    st.text(max_size=12),
    st.lists(st.sampled_from(PIECES), max_size=5).map("".join),
    st.builds("{}{}".format, st.integers(0, 130), st.sampled_from(("", "%", "/class"))),
    st.builds("{}%".format, st.floats(0, 101).map("{:.6f}".format)),
)


def meaning(text: str, csv_files: set[str]) -> LabelSpec | None:
    """Parses a label spec as the documentation defines it; None if it is not valid."""
    text = text.strip()
    if text == "all":
        return LabelSpec()
    if text.lower().endswith((".csv", ".tsv", ".jsonl")):
        return LabelSpec(listed=ListFile(Path(text))) if text in csv_files else None
    number, unit = text, "total"
    for ending, name in (("%", "fraction"), ("/class", "per_class")):
        if text.endswith(ending):
            number, unit = text.removesuffix(ending), name
    if unit == "fraction":
        whole, dot, part = number.rstrip().partition(".")
        if not whole.isdecimal() or (dot and not part.isdecimal()):
            return None
        fraction = float(number) / 100
        return LabelSpec(fraction=fraction) if 0 < fraction <= 1 else None
    # A number of more than eighteen digits is larger than any number of images.
    if not number.isdecimal() or len(number) > 18 or int(number) == 0:
        return None
    return LabelSpec(**{unit: int(number)})


def source_of(sizes: list[int]) -> Source:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    names = [f"{label}/{i}.png" for i, label in enumerate(labels)]
    splits = np.full(len(labels), "train")
    return Source("/data", names, labels, [f"c{c}" for c in range(len(sizes))], splits, bytes, "")


def check_counts(spec: LabelSpec, sizes: list[int], counts: list[int]) -> None:
    """Checks the number of labels sampled from each class. sizes: the images of each class."""
    assert all(1 <= count <= size for count, size in zip(counts, sizes, strict=True))
    if spec.fraction is not None:
        assert counts == [max(1, round(spec.fraction * size)) for size in sizes]
    elif spec.per_class is not None:
        assert counts == [spec.per_class] * len(sizes)
    elif spec.total is not None:
        assert sum(counts) == spec.total
        # Counts are as even as possible: only a class without images left has two fewer than another.
        assert all(c >= max(counts) - 1 or c == size for c, size in zip(counts, sizes, strict=True))
    else:
        assert counts == sizes


def test_label_specs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_text("path,label\n")

    def holds(text, sizes, seed):
        expected = meaning(text, {"mine.csv"})
        try:
            spec = parse_labels(text)
        except UserError as error:
            assert expected is None and error.message.endswith(".") and error.hint
            return
        assert expected is not None, f"{text!r} means nothing, and was taken for {spec}"
        assert spec == expected
        if spec.listed is not None:
            return
        source, pool = source_of(sizes), np.arange(sum(sizes))
        try:
            sampled = sample_labels(source, pool, spec, seed)
        except UserError:
            too_many = (spec.per_class or 0) > min(sizes) or (spec.total or 0) > sum(sizes)
            assert too_many or (spec.total or len(sizes)) < len(sizes)
            return
        assert np.array_equal(sampled, np.unique(sampled))
        check_counts(spec, sizes, np.bincount(source.labels[sampled]).tolist())

    sizes = st.lists(st.integers(1, 60), min_size=1, max_size=5)
    fuzz(700, holds, text=SPECS, sizes=sizes, seed=st.integers(0, 2**63 - 1))


@pytest.fixture
def timed(monkeypatch):
    """Replaces the trial of a step: it takes `seconds` of the returned object, on a stopped clock."""
    trial = SimpleNamespace(seconds=1.0)
    monkeypatch.setattr(budget, "trial_times", lambda *arguments: [trial.seconds])
    monkeypatch.setattr(budget, "choose_compile", lambda *arguments: (False, "not here"))
    monkeypatch.setattr(budget.console, "say", lambda line: None)
    monkeypatch.setattr(budget, "time", SimpleNamespace(monotonic=lambda: 0.0))
    return trial


def test_schedules(timed):
    def holds(images, batch, epochs, minutes, parameters, seconds, fraction):
        timed.seconds = seconds
        data = TrainingData(np.empty(0), np.empty(0), range(images))
        settings = budget.Budget(epochs, minutes, 200, 10)
        try:
            plan = budget.plan_within(
                settings,
                torch.nn.Identity(),
                data,
                CPU,
                budget.PlanOptions(
                    batch,
                    lambda steps: choose_pretraining(batch, steps, parameters),
                    None,
                    0,
                    "fp32",
                    "off",
                ),
            )
        except UserError:
            steps = None if epochs is None else epochs * max(1, images // batch)
            given = [(steps, 0.99e15), (minutes, 0.99e9)]
            assert any(value is not None and not 0 < value < most for value, most in given)
            return
        per_epoch = plan.steps_per_epoch(images)
        if epochs is not None:
            assert plan.steps == max(1, round(epochs * per_epoch))
        else:
            available = 60 * (minutes or 10)
            assert plan.steps == 1 or plan.steps * seconds <= available * (1 + 1e-9)
            assert plan.seconds == max(1e-3, available)
            assert plan.most_steps == (None if minutes else max(1, 200 * per_epoch))
            if minutes is None:
                assert plan.steps <= 200 * per_epoch
            else:
                assert (plan.steps + 1) * seconds > available * (1 - 1e-9), "time is left"
        check_rates(plan, fraction)

    fuzz(
        500,
        holds,
        images=st.one_of(st.integers(1, 300), st.integers(1, 10**9)),
        batch=st.one_of(st.integers(2, 300), st.integers(2, 10**6)),
        epochs=st.one_of(st.none(), st.floats(1e-9, 1e4), st.floats()),
        minutes=st.one_of(st.none(), st.floats(0.01, 1e5), st.floats()),
        parameters=st.integers(1, 10**9),
        seconds=st.floats(1e-6, 1e4),
        fraction=st.floats(0, 1),
    )


def check_rates(plan: Plan, fraction: float) -> None:
    """Checks a linear warm-up to the peak, then a cosine that reaches 0 at the step after the last."""
    steps, warmup, peak = plan.steps, plan.warmup_steps, plan.learning_rate
    assert 1 <= warmup <= steps and 0 < peak < math.inf

    def rate(step):
        return learning_rate(step, steps, warmup, peak)

    assert rate(0) == pytest.approx(peak / warmup) and rate(warmup - 1) == pytest.approx(peak)
    some = int(fraction * (steps - 1))
    for step in {0, warmup - 1, min(warmup, steps - 1), some, steps - 1}:
        assert 0 <= rate(step) <= peak * (1 + 1e-9)
        # With more steps, the last rates are closer to 0 than a float's rounding error.
        assert rate(step) > 0 or steps > 10**7
    if 0 < some < steps - 1:
        before, after = rate(some - 1), rate(some)
        # At the peak the two are equal, except for a float's rounding error.
        assert after >= before if some < warmup else after <= before * (1 + 1e-12)
    if steps > warmup:
        left = 1 / (steps - warmup)
        assert rate(steps) == pytest.approx(0, abs=peak * 1e-9)
        assert rate(steps - 1) == pytest.approx(
            peak * math.sin(math.pi / 2 * left) ** 2, abs=1e-9 * peak
        )


def test_batches_take_every_image_at_most_once_an_epoch():
    def holds(images, batch, seed, epoch):
        data = TrainingData(
            np.arange(2 * images), np.ones(2 * images, np.float32), np.arange(images) * 2
        )
        plan = Plan(10**6, batch, "sgd", 0.1, 0.0, 1, seed, "fp32")
        batches = Batches(data, plan, CPU, 0)
        per_epoch = plan.steps_per_epoch(images)
        taken = [batches.gather(epoch * per_epoch + step) for step in range(per_epoch)]
        batches.close()
        assert {len(b.images) for b in taken} == {min(batch, images)}
        rows = np.concatenate([b.images.numpy() for b in taken])
        assert max(Counter(rows.tolist()).values()) == 1 and not (rows % 2).any()
        assert len(rows) > images - batch
        assert all(np.array_equal(b.random.indices, b.images.numpy()) for b in taken)

    some = st.integers(1, 200)
    fuzz(150, holds, images=some, batch=st.integers(2, 200), seed=st.integers(0, 2**63 - 1), epoch=some)


def test_crops():
    def holds(aspects, seed, smallest, side, size, extreme):
        count = len(aspects)
        aspects = torch.tensor(aspects, dtype=torch.float32)
        numbers = ImageRandom(seed, 0, np.arange(count)).uniform(0, 22)
        if extreme is not None:
            numbers[:] = extreme
        boxes = crop_boxes(torch.from_numpy(numbers), aspects, smallest).double()
        x, y, width, height = boxes.T
        slack = 1e-6
        assert boxes.isfinite().all() and (width > 0).all() and (height > 0).all()
        assert (x >= -slack).all() and (x + width <= 1 + slack).all()
        assert (y >= -slack).all() and (y + height <= 1 + slack).all()
        ratio, area = width / height * aspects, width * height
        assert (ratio > CROP_RATIO[0] - 1e-4).all() and (ratio < CROP_RATIO[1] + 1e-4).all()
        # If the image itself has an allowed aspect ratio, a crop of every size can have one.
        whole = (aspects >= CROP_RATIO[0]) & (aspects <= CROP_RATIO[1])
        assert (area[whole] >= smallest - 1e-5).all() and (area <= 1 + slack).all()
        for start, length in ((x, width), (y, height)):
            matrix = resampling_matrix((start * side).float(), (length * side).float(), side, size)
            assert matrix.isfinite().all() and (matrix >= 0).all()
            torch.testing.assert_close(matrix.sum(2), torch.ones(count, size))
        images = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3)))
        images, random = images.to(torch.uint8), ImageRandom(seed, 1, np.arange(count))
        views = random_views(images, aspects, size, Recipe(crop_area=smallest), random)
        assert views.shape == (2 * count, 3, size, size)
        for view in (views, evaluation_view(images, aspects, size)):
            assert view.isfinite().all() and view.min() >= 0 and view.max() <= 1

    aspect = st.one_of(
        st.floats(-math.log(5000), math.log(5000)).map(math.exp),
        st.sampled_from((1 / 5000, 0.75, 1.0, 4 / 3, 5000.0)),
    )
    fuzz(
        100,
        holds,
        aspects=st.lists(aspect, min_size=1, max_size=4),
        seed=st.integers(0, 2**63 - 1),
        smallest=st.floats(0.08, 1),
        side=st.integers(8, 40),
        size=st.integers(8, 32),
        extreme=st.sampled_from((None, None, 0.0, 1 - 2**-24)),
    )
