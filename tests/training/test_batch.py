import numpy as np
import pytest
import torch

from clfew.training import batch as module
from clfew.training.batch import Batches, TrainingData
from clfew.training.plan import Plan

PLAN = Plan(4, 5, "sgd", 0.1, 0.0, 1, 0, "fp32")


class Pretended:
    """A CPU that says it is a GPU where Batches asks for its type."""

    type = "cuda"


@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
@pytest.mark.parametrize("free", [10**9, 100])
def test_what_is_kept_on_a_gpu_is_what_is_read_each_time(monkeypatch, dtype, free):
    """Images are bytes, features of views are not: either arrives as it is, from both places."""
    random = np.random.default_rng(0)
    arrays = (255 * random.random((12, 3, 4))).astype(dtype)
    data = TrainingData(arrays, np.ones(12, np.float32), np.arange(1, 11), np.arange(10))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    monkeypatch.setattr(module, "to_device", lambda array, device: torch.from_numpy(array))
    real_empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, device=None, **k: real_empty(*a, **k))
    with Batches(data, PLAN, torch.device("cpu"), 0) as batches:
        expected = [next(batches) for _ in range(3)]
    pretended = Batches(data, PLAN, Pretended(), 0)
    assert (pretended._resident is not None) == (free > 1000)
    for step, batch in enumerate(expected):
        found = pretended.gather(step)
        assert found.images.dtype == torch.from_numpy(arrays).dtype
        assert torch.equal(found.images, batch.images) and torch.equal(found.labels, batch.labels)
    pretended.close()
