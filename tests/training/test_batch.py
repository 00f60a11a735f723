import numpy as np
import pytest
import torch

from clfew.data.randomness import ImageRandom
from clfew.training import batch as module
from clfew.training.batch import Batches, TrainingData
from clfew.training.plan import Plan

PLAN = Plan(4, 5, "sgd", 0.1, 0.0, 1, 0, "fp32")


class FakeGPU:
    """A CPU whose device type is that of a GPU, which is all that Batches reads of it."""

    type = "cuda"


@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
@pytest.mark.parametrize("free", [10**9, 100])
def test_batches_are_the_same_from_gpu_memory_and_from_the_array(monkeypatch, dtype, free):
    """Images are uint8, features of views are not. Both keep their type and values from both places."""
    random = np.random.default_rng(0)
    arrays = (255 * random.random((12, 3, 4))).astype(dtype)
    data = TrainingData(arrays, np.ones(12, np.float32), np.arange(1, 11), np.arange(10))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    monkeypatch.setattr(module, "to_device", lambda array, device: torch.from_numpy(array))
    real_empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, device=None, **k: real_empty(*a, **k))
    with Batches(data, PLAN, torch.device("cpu"), 0) as batches:
        expected = [next(batches) for _ in range(3)]
    on_gpu = Batches(data, PLAN, FakeGPU(), 0)
    assert (on_gpu._resident is not None) == (free > 1000)
    for step, batch in enumerate(expected):
        found = on_gpu.gather(step)
        assert found.images.dtype == torch.from_numpy(arrays).dtype
        assert torch.equal(found.images, batch.images) and torch.equal(found.labels, batch.labels)
    on_gpu.close()


def test_each_repeat_of_an_image_has_random_numbers_of_its_own():
    arrays, rows = np.zeros((6, 2, 2, 3), np.uint8), np.array([3, 1, 3, 5, 3, 1])
    data = TrainingData(arrays, np.ones(6, np.float32), rows)
    plan = Plan(1, 6, "sgd", 0.1, 0.0, 1, 0, "fp32")
    with Batches(data, plan, torch.device("cpu"), 0) as batches:
        numbers = next(batches).random.uniform(0, 4)
    assert len(np.unique(numbers, axis=0)) == 6
    # The first of them are those that the image has where it occurs once, in whatever order.
    once = ImageRandom(0, 0, np.array([1, 3, 5])).uniform(0, 4)
    assert all((numbers == row).all(1).any() for row in once)
    assert (data.keys[[0, 1, 3]] == rows[[0, 1, 3]]).all()
