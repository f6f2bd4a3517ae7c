"""Many parameters as one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class FlatParameters:
    """Moves parameters into one tensor, so that an optimiser's step takes few calls, however many parameters there are.

    To their network they are what they were, with other memory: views of this tensor.

    Args:
        parameters: of one dtype, on one device; each must get a gradient in every step.

    Attributes:
        flat: all of them, for the optimiser.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        self.flat = nn.Parameter(torch.cat([p.detach().flatten() for p in parameters]))
        for p, part in zip(parameters, self.flat.detach().split([p.numel() for p in parameters]), strict=True):
            p.data = part.view(p.shape)

    def collect_gradients(self) -> None:
        """Brings the gradients of the parameters into that of `flat`, and removes them."""
        self.flat.grad = torch.cat([p.grad.flatten() for p in self._parameters if p.grad is not None])
        for p in self._parameters:
            p.grad = None
