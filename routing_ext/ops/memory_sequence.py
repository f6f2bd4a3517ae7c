"""Memory networks over a sequence: controller, external memory and output layer of all steps in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._memory_options import DncOptions, check_choice, numbers
from .._states import SHAPES, DncState, NtmState, State
from ._devices import check_devices

_forward_op = torch.ops.routing_ext.memory_sequence.default
_backward_op = torch.ops.routing_ext.memory_sequence_backward.default

_LINK = DncState._fields.index("link")
_UNLINKED = 8  # its place among the numbers of the options
_FEW_LINK_BYTES = 1 << 22  # so much is kept rather than computed again


class _Options(NamedTuple):
    """The arguments of the raw operators that are no tensors."""

    model: str
    numbers: list[float]
    num_locations: int
    clip_value: float
    link_every: int


class MemorySequenceFunction(torch.autograd.Function):
    """``tensors`` are the state, if it is given, and then the weights."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        lengths: Tensor | None,
        resets: Tensor | None,
        options: _Options,
        num_states: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        state, weights = tensors[:num_states], tensors[num_states:]
        y, final, tape = _forward(x, lengths, resets, options, state, weights, keep=True)
        link = state[_LINK] if options.model == "dnc" and num_states else None
        ctx.save_for_backward(x, link, lengths, resets, *tape, *weights)
        ctx.options, ctx.num_states, ctx.num_tape = options, num_states, len(tape)
        needs: tuple[bool, ...] = ctx.needs_input_grad
        ctx.output_mask = (needs[0], any(needs[5 + num_states :]), any(needs[5 : 5 + num_states]))
        ctx.set_materialize_grads(False)
        return (y, *final)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, *grad_state: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(f"{ctx.options.model}_sequence: has no second derivative, got create_graph=True")
        x, link, lengths, resets, *saved = ctx.saved_tensors
        tape, weights = saved[: ctx.num_tape], saved[ctx.num_tape :]
        o: _Options = ctx.options
        grad_x, grad_weights, grad_initial = _backward_op(
            o.model, o.numbers, grad_y, grad_state, x, link, weights, lengths, resets, tape, o.num_locations, o.clip_value,
            o.link_every, ctx.output_mask,
        )  # fmt: skip
        wants_x, wants_weights, wants_state = ctx.output_mask
        return (
            grad_x if wants_x else None,
            None,
            None,
            None,
            None,
            *(grad_initial if wants_state else [None] * ctx.num_states),
            *(grad_weights if wants_weights else [None] * len(weights)),
        )


