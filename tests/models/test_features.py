import numpy as np
import pytest
import torch

from clfew.models import features
from clfew.models.encoder import Encoder
from clfew.models.features import features_of, remembered

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.setattr(features, "_RECENT", {})


@pytest.fixture
def mapped(tmp_path):
    """mapped(name) is a memory-mapped array of twenty images, as in an image cache."""
    return lambda name="a": np.memmap(tmp_path / name, np.uint8, "w+", shape=(20, 2, 2, 3))


def encoder_of(seed=0):
    torch.manual_seed(seed)
    return Encoder("resnet8-w8", 16, [0.5] * 3, [0.25] * 3)


def test_only_rows_that_were_not_computed_before_are_computed(mapped):
    computed, pixels = [], mapped()

    def compute(rows):
        computed.append(rows.tolist())
        return 10.0 * rows[:, None]

    network = encoder_of()
    first = remembered(network, pixels, np.array([3, 1, 7]), compute, "eval")
    second = remembered(network, pixels, np.array([9, 7, 0, 1]), compute, "eval")
    assert first[:, 0].tolist() == [30, 10, 70] and second[:, 0].tolist() == [90, 70, 0, 10]
    assert computed == [[1, 3, 7], [0, 9]]


def test_other_weights_images_or_settings_are_computed_again(mapped):
    computed, pixels = [], mapped()

    def compute(rows):
        computed.append(1)
        return rows[:, None].astype(float)

    network, rows = encoder_of(), np.arange(3)
    remembered(network, pixels, rows, compute, "eval")
    remembered(network, pixels, rows, compute, "views")
    remembered(encoder_of(1), pixels, rows, compute, "eval")
    remembered(network, mapped("b"), rows, compute, "eval")
    assert len(computed) == 4
    with torch.no_grad():
        next(network.parameters()).add_(1)
    remembered(network, pixels, rows, compute, "eval")
    assert len(computed) == 5


def test_only_the_most_recent_are_remembered(mapped):
    pixels = mapped()
    networks = [encoder_of(seed) for seed in range(features._MOST_RECENT + 2)]
    for network in networks:
        remembered(network, pixels, np.arange(3), lambda rows: rows[:, None], "eval")
    assert len(features._RECENT) == features._MOST_RECENT
    fail = lambda rows: pytest.fail("computed again")  # noqa: E731
    remembered(networks[-1], pixels, np.arange(3), fail, "eval")


def test_arrays_in_memory_are_not_remembered():
    computed, pixels = [], np.zeros((20, 2, 2, 3), np.uint8)
    for _ in range(2):
        remembered(encoder_of(), pixels, np.arange(3), lambda rows: computed.append(1) or rows, "eval")
    assert len(computed) == 2 and not features._RECENT


@torch.no_grad()
def test_features_are_those_of_the_encoder(pixels):
    images, _ = pixels(9)
    encoder = encoder_of().eval()
    found = features_of(encoder, images, np.ones(9, np.float32), np.array([8, 2]), CPU, "fp32")
    inputs = torch.from_numpy(images[[8, 2]]).permute(0, 3, 1, 2).float() / 255
    np.testing.assert_allclose(found, encoder(inputs).numpy(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_an_adapter_is_applied_to_the_remembered_backbone_features(mapped, monkeypatch):
    plain = encoder_of().eval()
    adapted = Encoder(plain.name, plain.size, [0.5] * 3, [0.25] * 3, adapter=16).eval()
    adapted.load_state_dict(plain.state_dict(), strict=False)
    adapted.mean, adapted.std = plain.mean, plain.std
    arrays = (mapped(), np.ones(20, np.float32), np.arange(5))
    before = features_of(plain, *arrays, CPU, "fp32")
    monkeypatch.setattr(features, "apply_to_cache", lambda *a: pytest.fail("computed again"))
    after = features_of(adapted, *arrays, CPU, "fp32")
    assert after.shape == (5, adapted.dim) and adapted.dim > plain.dim == before.shape[1]
    torch.testing.assert_close(torch.from_numpy(after), adapted.adapt(torch.from_numpy(before)))
