"""The definitions of :func:`routing_ext.ops.gather_rows` and :func:`routing_ext.ops.scatter_rows`."""

from __future__ import annotations

from torch import Tensor


def gather_rows(x: Tensor, order: Tensor) -> Tensor:
    """``y[i] = x[order[i]]``."""
    return x[order]


def scatter_rows(y: Tensor, order: Tensor, num_rows: int) -> Tensor:
    """``x[order[i]] = y[i]``, zero elsewhere."""
    return y.new_zeros((num_rows, *y.shape[1:])).index_copy(0, order, y)
