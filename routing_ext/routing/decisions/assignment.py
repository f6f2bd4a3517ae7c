"""Layers that assign instead of deciding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..decision import Decision
from ..trajectory import Trajectory


class _Assignment(Decision):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        nn.Module.__init__(self)

    def set_exploration(self, exploration: float) -> None:
        pass


class PerTaskAssignment(_Assignment):
    """Takes the sample's task as its action. Whatever arguments it is made with are ignored."""

    def forward(self, xs: Tensor, mxs: Any, *_: Any, **__: Any) -> tuple[Tensor, Any, Tensor]:
        """``(xs, mxs, tasks [B])``."""
        if isinstance(mxs, Trajectory):
            return xs, mxs, mxs.task_tensor(xs.device)
        return xs, mxs, torch.tensor([int(mx.task) for mx in mxs], dtype=torch.int64, device=xs.device)


class PassThrough(_Assignment):
    """Takes action 0 for every sample. Whatever arguments it is made with are ignored."""

    def forward(self, xs: Tensor, mxs: Any, *_: Any, **__: Any) -> tuple[Tensor, Any, Tensor]:
        """``(xs, mxs, zeros [B])``."""
        return xs, mxs, torch.zeros(len(mxs), dtype=torch.int64, device=xs.device)
