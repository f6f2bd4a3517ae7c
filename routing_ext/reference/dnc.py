"""The definitions of the operators of the differentiable neural computer (Graves et al., 2016, Methods)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._memory_options import DncOptions
from .._states import DncState
from .memory_ops import EPSILON, content_weights, memory_read, memory_write
from .memory_sequence import memory_sequence, unrolled


def dnc_usage(
    usage: Tensor,
    write_weights: Tensor,
    free_gates: Tensor,
    read_weights: Tensor,
    *,
    detach_write_weights: bool = False,
) -> Tensor:
    """``[B,N]``: usage after the last step's writes, which use locations, and its reads, whose gates free them.

    ``(u + (1 - u) (1 - prod_v (1 - w_v))) prod_r (1 - f_r r_r)``

    Args:
        usage: ``[B,N]``.
        write_weights: ``[B,V,N]``, of the last step.
        free_gates: ``[B,R]``, in [0, 1].
        read_weights: ``[B,R,N]``, of the last step.
        detach_write_weights: no gradient to them, as in DeepMind's implementation.
    """
    if detach_write_weights:
        write_weights = write_weights.detach()
    written = usage + (1 - usage) * (1 - (1 - write_weights).prod(1))
    return written * (1 - free_gates.unsqueeze(-1) * read_weights).prod(1)


def dnc_allocation(
    usage: Tensor, write_gates: Tensor, *, mode: str = "sort", temperature: float = 0.5
) -> tuple[Tensor, Tensor]:
    """``(allocation [B,V,N], usage [B,N])``: where each write head finds free locations, and usage as if they were written.

    Head by head: ``a_v`` from the usage so far, which then grows by ``(1 - u) g_v a_v``.

    Args:
        usage: ``[B,N]``, in [0, 1].
        write_gates: ``[B,V]``, how much of its allocation each head will write.
        mode: ``"sort"``: of the locations in ascending order of u' = e + (1 - e) u, e = 1e-6, each gets 1 - u' times the
            product of all u' before it. Equal ones stand in the order of their index. The order has no gradient.
            ``"softmax"``: ``softmax((1 - u) / temperature)`` (Ben-Ari and Bekker, 2017), differentiable everywhere.
        temperature: of the softmax; the lower, the more the least used locations get.
    """
    if mode not in ("sort", "softmax"):
        raise ValueError(f'dnc_allocation: mode must be "sort" or "softmax", got {mode!r}')
    allocations = []
    for gate in write_gates.unbind(1):
        allocation = _sorted_allocation(usage) if mode == "sort" else torch.softmax((1 - usage) / temperature, -1)
        usage = usage + (1 - usage) * gate.unsqueeze(-1) * allocation
        allocations.append(allocation)
    return torch.stack(allocations, 1), usage


def _sorted_allocation(usage: Tensor) -> Tensor:
    ascending, order = (EPSILON + (1 - EPSILON) * usage).sort(dim=-1, stable=True)
    used_before = F.pad(ascending, (1, 0), value=1.0)[:, :-1].cumprod(-1)
    return torch.zeros_like(usage).scatter(-1, order, (1 - ascending) * used_before)


def dnc_temporal_link(
    link: Tensor, precedence: Tensor, write_weights: Tensor, read_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``(link [B,V,N,N], precedence [B,V,N], forward [B,V,R,N], backward [B,V,R,N])``: in which order locations were written.

    ``L[i,j] = (1 - w[i] - w[j]) L[i,j] + w[i] p[j]`` with zero diagonal, then ``p = (1 - sum w) p + w``. From where a head has
    read, ``L r`` is where was written next, and ``L' r`` where before.

    Args:
        link: ``[B,V,N,N]``.
        precedence: ``[B,V,N]``.
        write_weights: ``[B,V,N]``, of this step.
        read_weights: ``[B,R,N]``, of the last step.
    """
    after, before = write_weights.unsqueeze(-1), write_weights.unsqueeze(-2)
    link = (1 - after - before) * link + after * precedence.unsqueeze(-2)
    link = link * (1 - torch.eye(link.size(-1), dtype=link.dtype, device=link.device))
    precedence = (1 - write_weights.sum(-1, keepdim=True)) * precedence + write_weights
    forward = torch.einsum("bvij,brj->bvri", link, read_weights)
    backward = torch.einsum("bvji,brj->bvri", link, read_weights)
    return link, precedence, forward, backward


