"""The weight gradients against PyTorch's own, in float64 where both are exact enough to compare."""

import copy
import os
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from marks import rest_is_slow
from torch import nn

from clfew.training import convolution
from clfew.training.convolution import (
    TrainingConvolutions,
    depthwise_weight_gradient,
    is_unsafe,
    weight_gradient,
)


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding"),
    [
        ((8, 8), (3, 3), (1, 1), (1, 1)),
        ((7, 9), (3, 3), (2, 2), (1, 1)),
        ((1, 1), (3, 3), (1, 1), (1, 1)),
        ((2, 1), (3, 3), (2, 2), (1, 1)),
        ((6, 5), (1, 1), (2, 2), (0, 0)),
        ((9, 8), (5, 3), (2, 1), (2, 0)),
        ((3, 3), (3, 3), (1, 1), (0, 0)),
        ((2, 2), (7, 7), (1, 1), (3, 3)),
        ((2, 2), (1, 1), (4, 4), (1, 1)),  # The kernel covers only padding.
    ],
)
@pytest.mark.parametrize("patch_bytes", [1, 10**9])
def test_weight_gradient_is_autograds(monkeypatch, side, kernel, stride, padding, patch_bytes):
    monkeypatch.setattr(convolution, "_PATCH_BYTES", patch_bytes)  # One image at a time, or all.
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 4, *side, generator=generator, dtype=torch.float64)
    weight = torch.randn(6, 4, *kernel, generator=generator, dtype=torch.float64, requires_grad=True)
    output = F.conv2d(images, weight, None, stride, padding)
    gradient = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    (expected,) = torch.autograd.grad(output, weight, gradient)
    result = weight_gradient(images, gradient, kernel, stride, padding)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "padding"),
    [
        ((3, 3), (5, 5), (1, 1), (2, 2)),
        ((7, 6), (5, 5), (2, 2), (2, 2)),
        ((5, 8), (5, 7), (2, 1), (0, 3)),
        ((8, 8), (5, 5), (1, 1), (0, 0)),
        ((1, 2), (7, 7), (1, 1), (3, 3)),
    ],
)
def test_depthwise_weight_gradient_is_autograds(side, kernel, stride, padding):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 4, *side, generator=generator)
    weight = torch.randn(4, 1, *kernel, generator=generator, requires_grad=True)
    output = F.conv2d(images, weight, None, stride, padding, 1, 4)
    gradient = torch.randn(output.shape, generator=generator)
    (expected,) = torch.autograd.grad(output, weight, gradient)
    result = depthwise_weight_gradient(images, gradient, kernel, stride, padding)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


def test_a_depthwise_network_has_the_same_gradients_inside_the_context(monkeypatch):
    torch.manual_seed(0)
    many = convolution.FEWEST_CHANNELS
    module = nn.Sequential(nn.Conv2d(many, many, 5, 2, 2, groups=many), nn.Conv2d(many, 8, 1))
    module = module.to(memory_format=torch.channels_last)
    images = torch.randn(4, many, 7, 7).contiguous(memory_format=torch.channels_last)
    expected = gradients(copy.deepcopy(module), images)
    calls = []
    original = convolution.depthwise_weight_gradient
    counted = lambda *args: calls.append(1) or original(*args)  # noqa: E731
    monkeypatch.setattr(convolution, "depthwise_weight_gradient", counted)
    with TrainingConvolutions():
        result = gradients(module, images)
    assert len(calls) == 1
    for got, wanted in zip(result, expected, strict=True):
        torch.testing.assert_close(got, wanted)


