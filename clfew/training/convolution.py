"""Convolutions on a CPU: gradients of their weights as one matrix product, where that is faster, and
another way for layers whose gradients crash.

Late in a network images are small and channels many. There oneDNN's float32 kernel for the gradient
of the weights runs at a tenth to a half of the processor's speed (torch 2.15, AVX2, two cores: 12 of
130 GFLOP/s for 512 channels on 1×1 pixels, 38 for 256 on 2×2, 85 for 512 on 7×7), while gathering
what each output pixel sees into the rows of a matrix and multiplying runs at 100 to 150.
`examples/benchmarks/convolutions.py` shows it for a machine.

The gradient of depthwise weights is slower still where the kernel is about as large as the image: 75 ms
for 1152 channels, 5×5, on 3×3 pixels, of which the forward pass takes 1. All products of a pixel seen
with a gradient that arrived, summed over the images, are one small matrix product a channel; each tap of
the kernel is a sum of some of them.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

FEWEST_CHANNELS = 128
"""With fewer input channels the gathering costs more than the product gains."""
MOST_PIXELS = 64
"""Of what a depthwise convolution sees: the products grow with the square of it."""
FEWEST_TAPS = 25
"""oneDNN's 3×3 depthwise gradients are fast."""
_GATHERED_BYTES = 32 * 2**20

FEWEST_SAFE_CHANNELS = 16
"""Float32 numbers in a register of AVX-512, eight in one of AVX2. With fewer input channels oneDNN's
backward pass of a strided 1×1 convolution in channels-last memory writes outside its memory wherever it
shares the images out unevenly among the threads: torch 2.14 and 2.15, both kinds of processor
(`examples/benchmarks/convolution_crashes.py`)."""

Pair = tuple[int, int]


