"""Memory networks over a sequence: controller, external memory and output layer of all steps in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._memory_options import DncOptions
from .._states import SHAPES, DncState, NtmState, State
from ._devices import check_devices

_op = torch.ops.routing_ext.memory_sequence_node.default

_FEW_LINK_BYTES = 1 << 22  # so much is kept rather than computed again


def default_link_every(steps: int, link_bytes: int) -> int:
    """About the root of the number of steps, which keeps the fewest links at a time; 1 where all of them are little memory."""
    every = 1
    if steps * link_bytes > _FEW_LINK_BYTES:
        while every * every < steps:
            every += 1
    return every


def _sequence(
    kind: type[State],
    model: str,
    options: list[float],
    x: Tensor,
    weights: Sequence[Tensor],
    state: State | None,
    *numbers: int | float,
) -> tuple[Tensor, State]:
    """`numbers`: the operator's own."""
    before: Sequence[Tensor] = () if state is None else state
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        x, before, weights = _float(x), [*map(_float, before)], [*map(_float, weights)]
    y, final = _op(model, options, x, before, weights, *numbers)
    return y, kind(*final)


def _float(t: Tensor) -> Tensor:
    return t.float() if t.is_floating_point() and t.dtype != torch.float64 else t


def _num_locations(op: str, state: DncState | NtmState | None, given: int | None) -> int:
    if state is not None:
        locations = state.memory.size(1)
        if given is not None and given != locations:
            raise ValueError(f"{op}: num_locations must be that of the state, {locations}, got {given}")
        return locations
    if given is None:
        raise ValueError(f"{op}: num_locations is needed where there is no state, got None")
    return given


def dnc_sequence(
    x: Tensor,
    weights: Sequence[Tensor],
    state: DncState | None = None,
    *,
    num_locations: int | None = None,
    clip_value: float = 20.0,
    link_every: int | None = None,
    **options: Any,
) -> tuple[Tensor, DncState]:
    """A differentiable neural computer over a sequence: ``(y [T,B,O], state after it)``.

    Computes what :func:`routing_ext.reference.dnc_sequence` does, all steps in one call.

    Args:
        x: ``[T,B,I]``, float32 or float64; T and B may be 0.
        weights: 26 tensors with the dtype of ``x``: of the LSTM ``w_ih [4H,I+R*W]``, ``w_hh [4H,H]``, ``b_ih [4H]``,
            ``b_hh [4H]``; ``weight [n,H]`` and ``bias [n]`` of the write heads' keys (n = V*W), strengths (V), allocation
            gates (V), write gates (V), erase (V*W) and add (V*W) vectors, and of the read heads' keys (R*W), strengths (R),
            free gates (R) and modes (R*(2V+1)); of the output ``weight [O,H+R*W]`` and ``bias [O]``.
        state: before the first step; None: the initial one.
        num_locations: N; needed if there is no state.
        clip_value: the hidden state and the output, before its logistic function, are clipped to +-clip_value.
        link_every: of the links, the largest part of the state, one in so many is kept for the backward pass, which computes
            the others again. Default: about the root of T, or 1 where they take little memory.
        options: of :class:`~routing_ext.memory.DncOptions`.

    Returns:
        y and the state after the last step. Differentiable, once, in x, the weights and the state. Under autocast computed in
        float32.

    Raises:
        TypeError: an unknown option.
        ValueError: an option has no such value, or no number of locations.
        RuntimeError: wrong shape, dtype or device.
    """
    numbers = DncOptions.read("dnc_sequence", options).numbers()
    locations = _num_locations("dnc_sequence", state, num_locations)
    if link_every is None:
        num_writes = weights[6].size(0) if len(weights) > 6 else 1
        link_every = default_link_every(x.size(0), x.size(1) * num_writes * locations**2 * x.element_size())
    return _sequence(DncState, "dnc", numbers, x, weights, state, locations, clip_value, link_every)


