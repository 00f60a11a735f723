"""Codes that are kept for the next round are those of the same pixels and the same encoder."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clfew.data.cache_folder import ImageCache
from clfew.models.encoder import Encoder
from clfew.selection.pool_codes import pool_codes

CPU = torch.device("cpu")


def made(seed=0):
    """A small encoder, and an image cache whose files have the same bytes whatever its pixels are."""
    torch.manual_seed(seed)
    encoder = Encoder("resnet8-w8", 16, [0.5] * 3, [0.25] * 3)
    pixels = np.random.default_rng(0).integers(0, 256, (30, 16, 16, 3), np.uint8)
    cache = ImageCache(
        np.arange(30), pixels, np.ones(30, np.float32), np.arange(30, dtype=np.uint64), []
    )
    return SimpleNamespace(encoder=encoder, metadata=SimpleNamespace(parts=[])), cache


def codes_with(start, cache, scale=None, precision="fp32"):
    read = pool_codes(start, cache, scale, np.arange(30), CPU, precision)
    return read(np.arange(30)).copy()


def test_the_same_images_and_encoder_are_not_computed_again(monkeypatch):
    start, cache = made()
    before = codes_with(start, cache)
    monkeypatch.setattr("clfew.selection.pool_codes.apply_to_cache", None)
    assert (codes_with(*made()) == before).all()


@pytest.mark.parametrize("what", ["scale", "weights", "precision"])
def test_what_codes_depend_on_is_part_of_their_name(what):
    start, cache = made()
    before = codes_with(start, cache)
    if what == "scale":
        # Other bands of the same files, or another scale of their pixels.
        other = replace(cache, pixels=255 - cache.pixels[..., ::-1])
        found = codes_with(start, other, "bands 3,2,1")
    elif what == "weights":
        found = codes_with(made(seed=1)[0], cache)
    else:
        found = codes_with(start, cache, precision="bf16")
    assert (found != before).mean() > 0.01
