"""What the tests under torch's own machinery share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from two_processes import in_two_processes

# The parameters after some training; rank None: by one process with the whole batch.
Trained = Callable[[int | None], dict[str, Tensor]]


class Doubled(nn.Module):
    """A parametrization."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x

    def right_inverse(self, x: Tensor) -> Tensor:
        return x / 2


def check_two_processes_train_as_one(trained: Trained, folder: Path) -> None:
    expected = trained(None)
    for found in in_two_processes(trained, folder):
        torch.testing.assert_close(found, expected)
