"""Small layers, and what tests of them share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers import normal
from torch import Tensor, nn

from routing_ext.memory import MemoryLayer

SIZES = {"memory_size": 7, "word_size": 5, "read_heads": 3, "write_heads": 2, "dtype": torch.float64}
INPUT, HIDDEN = 4, 6
Layer = MemoryLayer[Any]
Make = Callable[..., Layer]


def make_layer(kind: type[Layer], num_layers: int = 1, **options: Any) -> Layer:
    """In float64, with parameters three times the usual ones."""
    torch.manual_seed(0)
    layer = kind(INPUT, HIDDEN, num_layers, **(SIZES | options))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter *= 3
    return layer


def own_controller(layer: Layer, kind: type[nn.RNNCellBase]) -> list[nn.RNNCellBase]:
    """One for each layer."""
    width = INPUT + 15
    return [kind(width if i == 0 else HIDDEN + 30, HIDDEN, dtype=torch.float64) for i in range(layer.num_layers)]


def inputs(steps: int = 5, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return normal(steps, batch, INPUT, seed=steps, dtype=dtype)


def assert_same_states(actual: Any, expected: Any) -> None:
    assert type(actual) is type(expected)
    for field, value in actual._asdict().items():
        torch.testing.assert_close(value, getattr(expected, field), msg=lambda text, field=field: f"{field}: {text}")
