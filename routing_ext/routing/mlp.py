"""The multi-layer perceptron of the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with a non-linearity between them; a drop-in for ``PytorchRouting.Helpers.MLP``.

    Args:
        input_dim: features of the input ``[B, d]``; of several dimensions, their product.
        output_dim: features of the output.
        layers (hidden): widths of the hidden layers, none for a linear map.
        nonlin: applied after each hidden layer.

    Raises:
        TypeError: the widths are missing, or given under both names.
    """

    def __init__(
        self,
        input_dim: int | Sequence[int],
        output_dim: int,
        layers: Iterable[int] | None = None,
        nonlin: Callable[[Tensor], Tensor] = F.relu,
        *,
        hidden: Iterable[int] | None = None,
    ) -> None:
        super().__init__()
        if (layers is None) == (hidden is None):
            raise TypeError(f"MLP: layers or hidden must be given, got {'neither' if layers is None else 'both'}")
        widths = layers if layers is not None else hidden or ()
        width = input_dim if isinstance(input_dim, int) else math.prod(input_dim)
        self._layers = nn.ModuleList()
        self._nonlin = nonlin
        for next_width in (*widths, output_dim):
            self._layers.append(nn.Linear(width, next_width))
            width = next_width

    def forward(self, arg: Tensor, *args: object) -> Tensor:
        out = arg
        for layer in self._layers[:-1]:
            out = self._nonlin(layer(out))
        result: Tensor = self._layers[-1](out)
        return result
