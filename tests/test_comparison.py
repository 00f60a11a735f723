import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clfew.commands.comparison import Cells, Images, _best_stage, accuracy_of, features_by_stage, rows_of
from clfew.finetuning.labelled_data import LabelledData
from clfew.finetuning.probes import few_label_correct, folds
from clfew.models.encoder import Encoder
from clfew.report.comparison import draw_comparison, header, lines

CPU = torch.device("cpu")


def images_of(labels, pool, test, pixels=None, size=16):
    labels = np.asarray(labels)
    count = len(labels)
    pixels = np.zeros((count, size, size, 3), np.uint8) if pixels is None else pixels
    source = SimpleNamespace(labels=labels, classes=["a", "b"])
    cache = SimpleNamespace(pixels=pixels, aspects=np.ones(count, np.float32), side=size)
    data = LabelledData(source, cache, np.array(pool), np.array(test), 0, 2)
    return Images(len(pool), data, {}, size, CPU, "fp32")


def features(labels, helps, seed=0):
    random = np.random.default_rng(seed)
    return (random.normal(size=(len(labels), 8)) + 4 * helps * np.asarray(labels)[:, None]).astype(
        np.float32
    )


def test_the_stage_is_chosen_on_the_labels_and_not_on_the_test_images():
    labels = np.arange(40) % 2
    images = images_of(labels, range(30), range(30, 40))
    good, bad = features(labels, 1.0), features(labels, 0.0, seed=1)
    bad[30:] = features(labels, 5.0)[30:]  # The test images alone would choose the other stage.
    labelled = np.arange(12)
    assert _best_stage([bad, good, bad], images, labelled, 0) == 1
    found = accuracy_of([bad, good, bad], images, labelled, "linear", 0)
    assert found["stage"] == 2 and found["accuracy"] == 1.0


def test_with_one_label_in_some_class_the_last_stage_is_read():
    labels = np.arange(20) % 2
    images = images_of(labels, range(16), range(16, 20))
    assert (
        _best_stage([features(labels, 1.0), features(labels, 0.0)], images, np.array([0, 1, 2]), 0) == 1
    )


def test_correct_predictions_are_counted_on_labels_that_were_held_out():
    labels = np.arange(40) % 2
    splits = folds(labels[:20], 0)
    rows = np.arange(20)
    assert few_label_correct(features(labels, 1.0), rows, labels[:20], splits).all()
    assert few_label_correct(features(labels, 0.0), rows, labels[:20], splits).sum() < 17


@torch.no_grad()
def test_features_by_stage_end_with_the_encoders_own():
    torch.manual_seed(0)
    encoder = Encoder("resnet8-w8", 16, [0.5] * 3, [0.25] * 3).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    images = images_of([0, 1] * 3, [1, 3, 4], [0, 5], pixels)
    found = features_by_stage(encoder, images)
    inputs = torch.from_numpy(pixels[[1, 3, 4, 0, 5]]).permute(0, 3, 1, 2).float() / 255
    maps = encoder.maps(encoder.prepare(inputs))
    assert len(found) == len(maps)
    np.testing.assert_allclose(found[-1], encoder(inputs).numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[0], maps[0].mean((2, 3)).numpy(), rtol=1e-4, atol=1e-5)


def test_cells_are_kept_as_they_come_and_not_measured_again(tmp_path):
    plan = [("1%", 0, np.array([1])), ("1%", 1, np.array([2])), ("5%", 0, np.array([1, 2]))]
    settings = []

    def measure(number, sample):
        settings.append((number, sample.tolist()))
        if len(settings) == 3:
            raise KeyboardInterrupt
        return {"accuracy": number / 2}

    with pytest.raises(KeyboardInterrupt):
        Cells(tmp_path / "cells.json").fill("simclr/0", plan, measure)
    again = Cells(tmp_path / "cells.json")
    assert not again.has("simclr/0", plan) and again.has("simclr/0", plan[:2])
    again.fill("simclr/0", plan, measure)
    assert settings == [(0, [1]), (1, [2]), (0, [1, 2]), (0, [1, 2])]
    assert json.loads((tmp_path / "cells.json").read_text())["simclr/0/1%/1"] == {"accuracy": 0.5}


def test_rows_hold_mean_std_and_interval_over_label_samples_and_seeds(tmp_path):
    cells = Cells(tmp_path / "cells.json")
    label_samples = {"1%": [np.arange(4), np.arange(4)]}
    plan = [("1%", number, sample) for number, sample in enumerate(label_samples["1%"])]
    for name, base in (("raw-pixels/0", 0.1), ("byol/0", 0.2), ("byol/1", 0.6)):
        cells.fill(name, plan, lambda number, _, b=base: {"accuracy": b + 0.1 * number, "stage": 2})
    settings = SimpleNamespace(seeds=2, draws=2)
    raw, byol = rows_of(cells, ["raw-pixels", "byol"], label_samples, settings, 40, 400)
    assert raw["draws"] == pytest.approx([0.1, 0.2]) and raw["mean"] == pytest.approx(0.15)
    assert byol["draws"] == pytest.approx([0.2, 0.3, 0.6, 0.7]) and byol["labels"] == 4
    # The label samples differ by .1, the seeds by .4, and nothing else.
    assert byol["std"] == pytest.approx(np.sqrt((0.1**2 + 0.4**2) / 2))
    low, high = byol["ci95"]
    assert low < byol["mean"] < high and byol["stage"] == 2
    result = {"rows": [raw, byol], "titles": {"raw-pixels": "raw pixels", "byol": "byol"}}
    assert header(result) == ["accuracy, % (95 % interval)", "1% (4)"]
    assert [line[0] for line in lines(result)] == ["raw pixels", "byol"]
    assert lines(result)[1][1] == f"45.0 ({100 * low:.1f} to {100 * high:.1f})"
    assert draw_comparison(result).startswith(b"\x89PNG")
