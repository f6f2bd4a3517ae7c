"""The definitions of the operators of the neural Turing machine (Graves et al., 2014)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._states import NtmState
from .memory_ops import content_weights, memory_read, memory_write
from .memory_sequence import memory_sequence


def ntm_location(content: Tensor, gates: Tensor, shifts: Tensor, sharpness: Tensor, previous: Tensor) -> Tensor:
    """``[B,H,N]``: weights by content, blended with the last step's, moved along the memory, and sharpened.

    ``wg = g c + (1 - g) p``, then ``ws[n] = sum_s shift[s] wg[(n + s - S // 2) mod N]``, then ``ws^gamma / sum ws^gamma``. The
    powers are taken relative to the largest one, so that they cannot all vanish.

    Args:
        content: ``[B,H,N]``.
        gates: ``[B,H]``, in [0, 1].
        shifts: ``[B,H,S]``; adding up to 1.
        sharpness: ``[B,H]``, gamma, at least 1.
        previous: ``[B,H,N]``, weights of the last step.
    """
    gates = gates.unsqueeze(-1)
    blended = gates * content + (1 - gates) * previous
    locations, offsets = (torch.arange(n, device=content.device) for n in (content.size(-1), shifts.size(-1)))
    neighbours = (locations.unsqueeze(-1) + offsets - len(offsets) // 2) % len(locations)  # [N,S]
    moved = (shifts.unsqueeze(-2) * blended[..., neighbours]).sum(-1)
    smallest = 10 * torch.finfo(moved.dtype).tiny  # the logarithm of 0 has no finite gradient
    return torch.softmax(sharpness.unsqueeze(-1) * moved.clamp(min=smallest).log(), -1)


def ntm_access(interface: Tensor, state: NtmState, *, words: str = "tanh") -> NtmState:
    """The state after one step of the memory, controlled by the interface; `hidden` and `cell` stay as they are.

    Args:
        interface: ``[B,IF]``. For the V write heads: keys ``V*W``, strengths ``V``, gates ``V``, shifts ``V*S``, sharpness
            ``V``, erase ``V*W``, add ``V*W``; for the R read heads: keys ``R*W``, strengths ``R``, gates ``R``, shifts
            ``R*S``, sharpness ``R``. S is what fits. Before activation: keys and add go through tanh, strengths through
            softplus, the shifts of a head through softmax, sharpness through 1 + softplus, gates and erase through the
            logistic function.
        state: after the last step.
        words: ``"linear"``: keys and what is added to the memory are as the interface has them.
    """
    bounded = torch.tanh if words == "tanh" else torch.clone
    batch, v, _ = state.write_weights.shape
    r, w = state.read_vectors.shape[1:]
    of_writes, erase, add, of_reads = interface.split(_interface_sizes(interface.size(1), v, r, w), 1)
    write_weights = _head_weights(of_writes, state.memory, state.write_weights, bounded)
    erase, add = erase.view(batch, v, w).sigmoid(), bounded(add.view(batch, v, w))
    memory = memory_write(state.memory, write_weights, erase, add)
    read_weights = _head_weights(of_reads, memory, state.read_weights, bounded)
    return state._replace(
        memory=memory,
        write_weights=write_weights,
        read_weights=read_weights,
        read_vectors=memory_read(memory, read_weights),
    )


def _interface_sizes(width: int, v: int, r: int, w: int) -> list[int]:
    addressing = (width - 2 * v * w) // (v + r)  # of one head
    return [v * addressing, v * w, v * w, r * addressing]


def _head_weights(parts: Tensor, memory: Tensor, previous: Tensor, bounded: Callable[[Tensor], Tensor]) -> Tensor:
    batch, h, _ = previous.shape
    w = memory.size(-1)
    s = parts.size(1) // h - w - 3
    keys, strengths, gates, shifts, sharpness = parts.split([h * w, h, h, h * s, h], 1)
    content = content_weights(bounded(keys.view(batch, h, w)), F.softplus(strengths), memory)
    shifts = shifts.view(batch, h, s).softmax(-1)
    return ntm_location(content, gates.sigmoid(), shifts, 1 + F.softplus(sharpness), previous)


def ntm_sequence(x: Tensor, weights: Sequence[Tensor], state: NtmState, **options: Any) -> tuple[Tensor, NtmState]:
    """``(y [T,B,O], state)``: a neural Turing machine over a sequence.

    Args:
        x: ``[T,B,I]``.
        weights: of the LSTM ``w_ih [4H,I+R*W]``, ``w_hh [4H,H]``, ``b_ih [4H]``, ``b_hh [4H]``; of each of the twelve parts of
            the interface, see :func:`ntm_access`, ``weight [n,H]``, ``bias [n]``; of the output ``weight [O,H+R*W]`` and
            ``bias [O]``.
        state: before the first step.
        options: words of :func:`ntm_access`; clip_value, output, norm, norm_eps, initial, lengths, resets and reset_memory of
            :func:`routing_ext.reference.memory_sequence.memory_sequence`.
    """
    words = options.pop("words", "tanh")
    return memory_sequence(x, weights, state, lambda interface, s: ntm_access(interface, s, words=words), 12, **options)
