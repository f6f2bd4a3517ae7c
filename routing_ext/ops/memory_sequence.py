"""Memory networks over a sequence: controller, external memory and output layer of all steps in one call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._C import memory_sequence
from .._memory_options import DncOptions, check_choice, is_linked, is_normalised, num_parts, numbers
from .._states import SHAPES, DncState, NtmState, State
from ._devices import check_devices

_op = torch.ops.routing_ext.memory_sequence_node.default

_LINK = DncState._fields.index("link")
_FEW_LINK_BYTES = 1 << 22  # so much is kept rather than computed again


def default_link_every(steps: int, link_bytes: int, device: torch.device) -> int:
    """About the root of the number of steps, which keeps the fewest links at a time.

    1 where all of them are little memory, and on a GPU, where to compute one again would be one more launch. On a CPU one
    formula, in what compilers can trace: of a branch on the number of steps they would compile each way.
    """
    if device.type == "cuda":
        return 1
    root = math.trunc(steps**0.5 + 0.5)
    is_much = torch.sym_min(1, steps * link_bytes // _FEW_LINK_BYTES)
    return 1 + (root - 1) * is_much  # type: ignore[no-any-return]


def sequence(
    kind: type[State],
    model: str,
    options: list[float],
    x: Tensor,
    state: Sequence[Tensor | None] | None,
    weights: Sequence[Tensor],
    sizes: list[int],
    *,
    writes: int = 1,
    clip_value: float = math.inf,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_memory: Tensor | None = None,
    link_every: int | None = None,
) -> tuple[Tensor, State]:
    """What the operators below do with arguments that have been read.

    Args:
        kind: of the state.
        options: as numbers.
        sizes: N; N, W, V, R and S where the interface is one matrix, or where there are no weights.
        writes: V.
    """
    if link_every is None and is_linked(model, options):
        link_every = default_link_every(x.size(0), x.size(1) * writes * sizes[0] ** 2 * x.element_size(), x.device)
    before: Sequence[Tensor | None] = () if state is None else state
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):
        before = [t if t is None else at_least_float(t) for t in before]
        x, weights = at_least_float(x), [at_least_float(w) for w in weights]
        reset_memory = None if reset_memory is None else at_least_float(reset_memory)
    others = lengths, resets, reset_memory, sizes, clip_value, 1 if link_every is None else link_every
    # The operator itself, past torch.ops, where that makes no difference: the way there is a large part of a short sequence.
    results = None if torch.compiler.is_compiling() else memory_sequence(model, options, x, before, weights, *others)
    y, final = _op(model, options, x, before, weights, *others) if results is None else results
    return y, kind(*final)


def layer_sequence(
    kind: type[State],
    model: str,
    options: list[float],
    x: Tensor,
    state: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    sizes: list[int],
    parts: Sequence[int],
    order: Sequence[int] = (),
    **others: Any,
) -> tuple[Tensor, State]:
    """:func:`sequence` with weights as layers have them: the interface is one matrix.

    Args:
        weights: of the LSTM; ``weight [IF,H]`` and ``bias [IF]`` of the interface; of its normalisation, if the options have
            one; of the output, or none. If the first one is ``[4H,I]``, the controller does not hear what was read.
        sizes: N, W, V, R and S.
        parts: of the interface, how many rows each has.
        order: the numbers of the parts, as the operators have them, in the order in which they lie in the interface; none: the
            operators'.
        others: lengths, resets and reset_memory.
    """
    _, word, writes, reads, _ = sizes
    given = [*sizes, *order]
    if not x.is_cpu:  # where the kernels want the parts one by one, and a controller that hears
        given, first = sizes[:1], weights[0]
        if first.size(1) == x.size(2):
            first = F.pad(first, (0, reads * word))
        of_weight, of_bias = [t.split(list(parts)) for t in weights[4:6]]  # views: they tell if the whole is changed
        numbers_of_parts = order or range(len(parts))
        places = sorted(range(len(parts)), key=lambda place: numbers_of_parts[place])
        interface: list[Tensor] = [t for place in places for t in (of_weight[place], of_bias[place])]
        weights = [first, *weights[1:4], *interface, *weights[6:]]
    return sequence(kind, model, options, x, state, weights, given, writes=writes, **others)


def at_least_float(t: Tensor) -> Tensor:
    """What autocast makes of an argument: low precision becomes float32."""
    return t.float() if t.is_floating_point() and t.dtype != torch.float64 else t


def _numbers(
    op: str, options: DncOptions, output: str, initial: str, norm: Sequence[Tensor] | None = None, norm_eps: float = 0.0
) -> list[float]:
    check_choice(op, "output", output)
    check_choice(op, "initial", initial)
    if norm is not None and (len(norm) != 2 or norm_eps < 0):
        got = f"{len(norm)} tensors" if len(norm) != 2 else f"norm_eps={norm_eps}"
        raise ValueError(f"{op}: norm must be weight and bias, and norm_eps not negative, got {got}")
    return numbers(options, output=output, initial=initial, norm_eps=None if norm is None else norm_eps)


def _with_norm(model: str, options: list[float], weights: Sequence[Tensor], norm: Sequence[Tensor] | None) -> Sequence[Tensor]:
    """The weights as the operator wants them: those of the normalisation behind the parts of the interface."""
    if norm is None:
        return weights
    behind = 4 + 2 * num_parts(model, options)
    return [*weights[:behind], *norm, *weights[behind:]]


def _num_locations(op: str, state: DncState | NtmState | None, given: int | None) -> int:
    if state is not None and state.memory is not None:
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
    reset_memory: Tensor | None = None,
    link_every: int | None = None,
    norm: Sequence[Tensor] | None = None,
    norm_eps: float = 1e-5,
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
            of the interface are those that :func:`dnc_access` names. Without the last two, y is ``[T,B,H+R*W]``: the hidden
            state and the read vectors.
        state: before the first step. None instead of it, or of a field, stands for the initial one; a precedence needs its
            link.
        num_locations: N; needed if there is no state.
        clip_value: the hidden state and the output, before its logistic function, are clipped to +-clip_value.
        output: ``"linear"``: y is what the output layer gives, neither clipped nor between 0 and 1.
        initial: the initial state, ``"reference"`` or ``"zeros"``.
        lengths: int64 ``[B]``, from 0 to T: how many steps of each sample there are. The others take no time; there y is zero,
            and the state stays as it is.
        resets: bool ``[T,B]``: whether a sample begins anew at this step, with the initial state.
        reset_memory: ``[B,N,W]``, the memory with which it does.
        link_every: of the links, the largest part of the state, one in so many is kept for the backward pass, which computes
            the others again. Default: about the root of T; 1 on a GPU, or where they take little memory.
        norm: ``(weight [IF], bias [IF])``: the interface, all its parts together, is normalised before its activations, as
            ``F.layer_norm`` does it.
        norm_eps: of that.
        options: of :class:`~routing_ext.memory.DncOptions`.

    Returns:
        y and the state after the last step. Differentiable, once, in x, the weights, those of `norm`, and the state. Under
        autocast computed in float32.

    Raises:
        TypeError: an unknown option.
        ValueError: an option has no such value, or no number of locations.
        RuntimeError: wrong shape, dtype or device.
    """
    of_step = DncOptions.read("dnc_sequence", options)
    locations = _num_locations("dnc_sequence", state, num_locations)
    given = _numbers("dnc_sequence", of_step, output, initial, norm, norm_eps)
    others: dict[str, Any] = {"lengths": lengths, "resets": resets, "reset_memory": reset_memory}
    writes = weights[6].size(0) if len(weights) > 6 else 1
    return sequence(
        DncState,
        "dnc",
        given,
        x,
        state,
        _with_norm("dnc", given, weights, norm),
        [locations],
        writes=writes,
        clip_value=clip_value,
        link_every=link_every,
        **others,
    )