def network(channels):
    layers = [nn.Conv2d(3, channels, 3, 2, 1), nn.Conv2d(channels, 16, 3, 1, 1), nn.Conv2d(16, 8, 1)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


def gradients(module, images):
    module(images).square().mean().backward()
    return [parameter.grad for parameter in module.parameters()]


@pytest.mark.parametrize("channels", [convolution.FEWEST_CHANNELS, 8])
def test_networks_have_the_same_gradients_inside_the_context(monkeypatch, channels):
    torch.manual_seed(0)
    module = network(channels)
    images = torch.randn(4, 3, 12, 12).contiguous(memory_format=torch.channels_last)
    expected = gradients(copy.deepcopy(module), images)
    calls = []
    original = convolution.weight_gradient
    monkeypatch.setattr(convolution, "weight_gradient", lambda *args: calls.append(1) or original(*args))
    with TrainingConvolutions():
        result = gradients(module, images)
    assert len(calls) == (channels == convolution.FEWEST_CHANNELS)
    for got, wanted in zip(result, expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_other_convolutions_are_unchanged(monkeypatch):
    for name in ("weight_gradient", "depthwise_weight_gradient"):  # A call of one would fail.
        monkeypatch.setattr(convolution, name, None)
    many = convolution.FEWEST_CHANNELS
    images = torch.randn(2, many, 6, 6)
    last = images.contiguous(memory_format=torch.channels_last)
    with TrainingConvolutions():
        gradients(nn.Conv2d(many, 8, 3), images)
        gradients(nn.Conv2d(many, many, 3, groups=many), last)
        gradients(nn.Conv2d(many, many, 5, groups=many // 2), last)
        gradients(nn.Conv2d(many, 8, 3, dilation=2), last)
        gradients(nn.Conv2d(many, 8, 3, padding="same"), last)
        gradients(nn.Conv2d(many, 8, 3).double(), last.double())
        with torch.autocast("cpu", torch.bfloat16):
            gradients(nn.Conv2d(many, 8, 3), last)
        frozen = nn.Conv2d(many, 8, 3).requires_grad_(False)
        frozen(last.clone().requires_grad_()).sum().backward()


@pytest.mark.parametrize(
    ("stride", "padding", "is_changed"),
    [
        (2, 0, True),
        ((2, 2), (0, 0), True),
        ((1, 3), "valid", True),
        ([2, 1], [0, 0], True),
        ((1, 1), (0, 0), False),
        (2, 1, False),
    ],
)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_strided_pointwise_convolution_of_few_channels_has_the_same_numbers(
    stride, padding, is_changed, has_bias
):
    generator = torch.Generator().manual_seed(0)
    images, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 5, 9, 8), (6, 5, 1, 1), (6,))
    )
    inputs = [images, weight, bias] if has_bias else [images, weight]
    arguments = (images, weight, bias if has_bias else None, stride, padding)
    expected = F.conv2d(*arguments)
    gradient = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    wanted = [expected, *torch.autograd.grad(expected, inputs, gradient)]
    assert is_unsafe(weight, stride, padding, groups=1) == is_changed
    with TrainingConvolutions():
        output = F.conv2d(*arguments)
    for got, want in zip([output, *torch.autograd.grad(output, inputs, gradient)], wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("several", rest_is_slow([[8], [4, 15]]))
def test_no_number_of_threads_crashes_the_backward_pass(several):
    # In a process of its own: a crash would end this one.
    program = textwrap.dedent(f"""
        import itertools, torch
        from torch import nn
        from clfew.training.convolution import TrainingConvolutions
        for channels, half in itertools.product({several}, (False, True)):
            print(channels, "channels,", "bf16" if half else "fp32", flush=True)
            module = nn.Conv2d(channels, 2 * channels, 1, stride=2).to(memory_format=torch.channels_last)
            for threads in (1, 2, 3, 5, 6, 7, 12, 16):
                torch.set_num_threads(threads)
                for batch in (7, 64, 256):
                    images = torch.randn(batch, channels, 32, 32).to(memory_format=torch.channels_last)
                    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=half)
                    with bf16, TrainingConvolutions():
                        module(images.requires_grad_()).sum().backward()
    """)
    # With this, glibc detects writes beyond a block of memory when the block is freed.
    checked = {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | checked,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)


def test_a_compiled_network_is_as_safe():
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(nn.Conv2d(8, 16, 1, stride=2), backend=keep)
    with TrainingConvolutions(own_gradients=False):
        assert compiled(torch.randn(2, 8, 6, 6)).shape == (2, 16, 3, 3)
    (graph,) = graphs
    convolutions = [node for node in graph.graph.nodes if node.target is torch.conv2d]
    assert len(convolutions) == 1
    assert (2, 2) not in convolutions[0].args


@pytest.mark.slow
def test_the_smallest_network_trains_with_three_threads(tmp_path, image_folder):
    # The gradients of its layer from 8 to 16 channels used to crash the process.
    folder = image_folder({"a": 40, "b": 40}, side=32)
    done = subprocess.run(
        f"{sys.executable} -m clfew pretrain {folder} --encoder resnet8-w8 --size 32 --epochs 1 "
        "--batch 32 --threads 3 --init scratch",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
