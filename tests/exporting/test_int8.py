"""A model with numbers of 8 bits, and whether it is worth having."""

import numpy as np
import pytest
from exported import KINDS, images

from clfew.commands import exporting
from clfew.commands.exporting import smaller
from clfew.data.decode import BadImage
from clfew.exporting.to_onnx import can_export
from clfew.settings import ExportSettings

pytest.importorskip("onnxruntime", reason="needs the extra clfew[onnx]")
pytestmark = pytest.mark.skipif(not can_export(), reason="needs torch 2.9 or later")


@pytest.fixture(scope="module")
def model():
    from clfew.exporting.to_onnx import onnx_model

    return onnx_model(KINDS["linear"](), 20, 16)


@pytest.fixture(scope="module")
def pictures():
    return [image for batch in images([(30, 20), (64, 48), (20, 30)], seed=1) for image in batch]


@pytest.fixture(scope="module")
def small(model, pictures):
    from clfew.exporting.int8 import quantized

    before = model.SerializeToString()
    made = quantized(model, pictures)
    assert model.SerializeToString() == before  # It is written, too.
    return made


def test_it_answers_nearly_the_same_at_every_batch(model, small, pictures):
    from clfew.exporting.runtime import Session

    sides = [Session(each.SerializeToString()) for each in (model, small)]
    for shape in ((41, 33), (200, 90)):
        batch = np.concatenate(list(images([shape] * 4, seed=2)))
        whole, rough = (side.probabilities(batch) for side in sides)
        assert 0 < np.abs(whole - rough).max() < 0.1
        np.testing.assert_allclose(sides[1].probabilities(batch[:1]), rough[:1], rtol=0, atol=1e-5)


def test_the_network_is_quantized_and_neither_the_pixels_nor_the_head(model, small):
    taken = {
        name for node in small.graph.node if node.op_type == "DequantizeLinear" for name in node.output
    }
    of_8_bits = [
        node.name
        for node in small.graph.node
        if taken & set(node.input) and node.op_type != "DequantizeLinear"
    ]
    assert of_8_bits and all(name.startswith("network/") for name in of_8_bits)
    sizes = [len(each.SerializeToString()) for each in (model, small)]
    assert sizes[1] < sizes[0]
    heads = [
        node
        for node in small.graph.node
        if node.op_type in ("Gemm", "MatMul") and node.name.startswith("network/")
    ]
    assert heads and not taken & set(heads[-1].input)


def test_weights_keep_to_7_bits_which_no_processor_overflows(small):
    import onnx.numpy_helper

    weights = [
        onnx.numpy_helper.to_array(each) for each in small.graph.initializer if each.data_type == 3
    ]
    many = [each for each in weights if each.ndim == 4]
    assert many and max(np.abs(each.astype(int)).max() for each in many) <= 64


@pytest.fixture(scope="module")
def trained(clfew, tmp_path_factory):
    """A classifier of images that are told apart by their hue, and the folder that it is in."""
    import commands

    folder = tmp_path_factory.mktemp("int8")
    commands.paint(folder / "images", each=30)
    clfew.ok("pretrain", "images", *commands.TINY, "--init", "scratch", cwd=folder)
    clfew.ok("finetune", "--labels", "4/class", "--mode", "linear", cwd=folder)
    return folder


@pytest.fixture(scope="module")
def known(trained):
    """The file of that classifier, and its ONNX model."""
    from clfew.exporting.to_onnx import onnx_model
    from clfew.models.artifacts import load_classifier

    artifact = trained / "runs/finetune-1/classifier.safetensors"
    classifier, metadata, _ = load_classifier(artifact)
    return artifact, onnx_model(classifier, metadata.side, metadata.size)


@pytest.fixture
def tried(trained, known, monkeypatch):
    """tried(times, wrong): what becomes of a model so many times as slow that errs so often."""
    artifact, made = known

    def run(times=0.5, wrong=0.0, **settings):
        monkeypatch.chdir(trained)
        monkeypatch.setattr(exporting, "_timed", lambda *_: ((1.0, 8.0), (times, 8 * times)))
        real, count = exporting.Session, iter(range(10**6))

        class Wrong(real):
            def probabilities(self, pixels):
                found = super().probabilities(pixels)
                return found[:, ::-1] if self.is_small and next(count) % 10 < 10 * wrong else found

            def __init__(self, content):
                super().__init__(content)
                self.is_small = content != made.SerializeToString()

        monkeypatch.setattr(exporting, "Session", Wrong)
        return smaller(ExportSettings(**settings), artifact, made)

    return run


@pytest.mark.slow
def test_it_is_kept_if_it_is_faster_and_as_right(tried):
    found = tried()
    assert found.is_kept and found.tested == 18 and found.model
    assert found.interval[0] <= found.accuracy_int8 <= found.interval[1]
    assert "speed 2.00 × at batch 1 and 2.00 × at batch 8" in found.why


@pytest.mark.slow
def test_it_is_not_kept_if_it_is_slower_or_less_right(tried):
    assert not tried(times=1.01).is_kept
    found = tried(wrong=0.9)
    assert not found.is_kept and found.accuracy_int8 < found.interval[0]


@pytest.mark.slow
def test_it_is_not_kept_without_images_to_test_it_on(tried, tmp_path):
    found = tried(source=str(tmp_path / "none"))
    assert not found.is_kept and found.why.startswith("no held-out images to test it on: There is no")


@pytest.mark.slow
def test_an_image_that_is_gone_meanwhile_is_not_counted_as_wrong(tried, monkeypatch):
    real, calls = exporting.decode, []

    def once_gone(*arguments):
        calls.append(arguments)
        if len(calls) == 45:  # After those that the ranges come from.
            raise BadImage("gone")
        return real(*arguments)

    monkeypatch.setattr(exporting, "decode", once_gone)
    monkeypatch.setattr(exporting, "CALIBRATION", 40)
    found = tried()
    assert found.tested == 17 and found.accuracy * 17 == pytest.approx(round(found.accuracy * 17))


@pytest.mark.slow
def test_a_network_that_cannot_be_quantized_is_no_error(tried, monkeypatch):
    def fails(*_):
        raise ValueError("Failed to find\nproper domain")

    monkeypatch.setattr(exporting, "quantized", fails)
    found = tried()
    assert not found.is_kept
    assert found.why == "ONNX Runtime cannot quantize it (Failed to find proper domain)"


def test_both_models_are_timed_in_turn():
    order = []

    class Fake:
        def __init__(self, name):
            self.name = name

        def probabilities(self, pixels):
            order.append((self.name, len(pixels)))

    exporting._timed([Fake("a"), Fake("b")], [np.zeros((4, 4, 3), np.uint8)])
    half = len(order) // 2
    assert order[:half] == [("a", 1), ("b", 1)] * (half // 2)
    assert order[half:] == [("a", 8), ("b", 8)] * (half // 2)