def dnc_access_sequence(
    interface: Tensor,
    state: DncState,
    *,
    initial: str = "reference",
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_memory: Tensor | None = None,
    link_every: int | None = None,
    **options: Any,
) -> tuple[Tensor, DncState]:
    """The memory of a DNC over a sequence, under a controller that does not see what is read.

    Computes what :func:`dnc_access` does step by step, all steps in one call.

    Args:
        interface: ``[T,B,IF]``, at each step as for :func:`dnc_access`.
        state: before the first step. `memory`, `write_weights` and `read_weights` must be there; None instead of another field
            stands for the initial one. `hidden` and `cell` are handed on.
        initial: the initial state, ``"reference"`` or ``"zeros"``.
        lengths: int64 ``[B]``, from 0 to T: how many steps of each sample there are.
        resets: bool ``[T,B]``: whether a sample begins anew at this step, with the initial state.
        reset_memory: ``[B,N,W]``, the memory with which it does.
        link_every: see :func:`dnc_sequence`.
        options: of :class:`~routing_ext.memory.DncOptions`.

    Returns:
        ``(read vectors [T,B,R,W], state)``: the read vectors of each step, and the state after the last one. Differentiable,
        once, in the interface, the state and the memory after resets.

    Raises:
        TypeError: an unknown option.
        ValueError: an option has no such value.
        RuntimeError: wrong shape, dtype or device.
    """
    given = _numbers("dnc_access_sequence", DncOptions.read("dnc_access_sequence", options), "sigmoid", initial)
    (_, n, w), v, r = state.memory.shape, state.write_weights.size(1), state.read_weights.size(1)
    before = [*state[:6], None, None, state.read_vectors]
    others: dict[str, Any] = {"lengths": lengths, "resets": resets, "reset_memory": reset_memory}
    y, final = sequence(
        DncState, "dnc", given, interface, before, [], [n, w, v, r, 0], writes=v, link_every=link_every, **others
    )
    return y.unflatten(2, (r, w)), final._replace(hidden=state.hidden, cell=state.cell)


