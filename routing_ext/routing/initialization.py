"""The first layer: makes the record that the others write into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .trajectory import Trajectory


class Initialization(nn.Module):
    """Opens the triplet ``(batch, meta, actions)``; a drop-in for ``PytorchRouting.CoreLayers.Initialization``."""

    def forward(self, xs: Tensor, tasks: Tensor | Sequence[Any] = ()) -> tuple[Tensor, Trajectory, None]:
        """Returns ``(xs, trajectory, None)``.

        Args:
            xs: ``[B, ...]``.
            tasks: the task of each sample, or nothing.

        Raises:
            ValueError: another number of tasks than of samples.
        """
        return xs, Trajectory(xs.size(0), tasks if len(tasks) > 0 else None), None
