"""Convolutions on a CPU. The gradients of their weights are computed as one matrix product where that is
faster, and layers whose gradients crash are computed in another way.

Late in a network, images are small and have many channels. There oneDNN's float32 kernel for the
gradient of the weights runs at a tenth to a half of the processor's speed (torch 2.15, AVX2, two cores:
12 of 130 GFLOP/s for 512 channels on 1×1 pixels, 38 for 256 on 2×2, 85 for 512 on 7×7). Copying the
input patch of each output pixel into a row of a matrix and multiplying matrices runs at 100 to 150
GFLOP/s. `examples/benchmarks/convolutions.py` measures this on a machine.

The gradient of depthwise weights is slower still if the kernel is about as large as the image: it takes
75 ms for 1152 channels, 5×5, on 3×3 pixels, while the forward pass takes 1 ms. Here the products of
every input pixel with the gradient of every output pixel, summed over the images, are one small matrix
product a channel. The gradient of each weight of the kernel is a sum of some of them.
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
"""With fewer input channels, copying the patches costs more time than the matrix product saves."""
MOST_PIXELS = 64
"""Of the input of a depthwise convolution: the number of products grows with its square."""
FEWEST_TAPS = 25
"""The smallest depthwise kernel, in weights a channel. oneDNN's 3×3 depthwise gradients are fast."""
_PATCH_BYTES = 32 * 2**20
"""About the size of the patches that are copied at a time, before they are multiplied."""

FEWEST_SAFE_CHANNELS = 16
"""A register of AVX-512 holds this many float32 numbers, one of AVX2 holds eight. With fewer input
channels, oneDNN's backward pass of a strided 1×1 convolution in channels-last memory writes outside its
memory whenever it divides the images unevenly among the threads. This happens in torch 2.14 and 2.15 on
both kinds of processor (see `examples/benchmarks/convolution_crashes.py`)."""

Pair = tuple[int, int]


class TrainingConvolutions(TorchFunctionMode):
    """Inside this context, `conv2d` avoids the kernels that crash. If `own_gradients`, it also computes
    the gradients of suitable weights with `weight_gradient` or `depthwise_weight_gradient`.

    A strided 1×1 convolution of few channels is replaced by slicing its input with the stride and a
    convolution without a stride. The numbers are the same, but another kernel computes them.
    `torch.compile` traces the replacement, so a compiled network is just as safe.

    Weights are suitable if they and the images are float32 on a CPU, the images are in channels-last
    memory with FEWEST_CHANNELS channels or more, and the convolution has no dilation. It must have no
    groups or, if kernels are large and images small, one group for each channel. Every other convolution
    is unchanged.
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
    """Replaces `torch.nn.functional.conv2d` and has its parameters after the first."""
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
        # If the gradient of the bias were requested here, oneDNN would compute that of the weights too.
        images_gradient, _, _ = torch.ops.aten.convolution_backward(
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
        bias_gradient = gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        kernel = (weight.shape[2], weight.shape[3])
        compute = weight_gradient if ctx.groups == 1 else depthwise_weight_gradient
        kernel_gradient = compute(images, gradient, kernel, ctx.stride, ctx.padding)
        return images_gradient, kernel_gradient, bias_gradient, None, None, None


def weight_gradient(
    images: Tensor, gradient: Tensor, kernel: Pair, stride: Pair, padding: Pair
) -> Tensor:
    """Computes the gradient of a convolution's weights, shape (K, C, *kernel), in channels-last memory.

    images: (N, C, H, W), the input of the convolution. gradient: (N, K, H', W'), with respect to its
    output.
    """
    pixels, output_gradient = images.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    count, height, width, channels = pixels.shape
    _, out_height, out_width, outputs = output_gradient.shape
    rows = _positions_on_image(kernel[0], stride[0], padding[0], height, out_height)
    columns = _positions_on_image(kernel[1], stride[1], padding[1], width, out_width)
    taps = len(rows) * len(columns)
    if not taps:
        return torch.zeros(outputs, channels, *kernel, dtype=images.dtype, device=images.device)
    total = images.new_zeros(taps * channels, outputs)
    # Only some images at a time, so that their patches are still in the processor's cache when they are
    # multiplied.
    chunk = max(1, _PATCH_BYTES // (4 * out_height * out_width * taps * channels))
    for start in range(0, count, chunk):
        part = pixels[start : start + chunk]
        part = F.pad(part, (0, 0, padding[1], padding[1], padding[0], padding[0]))
        patches = part.new_empty(len(part), out_height, out_width, len(rows), len(columns), channels)
        for a, i in enumerate(rows):
            down = slice(i, i + stride[0] * (out_height - 1) + 1, stride[0])
            for b, j in enumerate(columns):
                right = slice(j, j + stride[1] * (out_width - 1) + 1, stride[1])
                patches[:, :, :, a, b] = part[:, down, right]
        total.addmm_(
            patches.view(-1, taps * channels).T,
            output_gradient[start : start + chunk].reshape(-1, outputs),
        )
    computed = total.view(len(rows), len(columns), channels, outputs).permute(3, 2, 0, 1)
    result = images.new_zeros(outputs, *kernel, channels).permute(0, 3, 1, 2)
    result[:, :, rows.start : rows.stop, columns.start : columns.stop] = computed
    return result


def depthwise_weight_gradient(
    images: Tensor, gradient: Tensor, kernel: Pair, stride: Pair, padding: Pair
) -> Tensor:
    """Computes the gradient of a depthwise convolution's weights, shape (C, 1, *kernel).

    images: (N, C, H, W), the input of the convolution. gradient: (N, C, H', W'), with respect to its
    output.
    """
    count, channels, height, width = images.shape
    images_CxPxN = images.permute(1, 2, 3, 0).reshape(channels, -1, count)
    gradient_CxQxN = gradient.permute(1, 2, 3, 0).reshape(channels, -1, count)
    products_CxPxQ = torch.bmm(images_CxPxN, gradient_CxQxN.transpose(1, 2))
    outputs = (gradient.shape[2], gradient.shape[3])
    taps_PQxK = _taps_of_pixel_pairs((height, width), outputs, kernel, stride, padding)
    return (products_CxPxQ.flatten(1) @ taps_PQxK).view(channels, 1, *kernel)


@functools.cache
def _taps_of_pixel_pairs(image: Pair, output: Pair, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Returns which tap (weight position) of the kernel connects a pixel of the image with a pixel of
    the output: 1 where it does, else 0, of shape (pixels · outputs, taps)."""
    connected = []
    for side in (0, 1):
        pixel = torch.arange(image[side])[:, None, None]
        output_pixel = torch.arange(output[side])[None, :, None]
        tap = torch.arange(kernel[side])
        connected.append((pixel == output_pixel * stride[side] + tap - padding[side]).float())
    # h, w: a pixel of the image; p, q: a pixel of the output; i, j: a tap.
    both = torch.einsum("hpi,wqj->hwpqij", *connected)
    return both.reshape(image[0] * image[1] * output[0] * output[1], kernel[0] * kernel[1])


def _positions_on_image(kernel: int, stride: int, padding: int, length: int, outputs: int) -> range:
    """Returns the positions in the kernel that cover an image pixel, not only padding, for some
    output."""
    last = stride * (outputs - 1)
    return range(max(0, padding - last), min(kernel, length + padding))
