"""What decision layers keep for each agent: a network or a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .mlp import MLP


class ApproxPolicyStorage(nn.Module):
    """A network from the sample to the values of its actions.

    Args:
        approx: the network, or None for an :class:`MLP` with `hidden_dims` from `in_features` to `num_selections`.
        detach: keep its gradient from the sample.
    """

    def __init__(
        self,
        approx: nn.Module | None = None,
        in_features: int | Sequence[int] | None = None,
        num_selections: int | None = None,
        hidden_dims: Sequence[int] = (),
        detach: bool = True,
    ) -> None:
        super().__init__()
        self._detach = detach
        if approx is None:
            if in_features is None or num_selections is None:
                raise ValueError("ApproxPolicyStorage: in_features and num_selections must be given where approx is not")
            approx = MLP(in_features, num_selections, hidden_dims)
        self._approx = approx

    def forward(self, xs: Tensor) -> Tensor:
        """``[B, ...] -> [B, K]``."""
        values: Tensor = self._approx(xs.detach() if self._detach else xs)
        return values


class TabularPolicyStorage(nn.Module):
    """A row of values that does not depend on the sample, uniform at first."""

    def __init__(self, approx: Any = None, in_features: Any = None, num_selections: int = 1, hidden_dims: Any = ()) -> None:
        super().__init__()
        self._approx = nn.Parameter(torch.ones(1, num_selections) / num_selections)

    def forward(self, xs: Tensor) -> Tensor:
        """``[B, ...] -> [B, K]``."""
        return self._approx.expand(xs.size(0), -1)