def dnc_access(interface: Tensor, state: DncState, **options: Any) -> DncState:
    """The state after one step of the memory, controlled by the interface; `hidden` and `cell` stay as they are.

    Args:
        interface: ``[B,IF]``. For the V write heads: keys ``V*W``, strengths ``V``, allocation gates ``V``, write gates ``V``,
            erase ``V*W``, add ``V*W``; for the R read heads: keys ``R*W``, strengths ``R``, free gates ``R``, and, each head's
            together, read modes ``R*(2V+1)``: backward along each write head's link, forward along each, content. If the
            options ask for them: masks of the write heads ``V*W`` and of the read heads ``R*W``; sharpness of the reads
            backward along each link and forward along each, ``R*2V``. Before activation: keys and add go through tanh,
            strengths through softplus, sharpness through ``1 + softplus``, the modes of a head through softmax, gates, masks
            and erase through the logistic function.
        state: after the last step.
        options: of :class:`~routing_ext.memory.DncOptions`.
    """
    o = DncOptions.read("dnc_access", options)
    batch, v, _ = state.write_weights.shape
    r, w = state.read_vectors.shape[1:]
    sizes = o.interface(v, r, w)
    parts = dict(zip(sizes, interface.split(list(sizes.values()), 1), strict=True))
    write_keys, erase, add = (parts[name].view(batch, v, w) for name in ("write_keys", "erase", "add"))
    read_keys = parts["read_keys"].view(batch, r, w)
    if o.words == "tanh":
        write_keys, add, read_keys = write_keys.tanh(), add.tanh(), read_keys.tanh()
    write_strengths, read_strengths = (
        F.softplus(parts[name]) + (o.strengths == "oneplus") for name in ("write_strengths", "read_strengths")
    )
    allocation_gates, write_gates, free_gates = (
        parts[name].sigmoid() for name in ("allocation_gates", "write_gates", "free_gates")
    )
    write_masks = read_masks = None
    if o.mask_min is not None:
        write_masks, read_masks = (
            o.mask_min + (1 - o.mask_min) * parts[name].view(batch, heads, w).sigmoid()
            for name, heads in (("write_masks", v), ("read_masks", r))
        )

    in_use = dnc_usage(
        state.usage, state.write_weights, free_gates, state.read_weights, detach_write_weights=o.usage == "paper"
    )
    gates = write_gates if o.usage == "reference" else write_gates * allocation_gates
    allocation, simulated = dnc_allocation(in_use, gates, mode=o.allocation, temperature=o.temperature)
    by_content = content_weights(write_keys, write_strengths, state.memory, masks=write_masks, cosine=o.cosine)
    allocation_gates, write_gates = allocation_gates.unsqueeze(-1), write_gates.unsqueeze(-1)
    write_weights = write_gates * (allocation_gates * allocation + (1 - allocation_gates) * by_content)
    memory = state.memory
    if o.erase_freed:
        memory = memory * (1 - free_gates.unsqueeze(-1) * state.read_weights).prod(1).unsqueeze(-1)
    memory = memory_write(memory, write_weights, erase.sigmoid(), add)

    link, precedence = state.link, state.precedence
    read_weights = content_weights(read_keys, read_strengths, memory, masks=read_masks, cosine=o.cosine)
    if o.link:
        link, precedence, forward, backward = dnc_temporal_link(link, precedence, write_weights, state.read_weights)
        along = torch.cat([backward, forward], 1).transpose(1, 2)  # [B,R,2V,N]
        if o.sharpen_link:
            sharpness = 1 + F.softplus(parts["sharpness"].view(batch, r, 2 * v, 1))
            along = torch.softmax(sharpness * (along.clamp(min=0) + EPSILON).log(), -1)
        read_modes = parts["modes"].view(batch, r, 2 * v + 1, 1).softmax(2)
        read_weights = (read_modes * torch.cat([along, read_weights.unsqueeze(2)], 2)).sum(2)
    return state._replace(
        memory=memory,
        usage=simulated if o.usage == "reference" else in_use,
        precedence=precedence,
        link=link,
        write_weights=write_weights,
        read_weights=read_weights,
        read_vectors=memory_read(memory, read_weights),
    )


def dnc_sequence(x: Tensor, weights: Sequence[Tensor], state: DncState, **options: Any) -> tuple[Tensor, DncState]:
    """``(y [T,B,O], state)``: a differentiable neural computer over a sequence.

    Args:
        x: ``[T,B,I]``.
        weights: of the LSTM ``w_ih [4H,I+R*W]``, ``w_hh [4H,H]``, ``b_ih [4H]``, ``b_hh [4H]``; of each of the parts of
            the interface, see :func:`dnc_access`, ``weight [n,H]``, ``bias [n]``; of the output ``weight [O,H+R*W]`` and
            ``bias [O]``.
        state: before the first step.
        options: those of :class:`~routing_ext.memory.DncOptions`; clip_value, output, norm, norm_eps, initial, lengths,
            resets and reset_memory of :func:`routing_ext.reference.memory_sequence.memory_sequence`.
    """
    of_step = {name: options.pop(name) for name in DncOptions._fields if name in options}
    num_parts = len(DncOptions.read("dnc_sequence", of_step).interface(1, 1, 1))
    return memory_sequence(x, weights, state, lambda interface, s: dnc_access(interface, s, **of_step), num_parts, **options)


def dnc_access_sequence(interface: Tensor, state: DncState, **options: Any) -> tuple[Tensor, DncState]:
    """``(read vectors [T,B,R,W], state)``: the memory over a sequence, under a controller that does not see what is read.

    Args:
        interface: ``[T,B,IF]``, at each step as for :func:`dnc_access`.
        state: before the first step; `hidden` and `cell` are handed on.
        options: those of :class:`~routing_ext.memory.DncOptions`; initial, lengths, resets and reset_memory of
            :func:`routing_ext.reference.memory_sequence.unrolled`.
    """
    of_step = {name: options.pop(name) for name in DncOptions._fields if name in options}

    def step(interface_t: Tensor, state: DncState) -> tuple[Tensor, DncState]:
        state = dnc_access(interface_t, state, **of_step)
        return state.read_vectors.flatten(1), state

    y, final = unrolled(interface, state, step, **options)
    return y.unflatten(2, state.read_vectors.shape[1:]), final._replace(hidden=state.hidden, cell=state.cell)