def _forward(
    x: Tensor,
    lengths: Tensor | None,
    resets: Tensor | None,
    options: _Options,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    keep: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    return _forward_op(  # type: ignore[no-any-return]
        options.model, options.numbers, x, state, weights, lengths, resets, options.num_locations,
        options.clip_value, options.link_every, keep,
    )  # fmt: skip


def _default_link_every(steps: int, link_bytes: int) -> int:
    """About the root of the number of steps, which keeps the fewest links at a time; 1 where all of them are little memory."""
    every = 1
    if steps * link_bytes > _FEW_LINK_BYTES:
        while every * every < steps:
            every += 1
    return every


def _sequence(
    x: Tensor,
    weights: Sequence[Tensor],
    state: State | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    options: _Options,
    kind: type[State],
) -> tuple[Tensor, State]:
    tensors = [x, *(() if state is None else state), *weights]
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        tensors = [t.float() if t.is_floating_point() and t.dtype != torch.float64 else t for t in tensors]
    x, *others = tensors
    num_states = len(others) - len(weights)
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        y, *final = MemorySequenceFunction.apply(x, lengths, resets, options, num_states, *others)  # type: ignore[no-untyped-call]
    else:
        y, final, _ = _forward(x, lengths, resets, options, others[:num_states], others[num_states:], keep=False)
    return y, kind(*final)


def _numbers(op: str, options: DncOptions | None, output: str, initial: str) -> list[float]:
    check_choice(op, "output", output)
    check_choice(op, "initial", initial)
    return numbers(options, output=output, initial=initial)


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
    output: str = "sigmoid",
    initial: str = "reference",
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
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
            free gates (R) and modes (R*(2V+1)); of the output ``weight [O,H+R*W]`` and ``bias [O]``. With options, the parts
            of the interface are those that :func:`dnc_access` names.
        state: before the first step; None: the initial one.
        num_locations: N; needed if there is no state.
        clip_value: the hidden state and the output, before its logistic function, are clipped to +-clip_value.
        output: ``"linear"``: y is what the output layer gives, neither clipped nor between 0 and 1.
        initial: the initial state, ``"reference"`` or ``"zeros"``.
        lengths: int64 ``[B]``, from 0 to T: how many steps of each sample there are. The others take no time; there y is zero,
            and the state stays as it is.
        resets: bool ``[T,B]``: whether a sample begins anew at this step, with the initial state.
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
    of_step = DncOptions.read("dnc_sequence", options)
    locations = _num_locations("dnc_sequence", state, num_locations)
    if link_every is None and not of_step.link:
        link_every = 1
    if link_every is None:
        num_writes = weights[6].size(0) if len(weights) > 6 else 1
        link_every = _default_link_every(x.size(0), x.size(1) * num_writes * locations**2 * x.element_size())
    given = _numbers("dnc_sequence", of_step, output, initial)
    raw_options = _Options("dnc", given, locations, clip_value, link_every)
    return _sequence(x, weights, state, lengths, resets, raw_options, DncState)


def ntm_sequence(
    x: Tensor,
    weights: Sequence[Tensor],
    state: NtmState | None = None,
    *,
    num_locations: int | None = None,
    clip_value: float = 20.0,
    output: str = "sigmoid",
    initial: str = "reference",
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
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
        output: ``"linear"``: y is what the output layer gives, neither clipped nor between 0 and 1.
        initial: the initial state, ``"reference"`` or ``"zeros"``.
        lengths: int64 ``[B]``, from 0 to T: how many steps of each sample there are. The others take no time; there y is zero,
            and the state stays as it is.
        resets: bool ``[T,B]``: whether a sample begins anew at this step, with the initial state.

    Returns:
        y and the state after the last step. Differentiable, once, in x, the weights and the state. Under autocast computed in
        float32.

    Raises:
        ValueError: no number of locations.
        RuntimeError: wrong shape, dtype or device.
    """
    given = _numbers("ntm_sequence", None, output, initial)
    options = _Options("ntm", given, _num_locations("ntm_sequence", state, num_locations), clip_value, 1)
    return _sequence(x, weights, state, lengths, resets, options, NtmState)


# ---- fake tensors -----------------------------------------------------------------------------------------------------------


def _sizes(model: str, x: Tensor, weights: Sequence[Tensor], num_locations: int) -> dict[str, int]:
    of_reads = 18 if model == "dnc" else 20  # the strengths of the read heads
    writes, reads = weights[6].size(0), weights[of_reads].size(0)
    shifts = 0 if model == "dnc" else weights[10].size(0) // writes
    return {
        "T": x.size(0), "B": x.size(1), "I": x.size(2), "H": weights[1].size(1), "O": weights[-1].size(0),
        "N": num_locations, "W": weights[4].size(0) // writes, "V": writes, "R": reads, "S": shifts,
    }  # fmt: skip


def is_linked(model: str, options: Sequence[float]) -> bool:
    """Whether that is a DNC with a link."""
    return model == "dnc" and not (options and options[_UNLINKED])


def _empty_state(model: str, options: Sequence[float], sizes: dict[str, int], like: Tensor) -> list[Tensor]:
    fields = (DncState if model == "dnc" else NtmState)._fields
    unlinked = ("precedence", "link") if not is_linked(model, options) else ()
    return [
        like.new_empty([0 if dimension == "N" and field in unlinked else sizes[dimension] for dimension in SHAPES[field]])
        for field in fields
    ]


@torch.library.register_fake("routing_ext::memory_sequence")
def _(
    model: str,
    options: Sequence[float],
    x: Tensor,
    state: Sequence[Tensor],
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    num_locations: int,
    clip_value: float,
    link_every: int,
    keep: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    check_devices("memory_sequence", x, state=state, weights=weights)
    sizes = _sizes(model, x, weights, num_locations)
    final = _empty_state(model, options, sizes, x)
    tape = []
    if keep:
        steps, batch, n = sizes["T"], sizes["B"], sizes["N"]
        row = torch.ops.routing_ext.memory_row_size(model, options, [int(sizes[k]) for k in "IHONWVRS"], x.dtype)
        align = 64 // x.element_size()
        links = (steps - 1) // link_every if steps > 0 else 0
        link_batch = batch if is_linked(model, options) else 0
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
    lengths: Tensor | None,
    resets: Tensor | None,
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
        _empty_state(model, options, _sizes(model, x, weights, num_locations), x) if wants_state else [],
    )
