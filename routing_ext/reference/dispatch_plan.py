"""The definition of :func:`routing_ext.ops.dispatch_plan`."""

from __future__ import annotations

import torch
from torch import Tensor


def dispatch_plan(actions: Tensor, num_modules: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``(order [B], offsets [K + 1])``: the samples sorted by module, the inactive ones last."""
    active = actions if mask is None else actions[mask]
    if bool(((active < 0) | (active >= num_modules)).any()):
        raise IndexError(f"dispatch_plan: actions must be in [0, {num_modules})")
    bucket = actions if mask is None else torch.where(mask, actions, num_modules)
    order = torch.argsort(bucket, stable=True)
    counts = torch.bincount(bucket, minlength=num_modules + 1)[:num_modules]
    return order, torch.cat([counts.new_zeros(1), counts.cumsum(0)])
