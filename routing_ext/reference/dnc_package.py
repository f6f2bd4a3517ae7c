"""The definition of the memory's step in the package `dnc` (github.com/ixaxaar/pytorch-dnc)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._states import DncState
from .dnc import dnc_allocation, dnc_temporal_link, dnc_usage
from .memory_ops import EPSILON, memory_read, memory_write


def dnc_package_access(interface: Tensor, state: DncState) -> DncState:
    """The state after one step of the memory, controlled by the interface; `hidden` and `cell` stay as they are.

    As :func:`routing_ext.reference.dnc_access` with one write head, but for the order of the interface, the similarity
    ``k.m / (|k| |m| + e)`` with e = 1e-6, and the usage: what is about to be allocated does not count as used, and usage has
    a gradient to the write weights.

    Args:
        interface: ``[B,IF]``. Read keys ``R*W``, read strengths ``R``, write key ``W``, write strength ``1``, erase ``W``, add
            ``W``, free gates ``R``, allocation gate ``1``, write gate ``1``, and, each read head's together, modes ``R*3``:
            backward, forward, content. Their activations are those of :func:`routing_ext.reference.dnc_access`.
        state: after the last step; V = 1.
    """
    r, w = state.read_vectors.shape[1:]
    sizes = [r * w, r, w, 1, w, w, r, 1, 1, 3 * r]
    read_keys, read_strengths, write_key, write_strength, erase, add, free_gates, allocation_gate, write_gate, modes = (
        interface.split(sizes, 1)
    )

    usage = dnc_usage(state.usage, state.write_weights, free_gates.sigmoid(), state.read_weights)
    write_gate, allocation_gate = write_gate.sigmoid(), allocation_gate.sigmoid()
    allocation, _ = dnc_allocation(usage, write_gate)
    by_content = _content_weights(write_key.unsqueeze(1), write_strength, state.memory)
    gate = allocation_gate.unsqueeze(-1)
    write_weights = write_gate.unsqueeze(-1) * (gate * allocation + (1 - gate) * by_content)
    memory = memory_write(state.memory, write_weights, erase.sigmoid().unsqueeze(1), add.tanh().unsqueeze(1))

    link, precedence, forward, backward = dnc_temporal_link(state.link, state.precedence, write_weights, state.read_weights)
    by_content = _content_weights(read_keys.unflatten(1, (r, w)), read_strengths, memory)
    reads = torch.stack([backward[:, 0], forward[:, 0], by_content], 2)  # [B,R,3,N]
    read_weights = (modes.unflatten(1, (r, 3)).softmax(-1).unsqueeze(-1) * reads).sum(2)
    return state._replace(
        memory=memory,
        usage=usage,
        precedence=precedence,
        link=link,
        write_weights=write_weights,
        read_weights=read_weights,
        read_vectors=memory_read(memory, read_weights),
    )


def _content_weights(keys: Tensor, strengths: Tensor, memory: Tensor) -> Tensor:
    keys = keys.tanh()
    norms = keys.norm(dim=-1).unsqueeze(-1) * memory.norm(dim=-1).unsqueeze(-2)
    return torch.softmax(F.softplus(strengths).unsqueeze(-1) * (keys @ memory.mT) / (norms + EPSILON), -1)
