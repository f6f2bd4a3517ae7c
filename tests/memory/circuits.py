"""Small circuits, and inputs for them."""

from __future__ import annotations

import torch
from helpers import normal
from torch import Tensor

from routing_ext.memory import DNCCircuit, NTMCircuit

SIZES = {
    "input_dim": 4,
    "output_dim": 3,
    "hidden_dim": 6,
    "num_write_heads": 2,
    "num_read_heads": 3,
    "mem_hei": 7,
    "mem_wid": 5,
}
CIRCUITS = [DNCCircuit, NTMCircuit]


def inputs(steps: int = 6, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return normal(steps, batch, SIZES["input_dim"], seed=steps, dtype=dtype, grad=False)
