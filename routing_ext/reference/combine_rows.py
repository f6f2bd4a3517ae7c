"""The definition of :func:`routing_ext.ops.combine_rows`."""

from __future__ import annotations

from torch import Tensor


def combine_rows(y: Tensor, weights: Tensor) -> Tensor:
    """``combined[b] = sum over j of weights[b, j] y[b * n + j]`` for ``y [B * n, ...]`` and ``weights [B, n]``."""
    choices = y.reshape(*weights.shape, *y.shape[1:])
    return (choices * weights.reshape(*weights.shape, *[1] * (y.dim() - 1))).sum(1)
