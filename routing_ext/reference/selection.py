"""The definition of :class:`routing_ext.routing.Selection`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Selection(nn.Module):
    """Calls each selected module on the rows that selected it, one module after the other, as the published layer does.

    It asks for each action whether it occurs, walks the mask in Python, gathers with a boolean index, and learns the shape of
    the output from a trial run of the first module.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self._submodules = nn.ModuleList(modules)
        self._output_shape: torch.Size | None = None

    def forward(self, xs: Tensor, mxs: Any, actions: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Any, Tensor]:
        if len(self._submodules) == 1:
            return self._submodules[0](xs), mxs, actions
        if self._output_shape is None:
            self._output_shape = self._submodules[0](xs[:1]).shape[1:]
        active = torch.ones(xs.size(0), dtype=torch.bool, device=xs.device) if mask is None else mask
        ys = torch.zeros((xs.size(0), *self._output_shape), dtype=xs.dtype, device=xs.device)
        for k in range(int(actions.max()) + 1):
            if k not in actions:
                continue
            rows = (actions == k) & active
            if not any(rows):
                continue
            ys[rows] = self._submodules[k](xs[rows])
        return ys, mxs, actions
