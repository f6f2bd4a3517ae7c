"""What the layers compute, step by step and layer by layer in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from routing_ext.memory import DNC, NTM, MemoryLayer
from routing_ext.reference import dnc_access, ntm_access


def plain(layer: MemoryLayer[Any], x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """``(y [T,B,O], state)`` of a layer without dropout, in its parameters."""
    access: Callable[[Tensor, Any], Any]
    if isinstance(layer, DNC):
        options = layer.options._asdict()
        access = lambda interface, s: dnc_access(interface, s, **options)  # noqa: E731
    else:
        assert isinstance(layer, NTM)
        access = lambda interface, s: ntm_access(interface, s, words=layer.words)  # noqa: E731
    state = layer.initial_state(x.size(1)) if state is None else state
    states = [state.map(lambda t, i=i: t[i]) for i in range(layer.num_layers)]
    ys = []
    for x_t in x:
        for i, cell in enumerate(layer.layers):
            seen = torch.cat([x_t, states[i].read_vectors.flatten(1)], 1)
            hidden, memory = cell.controller(seen, (states[i].hidden, states[i].cell))
            states[i] = access(cell.signals(hidden), states[i]._replace(hidden=hidden, cell=memory))
            x_t = torch.cat([hidden, states[i].read_vectors.flatten(1)], 1)
        ys.append(layer.output(x_t))
    return torch.stack(ys), type(state)(*map(torch.stack, zip(*states, strict=True)))
