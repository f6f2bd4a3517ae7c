"""Applies to each sample of a batch the module that a plan gives it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import DispatchPlan, gather_rows, scatter_rows
from ..ops.grouped_linear import grouped_linear_of
from .linear_stages import linear_stages


class _GatherEach(torch.autograd.Function):
    """Each module's samples: slices of one tensor, but no views to autograd, for a module may change its input in place."""

    @staticmethod
    def forward(ctx: Any, xs: Tensor, order: Tensor, sizes: list[int]) -> tuple[Tensor, ...]:
        ctx.save_for_backward(order)
        ctx.batch = xs.size(0)
        return tuple(rows.data for rows in gather_rows(xs, order).split(sizes))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        return scatter_rows(torch.cat(grads), order, ctx.batch), None, None


def apply_modules(xs: Tensor, plan: DispatchPlan, modules: Sequence[nn.Module]) -> Tensor | None:
    """``ys [B, ...]``, zero for inactive samples; None where that needs an output's shape and no module runs.

    Modules that are linear layers and ReLUs run together (see :func:`~.linear_stages.linear_stages`), others one by one.
    """
    if xs.dim() == 2 and xs.is_floating_point():
        running = plan.selected_early()
        stages = linear_stages([modules[k] for k in running])
        if stages is not None:
            for stage in stages:
                xs = grouped_linear_of(running, xs, stage.weights, stage.biases, plan, stage.relu)
            return xs
    offsets, selected, batch = plan.host_offsets(), plan.selected(), xs.size(0)
    if not selected:
        return None
    if len(selected) == 1 and offsets[-1] == batch:
        ys: Tensor = modules[selected[0]](gather_rows(xs, plan.order))  # the batch in its order, as a tensor of its own
        return ys
    order = plan.order[: offsets[-1]]
    groups = _GatherEach.apply(xs, order, [offsets[k + 1] - offsets[k] for k in selected])  # type: ignore[no-untyped-call]
    outputs = [modules[k](rows) for k, rows in zip(selected, groups, strict=True)]
    return scatter_rows(torch.cat(outputs), order, batch)