class TrainingConvolutions(TorchFunctionMode):
    """Inside this context, `conv2d` avoids the layers that crash, and computes the gradients of suitable
    weights with `weight_gradient` where `own_gradients` asks for it.

    A strided 1×1 convolution of few channels becomes a choice of pixels and a convolution without a
    stride: the same numbers from another kernel. This is traced too, so a compiled network is as safe.

    Suitable weights are float32 on channels-last images on a CPU with FEWEST_CHANNELS or more, without
    dilation, and either without groups or, where kernels are large and images small, with one group for
    each channel. Everything else is left as it is.
    """

    def __init__(self, own_gradients: bool = True) -> None:
        super().__init__()
        self.own_gradients = own_gradients

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is F.conv2d:
            return _conv2d(self.own_gradients, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _conv2d(
    own_gradients: bool,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """`torch.nn.functional.conv2d`, whose parameters these are."""
    if is_unsafe(weight, stride, padding, groups):
        down, right = _pair(stride)
        return F.conv2d(input[..., ::down, ::right], weight, bias)
    if own_gradients and _is_suitable(input, weight, stride, padding, dilation, groups):
        return _Convolution.apply(input, weight, bias, stride, padding, groups)
    return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


def is_unsafe(weight: Tensor, stride: Any, padding: Any, groups: int) -> bool:
    """Whether the backward pass of a convolution may write outside its memory."""
    return (
        weight.shape[1] < FEWEST_SAFE_CHANNELS
        and groups == 1
        and tuple(weight.shape[2:]) == (1, 1)
        and (padding == "valid" or (not isinstance(padding, str) and _pair(padding) == (0, 0)))
        and _pair(stride) != (1, 1)
    )


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else tuple(value)


def _is_suitable(
    images: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
) -> bool:
    return (
        weight.requires_grad
        and images.device.type == "cpu"
        and images.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and (groups == 1 or _is_slow_depthwise(images, weight, groups))
        and dilation == (1, 1)
        and isinstance(stride, tuple)
        and isinstance(padding, tuple)
        and images.shape[1] >= FEWEST_CHANNELS
        and images.is_contiguous(memory_format=torch.channels_last)
    )


def _is_slow_depthwise(images: Tensor, weight: Tensor, groups: int) -> bool:
    is_depthwise = groups == images.shape[1] == weight.shape[0]
    taps, pixels = weight[0, 0].numel(), images[0, 0].numel()
    return is_depthwise and taps >= FEWEST_TAPS and pixels <= MOST_PIXELS


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding, ctx.groups = stride, padding, groups
        return F.conv2d(images, weight, bias, stride, padding, 1, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        images, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        # Asked for the bias, oneDNN would compute the weights too.
        of_images, _, _ = torch.ops.aten.convolution_backward(
            gradient,
            images,
            weight,
            None,
            ctx.stride,
            ctx.padding,
            (1, 1),
            False,
            (0, 0),
            ctx.groups,
            (ctx.needs_input_grad[0], False, False),
        )
        of_bias = gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        kernel = (weight.shape[2], weight.shape[3])
        compute = weight_gradient if ctx.groups == 1 else depthwise_weight_gradient
        of_weight = compute(images, gradient, kernel, ctx.stride, ctx.padding)
        return of_images, of_weight, of_bias, None, None, None


def weight_gradient(
    images: Tensor, gradient: Tensor, kernel: Pair, stride: Pair, padding: Pair
) -> Tensor:
    """The gradient of a convolution's weights, shape (K, C, *kernel), in channels-last memory.

    images: (N, C, H, W), what the convolution saw. gradient: (N, K, H', W'), of what it returned.
    """
    pixels, arrived = images.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    count, height, width, channels = pixels.shape
    _, out_height, out_width, outputs = arrived.shape
    rows = _touching(kernel[0], stride[0], padding[0], height, out_height)
    columns = _touching(kernel[1], stride[1], padding[1], width, out_width)
    taps = len(rows) * len(columns)
    if not taps:
        return torch.zeros(outputs, channels, *kernel, dtype=images.dtype, device=images.device)
    total = images.new_zeros(taps * channels, outputs)
    # A share of the images at a time, so that what was gathered is still in the cache when it is used.
    share = max(1, _GATHERED_BYTES // (4 * out_height * out_width * taps * channels))
    for start in range(0, count, share):
        part = pixels[start : start + share]
        part = F.pad(part, (0, 0, padding[1], padding[1], padding[0], padding[0]))
        seen = part.new_empty(len(part), out_height, out_width, len(rows), len(columns), channels)
        for a, i in enumerate(rows):
            down = slice(i, i + stride[0] * (out_height - 1) + 1, stride[0])
            for b, j in enumerate(columns):
                right = slice(j, j + stride[1] * (out_width - 1) + 1, stride[1])
                seen[:, :, :, a, b] = part[:, down, right]
        total.addmm_(
            seen.view(-1, taps * channels).T, arrived[start : start + share].reshape(-1, outputs)
        )
    computed = total.view(len(rows), len(columns), channels, outputs).permute(3, 2, 0, 1)
    result = images.new_zeros(outputs, *kernel, channels).permute(0, 3, 1, 2)
    result[:, :, rows.start : rows.stop, columns.start : columns.stop] = computed
    return result


def depthwise_weight_gradient(
    images: Tensor, gradient: Tensor, kernel: Pair, stride: Pair, padding: Pair
) -> Tensor:
    """The gradient of a depthwise convolution's weights, shape (C, 1, *kernel).

    images: (N, C, H, W), what the convolution saw. gradient: (N, C, H', W'), of what it returned.
    """
    count, channels, height, width = images.shape
    seen_CxPxN = images.permute(1, 2, 3, 0).reshape(channels, -1, count)
    arrived_CxQxN = gradient.permute(1, 2, 3, 0).reshape(channels, -1, count)
    products_CxPxQ = torch.bmm(seen_CxPxN, arrived_CxQxN.transpose(1, 2))
    outputs = (gradient.shape[2], gradient.shape[3])
    taps_PQxK = _taps((height, width), outputs, kernel, stride, padding)
    return (products_CxPxQ.flatten(1) @ taps_PQxK).view(channels, 1, *kernel)


@functools.cache
def _taps(image: Pair, output: Pair, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Which tap of the kernel joins a pixel of the image with one of the output: 0 or 1, of shape
    (pixels · outputs, taps)."""
    joins = []
    for side in (0, 1):
        seen = torch.arange(image[side])[:, None, None]
        arrived = torch.arange(output[side])[None, :, None]
        tap = torch.arange(kernel[side])
        joins.append((seen == arrived * stride[side] + tap - padding[side]).float())
    both = torch.einsum("hpi,wqj->hwpqij", *joins)
    return both.reshape(image[0] * image[1] * output[0] * output[1], kernel[0] * kernel[1])


def _touching(kernel: int, stride: int, padding: int, length: int, outputs: int) -> range:
    """The positions in the kernel that meet an image pixel anywhere, not only padding."""
    last = stride * (outputs - 1)
    return range(max(0, padding - last), min(kernel, length + padding))
