"""The definition of :func:`routing_ext.ops.grouped_linear`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def grouped_linear(
    x: Tensor,
    weights: Sequence[Tensor] | Tensor,
    biases: Sequence[Tensor] | Tensor | None,
    plan: Iterable[Tensor],
    activation: str = "none",
) -> Tensor:
    """Each module in turn on its samples; ``plan`` unpacks into ``(order, offsets)``."""
    order, offsets = plan
    y = x.new_zeros((x.size(0), weights[0].size(0)))
    bounds = offsets.tolist()
    for k, (begin, end) in enumerate(itertools.pairwise(bounds)):
        if begin == end:
            continue
        rows = order[begin:end]
        out = F.linear(x[rows], weights[k], None if biases is None else biases[k])
        y = y.index_copy(0, rows, torch.relu(out) if activation == "relu" else out)
    return y