def ntm_sequence(
    x: Tensor,
    weights: Sequence[Tensor],
    state: NtmState | None = None,
    *,
    num_locations: int | None = None,
    clip_value: float = 20.0,
) -> tuple[Tensor, NtmState]:
    """A neural Turing machine over a sequence: ``(y [T,B,O], state after it)``.

    Computes what :func:`routing_ext.reference.ntm_sequence` does, all steps in one call.

    Args:
        x: ``[T,B,I]``, float32 or float64; T and B may be 0.
        weights: 30 tensors with the dtype of ``x``: of the LSTM as in :func:`dnc_sequence`; ``weight [n,H]`` and ``bias [n]``
            of the write heads' keys (n = V*W), strengths (V), gates (V), shifts (V*S, S odd), sharpness (V), erase (V*W) and
            add (V*W) vectors, and of the read heads' keys (R*W), strengths (R), gates (R), shifts (R*S) and sharpness (R); of
            the output as in :func:`dnc_sequence`.
        state: before the first step; None: the initial one.
        num_locations: N; needed if there is no state.
        clip_value: the hidden state and the output, before its logistic function, are clipped to +-clip_value.

    Returns:
        y and the state after the last step. Differentiable, once, in x, the weights and the state. Under autocast computed in
        float32.

    Raises:
        ValueError: no number of locations.
        RuntimeError: wrong shape, dtype or device.
    """
    locations = _num_locations("ntm_sequence", state, num_locations)
    return _sequence(NtmState, "ntm", [], x, weights, state, locations, clip_value, 1)


# ---- fake tensors -----------------------------------------------------------------------------------------------------------


def _sizes(model: str, x: Tensor, weights: Sequence[Tensor], num_locations: int) -> dict[str, int]:
    of_reads = 18 if model == "dnc" else 20  # the strengths of the read heads
    writes, reads = weights[6].size(0), weights[of_reads].size(0)
    shifts = 0 if model == "dnc" else weights[10].size(0) // writes
    return {
        "T": x.size(0), "B": x.size(1), "I": x.size(2), "H": weights[1].size(1), "O": weights[-1].size(0),
        "N": num_locations, "W": weights[4].size(0) // writes, "V": writes, "R": reads, "S": shifts,
    }  # fmt: skip


def _empty_state(model: str, sizes: dict[str, int], like: Tensor) -> list[Tensor]:
    fields = (DncState if model == "dnc" else NtmState)._fields
    return [like.new_empty([sizes[dimension] for dimension in SHAPES[field]]) for field in fields]


@torch.library.register_fake("routing_ext::memory_sequence")
def _(
    model: str,
    options: Sequence[float],
    x: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    num_locations: int,
    clip_value: float,
    link_every: int,
    keep: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    check_devices("memory_sequence", x, state=state, weights=weights)
    sizes = _sizes(model, x, weights, num_locations)
    final = _empty_state(model, sizes, x)
    tape = []
    if keep:
        steps, batch, n = sizes["T"], sizes["B"], sizes["N"]
        row = torch.ops.routing_ext.memory_row_size(model, options, [int(sizes[k]) for k in "IHONWVRS"], x.dtype)
        align = 64 // x.element_size()
        links = (steps - 1) // link_every if steps > 0 else 0
        link_batch = batch if model == "dnc" else 0
        tape = [
            x.new_empty((steps + 1, batch, row)),
            x.new_empty((links, link_batch, sizes["V"], n, (n + align - 1) // align * align)),
        ]
    return x.new_empty((sizes["T"], sizes["B"], sizes["O"])), final, tape


@torch.library.register_fake("routing_ext::memory_sequence_backward")
def _(
    model: str,
    options: Sequence[float],
    grad_y: Tensor | None,
    grad_state: Sequence[Tensor | None],
    x: Tensor,
    link: Tensor | None,
    weights: Sequence[Tensor],
    tape: Sequence[Tensor],
    num_locations: int,
    clip_value: float,
    link_every: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    wants_x, wants_weights, wants_state = output_mask
    return (
        x.new_empty(x.shape if wants_x else (0,)),
        [x.new_empty(w.shape) for w in weights] if wants_weights else [],
        _empty_state(model, _sizes(model, x, weights, num_locations), x) if wants_state else [],
    )