def ntm_sequence(
    x: Tensor,
    weights: Sequence[Tensor],
    state: NtmState | None = None,
    *,
    num_locations: int | None = None,
    clip_value: float = 20.0,
    output: str = "sigmoid",
    initial: str = "reference",
    words: str = "tanh",
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_memory: Tensor | None = None,
    norm: Sequence[Tensor] | None = None,
    norm_eps: float = 1e-5,
) -> tuple[Tensor, NtmState]:
    """A neural Turing machine over a sequence: ``(y [T,B,O], state after it)``.

    Computes what :func:`routing_ext.reference.ntm_sequence` does, all steps in one call.

    Args:
        x: ``[T,B,I]``, float32 or float64; T and B may be 0.
        weights: 30 tensors with the dtype of ``x``: of the LSTM as in :func:`dnc_sequence`; ``weight [n,H]`` and ``bias [n]``
            of the write heads' keys (n = V*W), strengths (V), gates (V), shifts (V*S), sharpness (V), erase (V*W) and
            add (V*W) vectors, and of the read heads' keys (R*W), strengths (R), gates (R), shifts (R*S) and sharpness (R); of
            the output as in :func:`dnc_sequence`, or none.
        state: before the first step. None instead of it, or of a field, stands for the initial one.
        num_locations: N; needed if there is no state.
        clip_value: the hidden state and the output, before its logistic function, are clipped to +-clip_value.
        output: ``"linear"``: y is what the output layer gives, neither clipped nor between 0 and 1.
        initial: the initial state, ``"reference"`` or ``"zeros"``.
        words: ``"tanh"``: of keys and what is added; ``"linear"``: they are as the controller gives them.
        lengths: int64 ``[B]``, from 0 to T: how many steps of each sample there are. The others take no time; there y is zero,
            and the state stays as it is.
        resets: bool ``[T,B]``: whether a sample begins anew at this step, with the initial state.
        reset_memory: ``[B,N,W]``, the memory with which it does.
        norm: ``(weight [IF], bias [IF])``: the interface, all its parts together, is normalised before its activations, as
            ``F.layer_norm`` does it.
        norm_eps: of that.

    Returns:
        y and the state after the last step. Differentiable, once, in x, the weights, those of `norm`, and the state. Under
        autocast computed in float32.

    Raises:
        ValueError: an option has no such value, or no number of locations.
        RuntimeError: wrong shape, dtype or device.
    """
    locations = _num_locations("ntm_sequence", state, num_locations)
    given = _numbers("ntm_sequence", DncOptions.read("ntm_sequence", {"words": words}), output, initial, norm, norm_eps)
    others: dict[str, Any] = {"lengths": lengths, "resets": resets, "reset_memory": reset_memory}
    weights = _with_norm("ntm", given, weights, norm)
    return sequence(NtmState, "ntm", given, x, state, weights, [locations], clip_value=clip_value, **others)


