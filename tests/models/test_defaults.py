import pytest
import torch

from clfew.models.defaults import cached_side, choose_size

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("native", "on_cpu", "to_pretrain", "on_gpu"),
    [
        (8, 16, 16, 16),
        (24, 24, 24, 24),
        (25, 28, 24, 28),
        (32, 32, 24, 32),
        (40, 40, 24, 40),
        (41, 44, 44, 44),
        (64, 64, 64, 64),
        (384, 64, 64, 224),
    ],
)
def test_the_input_size_is_that_of_the_images_within_the_limits_of_the_device(
    native, on_cpu, to_pretrain, on_gpu
):
    assert choose_size(None, native, CPU)[0] == on_cpu
    assert choose_size(None, native, CPU, many=True)[0] == to_pretrain
    assert choose_size(None, native, GPU)[0] == choose_size(None, native, GPU, many=True)[0] == on_gpu
    for device in (CPU, GPU):
        assert choose_size(50, native, device, many=True) == (50, "as asked for")


@pytest.mark.parametrize(
    ("size", "native", "side"),
    [
        (32, 32, 32),
        (24, 32, 32),
        (24, 36, 36),
        (24, 37, 30),
        (64, 384, 80),
        (64, 20, 20),
        (96, 32, 32),
        (16, 3, 16),
    ],
)
def test_images_are_cached_at_their_own_size_or_a_quarter_larger_than_the_input(size, native, side):
    assert cached_side(size, native) == side
