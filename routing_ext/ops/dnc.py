"""How a differentiable neural computer addresses its memory, and the whole step (Graves et al., 2016, Methods)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._memory_options import DncOptions, numbers
from .._states import DncState
from ._differentiable import differentiable


def _fake_link(link: Tensor, precedence: Tensor, write_weights: Tensor, read_weights: Tensor) -> tuple[Tensor, ...]:
    reads = (*precedence.shape[:2], *read_weights.shape[1:])
    return tuple(link.new_empty(s) for s in (link.shape, precedence.shape, reads, reads))


def _fake_access(interface: Tensor, memory: Tensor, *state_and_options: Any) -> tuple[Tensor, ...]:
    *state, options = state_and_options
    (batch, locations, word), writes, reads = memory.shape, state[-2].size(1), state[-1].size(1)
    sizes = [0, 0, 0, *(int(n) for n in (locations, word, writes, reads)), 0]
    row = torch.ops.routing_ext.memory_row_size("dnc", options, sizes, memory.dtype)
    shapes = [memory.shape, *(t.shape for t in state), (batch, reads, word), (batch, row)]
    return tuple(memory.new_empty(s) for s in shapes)


_dnc_usage = differentiable("dnc_usage", lambda usage, write_weights, free_gates, read_weights: usage.new_empty(usage.shape))
_dnc_allocation = differentiable(
    "dnc_allocation",
    lambda usage, write_gates, temperature: tuple(
        usage.new_empty(s) for s in ((*write_gates.shape, usage.size(1)), usage.shape, (*write_gates.shape, usage.size(1)))
    ),
    results=2,
)
_dnc_temporal_link = differentiable("dnc_temporal_link", _fake_link, results=4)
_dnc_access = differentiable("dnc_access", _fake_access, results=7)


def dnc_usage(
    usage: Tensor,
    write_weights: Tensor,
    free_gates: Tensor,
    read_weights: Tensor,
    *,
    detach_write_weights: bool = False,
) -> Tensor:
    """Usage after the last step's writes, which use locations, and its reads, whose gates free them.

    Computes what :func:`routing_ext.reference.dnc_usage` does.

    Args:
        usage: ``[B,N]``.
        write_weights: ``[B,V,N]``, of the last step.
        free_gates: ``[B,R]``, in [0, 1].
        read_weights: ``[B,R,N]``, of the last step.
        detach_write_weights: no gradient to them, as in DeepMind's implementation.

    Returns:
        ``[B,N]``.

    Raises:
        RuntimeError: wrong shape, dtype or device.
    """
    if detach_write_weights:
        write_weights = write_weights.detach()
    return _dnc_usage(usage, write_weights, free_gates, read_weights)  # type: ignore[no-any-return]


def dnc_allocation(
    usage: Tensor, write_gates: Tensor, *, mode: str = "sort", temperature: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Where each write head finds free locations, and usage as if they were written.

    Computes what :func:`routing_ext.reference.dnc_allocation` does.

    Args:
        usage: ``[B,N]``, in [0, 1].
        write_gates: ``[B,V]``, how much of its allocation each head will write; the heads after it find that in use.
        mode: ``"sort"``: to the least used location first, to equally used ones in the order of their index. The order has no
            gradient. ``"softmax"``: ``softmax((1 - u) / temperature)`` (Ben-Ari and Bekker, 2017), differentiable everywhere.
        temperature: of the softmax, positive; the lower, the more the least used locations get.

    Returns:
        ``(allocation [B,V,N], usage [B,N])``.

    Raises:
        ValueError: an unknown mode, or a temperature that is not positive.
        RuntimeError: wrong shape, dtype or device.
    """
    if mode not in ("sort", "softmax"):
        raise ValueError(f'dnc_allocation: mode must be "sort" or "softmax", got {mode!r}')
    if mode == "softmax" and temperature <= 0:
        raise ValueError(f"dnc_allocation: temperature must be positive, got {temperature}")
    options = (temperature if mode == "softmax" else 0.0,)
    return _dnc_allocation(usage, write_gates, options=options)  # type: ignore[no-any-return]


def dnc_temporal_link(
    link: Tensor, precedence: Tensor, write_weights: Tensor, read_weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """In which order locations were written: the link and the precedence after a step, and the reads along the link.

    Computes what :func:`routing_ext.reference.dnc_temporal_link` does, the update and the reads in one pass over the link.

    Args:
        link: ``[B,V,N,N]``. Where the rows are contiguous and a multiple of 64 bytes it is read where it lies.
        precedence: ``[B,V,N]``.
        write_weights: ``[B,V,N]``, of this step.
        read_weights: ``[B,R,N]``, of the last step.

    Returns:
        ``(link [B,V,N,N], precedence [B,V,N], forward [B,V,R,N], backward [B,V,R,N])``: the forward reads are of what was
        written after the locations that a head had read, the backward reads of what was written before.

    Raises:
        RuntimeError: wrong shape, dtype or device.
    """
    return _dnc_temporal_link(link, precedence, write_weights, read_weights)  # type: ignore[no-any-return]


def dnc_access(interface: Tensor, state: DncState, **options: Any) -> DncState:
    """The state after one step of the memory, controlled by the interface: all of the accessor in one call.

    Computes what :func:`routing_ext.reference.dnc_access` does.

    Args:
        interface: ``[B,I]``, before its activations. For the V write heads: keys ``V*W``, strengths ``V``, allocation gates
            ``V``, write gates ``V``, erase ``V*W``, add ``V*W``; for the R read heads: keys ``R*W``, strengths ``R``, free
            gates ``R``, and, each head's together, read modes ``R*(2V+1)``. If the options ask for them, masks ``V*W`` and
            ``R*W``, and sharpness ``R*2V``. Without a link there are no read modes.
        state: after the last step. Of its read vectors only the shape counts; `hidden` and `cell` are handed on.
        options: of :class:`~routing_ext.memory.DncOptions`.

    Returns:
        The next state. Differentiable, once, in the interface and the state.

    Raises:
        TypeError: an unknown option.
        ValueError: an option has no such value.
        RuntimeError: wrong shape, dtype or device.
    """
    of_step = numbers(DncOptions.read("dnc_access", options))
    *memory, read_vectors = _dnc_access(interface, *state[:6], options=(of_step,))
    return DncState._make([*memory, state.hidden, state.cell, read_vectors])