# ---- fake tensors -----------------------------------------------------------------------------------------------------------


def _sizes(model: str, x: Tensor, weights: Sequence[Tensor], options: Sequence[float], given: Sequence[int]) -> dict[str, int]:
    if not weights:
        return dict(zip("TBIHONWVRS", (*x.shape, 0, 0, *given), strict=True))
    if len(given) > 1:  # the interface is one matrix
        outputs = weights[-1].size(0) if len(weights) > 6 + 2 * is_normalised(options) else 0
        return dict(zip("TBIHONWVRS", (*x.shape, weights[1].size(1), outputs, *given[:5]), strict=True))
    of_reads = 18 if model == "dnc" else 20  # the strengths of the read heads
    writes, reads = weights[6].size(0), weights[of_reads].size(0)
    shifts = 0 if model == "dnc" else weights[10].size(0) // writes
    without_output = 4 + 2 * (num_parts(model, options) + is_normalised(options))
    outputs = weights[-1].size(0) if len(weights) > without_output else 0
    return {
        "T": x.size(0), "B": x.size(1), "I": x.size(2), "H": weights[1].size(1), "O": outputs,
        "N": given[0], "W": weights[4].size(0) // writes, "V": writes, "R": reads, "S": shifts,
    }  # fmt: skip


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
    state: Sequence[Tensor | None],
    weights: Sequence[Tensor],
    lengths: Tensor | None,
    resets: Tensor | None,
    reset_memory: Tensor | None,
    given_sizes: Sequence[int],
    clip_value: float,
    link_every: int,
    keep: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    check_devices("memory_sequence", x, state=[t for t in state if t is not None], weights=weights)
    sizes = _sizes(model, x, weights, options, given_sizes)
    final = _empty_state(model, options, sizes, x)
    tape = []
    if keep:
        steps, batch, n = sizes["T"], sizes["B"], sizes["N"]
        row = torch.ops.routing_ext.memory_row_size(model, options, [int(sizes[k]) for k in "IHONWVRS"], x.dtype)
        align = 64 // x.element_size()
        # In one dimension: one of T - 1 would be special to a compiler where T is 2.
        links = (steps - 1) // link_every if steps > 0 else 0
        link_batch = batch if is_linked(model, options) else 0
        tape = [
            x.new_empty((steps + 1, batch, row)),
            x.new_empty(links * link_batch * sizes["V"] * n * ((n + align - 1) // align * align)),
        ]
    outputs = sizes["O"] or sizes["H"] + sizes["R"] * sizes["W"]
    return x.new_empty((sizes["T"], sizes["B"], outputs)), final, tape


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
    reset_memory: Tensor | None,
    tape: Sequence[Tensor],
    given_sizes: Sequence[int],
    clip_value: float,
    link_every: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    wants_x, wants_weights, wants_state, wants_reset_memory = output_mask
    of_state = []
    if wants_state:
        of_state = _empty_state(model, options, _sizes(model, x, weights, options, given_sizes), x)
        if link is None and is_linked(model, options):
            of_state[_LINK] = x.new_empty(0)
    return (
        x.new_empty(x.shape if wants_x else (0,)),
        [x.new_empty(w.shape) for w in weights] if wants_weights else [],
        of_state,
        x.new_empty(reset_memory.shape if wants_reset_memory and reset_memory is not None else (0,)),
    )
