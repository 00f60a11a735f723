"""Layers that depend on all rows of a batch, or draw random numbers for each, where several processes
hold the rows: BatchNorm, dropout and stochastic depth do what they would do in one process.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules._functions import SyncBatchNorm
from torch.overrides import TorchFunctionMode

from clfew.group.group import Group


class WholeBatch(TorchFunctionMode):
    """Inside this context, `batch_norm` in training takes the statistics of all rows, and `dropout` and
    `bernoulli_` (as stochastic depth uses it, with one number for each row) give each row the numbers
    that it would get in one process.

    by_image: whether all rows of an image follow each other, where an image has several; else all images
    have their first, then all their second one.

    torch's SyncBatchNorm needs GPUs; on a CPU `GlobalBatchNorm` takes its place.
    """

    def __init__(self, group: Group, by_image: bool = False) -> None:
        super().__init__()
        self.group, self.by_image = group, by_image

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            return self._batch_norm(*args, **kwargs)
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func is torch.Tensor.bernoulli_:
            return self._bernoulli_(*args, **kwargs)
        return func(*args, **kwargs)

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        running, affine = (running_mean, running_var), (weight, bias)
        if input.device.type == "cuda":
            settings = (eps, momentum, self.group.inner, self.group.size)
            synced: Tensor = SyncBatchNorm.apply(input, *affine, *running, *settings)
            return synced
        normalised: Tensor = GlobalBatchNorm.apply(input, *affine, running, momentum, eps, self.group)
        return normalised

    def _dropout(
        self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return input
        keep = 1 - p
        noise = self._bernoulli_(torch.empty_like(input), keep) / max(keep, 1e-12)
        return input.mul_(noise) if inplace else input * noise

    def _bernoulli_(self, tensor: Tensor, p: float = 0.5, **kwargs: Any) -> Tensor:
        rows = self.group.rows
        times, over = divmod(len(tensor), rows.count) if tensor.ndim else (0, 1)
        if over:
            return tensor.bernoulli_(p, **kwargs)
        drawn = tensor.new_empty(times * rows.total, *tensor.shape[1:]).bernoulli_(p, **kwargs)
        if self.by_image:
            return tensor.copy_(drawn[times * rows.start :][: len(tensor)])
        of_views = drawn.view(times, rows.total, *tensor.shape[1:])[:, rows.start :][:, : rows.count]
        return tensor.copy_(of_views.reshape(tensor.shape))


class GlobalBatchNorm(torch.autograd.Function):
    """BatchNorm by the mean and variance of all rows (Ioffe and Szegedy, 2015, algorithm 1).

    input: (N, C, ...). Each process computes the statistics of its own rows. They are joined as Chan,
    Golub and LeVeque do, which loses no digits (Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances, 1979, equation 2.1). All is computed in float32 at least.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Tensor | None, Tensor | None],
        momentum: float,
        eps: float,
        group: Group,
    ) -> Tensor:
        channels = input.shape[1]
        own_count = input.numel() // channels
        # `var_mean` is thirty times as slow in channels-last memory. Running statistics in float32,
        # which are not used, make this one compute bf16 in float32.
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        unused = [torch.zeros(channels, dtype=dtype) for _ in range(2)]
        mean_C, variance_C = torch.batch_norm_update_stats(input, unused[0], unused[1], 0.0)
        own = torch.cat([mean_C, variance_C, mean_C.new_full((1,), own_count)])
        parts = [torch.empty_like(own) for _ in range(group.size)]
        dist.all_gather(parts, own, group=group.inner)
        parts_WxK = torch.stack(parts)
        counts_Wx1 = parts_WxK[:, -1:]
        means_WxC, variances_WxC = parts_WxK[:, :channels], parts_WxK[:, channels:-1]
        count = counts_Wx1.sum()
        mean_C = (counts_Wx1 * means_WxC).sum(0) / count
        deviations_WxC = variances_WxC + (means_WxC - mean_C).square()
        variance_C = (counts_Wx1 * deviations_WxC).sum(0) / count
        running_mean, running_var = running
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean_C.to(running_mean), momentum)
            unbiased_C = variance_C * count / (count - 1)
            running_var.lerp_(unbiased_C.to(running_var), momentum)
        ctx.save_for_backward(input, weight, mean_C, variance_C, count)
        ctx.eps, ctx.group = eps, group
        return F.batch_norm(input, mean_C, variance_C, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        input, weight, mean_C, variance_C, count = ctx.saved_tensors
        # As if the statistics were constants: gradients of weight and bias, a part of the input's.
        through, weight_C, bias_C = torch.ops.aten.native_batch_norm_backward(
            gradient.contiguous(memory_format=_format_of(input)),
            input,
            torch.ones_like(mean_C) if weight is None else weight,
            mean_C,
            variance_C,
            None,
            None,
            False,
            ctx.eps,
            [True, True, True],
        )
        sums_2C = torch.cat([bias_C, weight_C]).to(mean_C)
        dist.all_reduce(sums_2C, group=ctx.group.inner)
        all_bias_C, all_weight_C = sums_2C.chunk(2)
        scale_C = (variance_C + ctx.eps).rsqrt()
        factor_C = scale_C / count if weight is None else scale_C * weight / count
        slope_C = factor_C * scale_C * all_weight_C
        offset_C = factor_C * all_bias_C - slope_C * mean_C
        shape = [1, -1] + [1] * (input.ndim - 2)
        slope, offset = (each.view(shape).to(through.dtype) for each in (slope_C, offset_C))
        input_gradient = through.addcmul_(input, slope, value=-1).sub_(offset)
        own = (None, None) if weight is None else (weight_C.to(weight), bias_C.to(weight))
        return input_gradient, *own, None, None, None, None


def _format_of(input: Tensor) -> torch.memory_format:
    is_last = input.ndim == 4 and input.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format
