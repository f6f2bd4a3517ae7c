"""Gathering and scattering the rows of a tensor, each the gradient of the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._devices import check_devices

_gather_op = torch.ops.routing_ext.gather_rows.default
_scatter_op = torch.ops.routing_ext.scatter_rows.default


class GatherRowsFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        ctx.num_rows = x.size(0)
        y: Tensor = _gather_op(x, order)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return scatter_rows(grad, order, ctx.num_rows), None


class ScatterRowsFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, order: Tensor, num_rows: int) -> Tensor:
        ctx.save_for_backward(order)
        x: Tensor = _scatter_op(y, order, num_rows)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        return gather_rows(grad, order), None, None


def gather_rows(x: Tensor, order: Tensor) -> Tensor:
    """``y[i] = x[order[i]]``, in one pass.

    Args:
        x: ``[B, ...]`` of any dtype.
        order: int64 ``[n]``, indices in ``[0, B)`` without repeats, on the device of ``x``.

    Returns:
        ``[n, ...]``, in the memory format of ``x`` if that is channels_last. Its gradient is :func:`scatter_rows`.

    Raises:
        RuntimeError: wrong shape, dtype or device; on the CPU also an index out of range (on CUDA its row is zero).
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return GatherRowsFunction.apply(x, order)  # type: ignore[no-any-return, no-untyped-call]
    return _gather_op(x, order)  # type: ignore[no-any-return]


def scatter_rows(y: Tensor, order: Tensor, num_rows: int) -> Tensor:
    """``x[order[i]] = y[i]``, and zero in all other rows, in one pass.

    Args:
        y: ``[n, ...]`` of any dtype.
        order: int64 ``[n]``, indices in ``[0, num_rows)`` without repeats, on the device of ``y``.
        num_rows: rows of the result, at least ``n``.

    Returns:
        ``[num_rows, ...]``, in the memory format of ``y`` if that is channels_last. Its gradient is :func:`gather_rows`.

    Raises:
        RuntimeError: wrong shape, dtype or device; on the CPU also an index that is out of range or repeated (on CUDA a row
            out of range is left out, of repeated ones any may win, and rows missing for that may hold anything).
    """
    if torch.is_grad_enabled() and y.requires_grad:
        return ScatterRowsFunction.apply(y, order, num_rows)  # type: ignore[no-any-return, no-untyped-call]
    return _scatter_op(y, order, num_rows)  # type: ignore[no-any-return]


def _empty_rows(like: Tensor, num_rows: int) -> Tensor:
    """Rows of the shape and the memory format of those of `like`."""
    memory_format = torch.contiguous_format
    for dim, candidate in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if like.dim() == dim and not like.is_contiguous() and like.is_contiguous(memory_format=candidate):
            memory_format = candidate
    return torch.empty((num_rows, *like.shape[1:]), dtype=like.dtype, device=like.device, memory_format=memory_format)


@torch.library.register_fake("routing_ext::gather_rows")
def _(x: Tensor, order: Tensor) -> Tensor:
    check_devices("gather_rows", x, order=order)
    return _empty_rows(x, order.size(0))


@torch.library.register_fake("routing_ext::scatter_rows")
def _(y: Tensor, order: Tensor, num_rows: int) -> Tensor:
    check_devices("scatter_rows", y, order=order)
    return _empty_rows(y, num_rows)
