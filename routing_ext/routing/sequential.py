"""Layers in a row."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .decision import Decision
from .initialization import Initialization
from .selection import Selection
from .trajectory import Trajectory


class Sequential(nn.Sequential):
    """Applies its layers in turn, handing the triplet to decisions and selections, and the batch alone to others.

    A drop-in for ``PytorchRouting.UtilLayers.Sequential``. An :class:`Initialization` comes first by itself.

    Args:
        args: modules, or one ``OrderedDict`` of named ones.
    """

    def __init__(self, *args: Any) -> None:
        if len(args) == 1 and isinstance(args[0], OrderedDict):
            super().__init__(OrderedDict([("initialization", Initialization()), *args[0].items()]))
        else:
            super().__init__(Initialization(), *args)

    def forward(self, x: Tensor, tasks: Tensor | Sequence[Any] = ()) -> tuple[Tensor, Trajectory]:
        """``(ys, meta)`` for ``x [B, ...]`` and the samples' tasks, if they have any."""
        initialization, *layers = self
        ys, meta, actions = initialization(x, tasks=tasks)
        for layer in layers:
            if isinstance(layer, (Decision, Selection)):
                ys, meta, actions = layer(ys, meta, actions)
            else:
                ys = layer(ys)
        return ys, meta
