"""Tensors of the whole batch, of which each process holds some rows. Alone, these are the process's own.

The gradients are those of the mean over all rows: each process backpropagates its own rows' share of it,
gradients that flow back into another process's rows are summed here, and DistributedDataParallel
averages those of the weights.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from clfew.group import command as groups
from clfew.group.group import Group, Rows


def rows_of(total: int) -> Rows:
    """Returns the rows of a batch of `total` that this process takes. All take as many, but for a
    remainder, of which the first ones take one each."""
    group = groups.current()
    if group is None:
        return Rows(0, total, total)
    each, over = divmod(total, group.size)
    start = group.rank * each + min(group.rank, over)
    return Rows(start, each + (group.rank < over), total)


def whole(rows_NxP: Tensor, views: int = 1) -> Tensor:
    """Returns the rows of all processes in the order that they have in the whole batch, with gradient.

    views: how many times each image occurs: the first rows are the first view of each image, and so on,
    here and in the result.
    """
    group = groups.current()
    if group is None:
        return rows_NxP
    result: Tensor = _Whole.apply(rows_NxP, views, group)
    return result


def own_rows(count: int) -> Rows:
    """Returns which images of the whole batch those of this process are. count: how many it has."""
    group = groups.current()
    return Rows(0, count, count) if group is None else group.rows


def row_before(rows_NxP: Tensor) -> Tensor:
    """Returns for each row the one before it in the whole batch, before the first one the last, with
    gradient."""
    group = groups.current()
    if group is None:
        return rows_NxP.roll(1, dims=0)
    lasts: Tensor = _Lasts.apply(rows_NxP[-1:], group)
    return torch.cat([lasts[group.rank - 1 :][:1] if group.rank else lasts[-1:], rows_NxP[:-1]])


def share_of_batch() -> float:
    """Returns which fraction of the batch's rows this process holds."""
    group = groups.current()
    return 1.0 if group is None else group.rows.count / group.rows.total


def total(value: Tensor) -> Tensor:
    """Returns the sum over all processes, without gradient."""
    return _reduced(value, dist.ReduceOp.SUM)


def largest(value: Tensor) -> Tensor:
    """Returns the maximum over all processes, without gradient."""
    return _reduced(value, dist.ReduceOp.MAX)


def smallest(value: Tensor) -> Tensor:
    """Returns the minimum over all processes, without gradient."""
    return -_reduced(-value, dist.ReduceOp.MAX)


def mean_of_rows(rows_N: Tensor) -> Tensor:
    """Returns the mean over the rows (the first dimension) of all processes, without gradient."""
    return total(rows_N.mean(0) * share_of_batch())


def variance(values: Tensor, dims: list[int]) -> Tensor:
    """Returns the variance over dimensions, the rows of all processes among them, without gradient. The
    dimensions are kept, with one value."""
    if groups.current() is None:
        return values.var(dims, keepdim=True)
    wide = values if values.dtype == torch.float64 else values.float()
    sums = wide.sum(dims, keepdim=True)
    count = total(torch.full_like(sums, values.numel() / sums.numel()))
    mean = total(sums) / count
    return (total((wide - mean).square().sum(dims, keepdim=True)) / (count - 1)).to(values.dtype)


def std(values: Tensor, dims: list[int]) -> Tensor:
    """Returns the root of `variance`."""
    if groups.current() is None:
        return values.std(dims, keepdim=True)
    return variance(values, dims).sqrt()


def mean_where(values_N: Tensor, counts_N: Tensor) -> Tensor:
    """Returns this process's part of the mean over those rows of the whole batch that count, with
    gradient: the mean of the parts, each weighted by its share of the rows, is the mean. 0 if no row
    counts."""
    count = total(counts_N.sum().float()).clamp(min=1)
    return (values_N * counts_N).sum() / count / share_of_batch()


def _reduced(value: Tensor, operation: Any) -> Tensor:
    group = groups.current()
    if group is None:
        return value
    result = value.detach().clone().contiguous()
    dist.all_reduce(result, operation, group=group.inner)
    return result


def _gathered(own: Tensor, counts: list[int], group: Group) -> list[Tensor]:
    """Returns the rows of each process, whose numbers are known."""
    own, most = own.detach().contiguous(), max(counts)
    padded = own
    if len(own) < most:  # A collective operation takes as many of each.
        padded = torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(group.size)]
    dist.all_gather(parts, padded, group=group.inner)
    return [part[:count] for part, count in zip(parts, counts, strict=True)]


def _counts(group: Group) -> list[int]:
    """Returns how many rows of the batch each process has."""
    each, over = divmod(group.rows.total, group.size)
    return [each + (rank < over) for rank in range(group.size)]


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, views: int, group: Group) -> Tensor:
        ctx.group, ctx.views, ctx.count = group, views, len(rows) // views
        by_image = rows.view(views, -1, *rows.shape[1:]).transpose(0, 1)
        parts = _gathered(by_image, _counts(group), group)
        return torch.cat(parts).transpose(0, 1).reshape(-1, *rows.shape[1:])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed, group=ctx.group.inner)
        start, views = ctx.group.rows.start, ctx.views
        by_view = summed.view(views, -1, *summed.shape[1:])[:, start : start + ctx.count]
        return by_view.reshape(-1, *summed.shape[1:]), None, None


class _Lasts(torch.autograd.Function):
    """The last row of each process: (processes, P)."""

    @staticmethod
    def forward(ctx: Any, last: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return torch.cat(_gathered(last, [1] * group.size, group))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed, group=ctx.group.inner)
        return summed[ctx.group.rank : ctx.group.rank + 1], None
