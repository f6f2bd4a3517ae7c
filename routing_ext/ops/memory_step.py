"""Memory networks step by step, as fast as a whole sequence: nothing of the state is copied from step to step.

All steps of a run work on one tape. What autograd sees of the state is a *token*, a tensor without content that each step
takes and returns: it orders the backward passes of the steps, which hand the gradient of the state on in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._states import DncState, NtmState
from .memory_sequence import is_linked

_op = torch.ops.routing_ext
_pooled_empty = _op.pooled_empty.default
_step_op = _op.memory_step.default
_backward_op = _op.memory_step_backward.default
_FIRST_STEPS = 16  # of a tape whose length is not known
_MOST_STEPS = 256  # of one piece of a tape
_FEW_LINK_BYTES = 1 << 22  # so much is kept rather than computed again
_LINK = DncState._fields.index("link")


class Network(NamedTuple):
    """What a run is of.

    `sizes` has B, I, H, O, N, W, V, R and S (0 for a DNC).
    """

    model: str  # "dnc" or "ntm"
    options: list[float]  # as numbers
    sizes: dict[str, int]
    clip_value: float

    @property
    def kind(self) -> type[DncState] | type[NtmState]:
        return DncState if self.model == "dnc" else NtmState

    @property
    def is_linked(self) -> bool:
        return is_linked(self.model, self.options)

    def numbers(self) -> list[int]:
        return [self.sizes[name] for name in "IHONWVRS"]


class PackedWeights:
    """The parameters as the kernels want them, for as long as they do not change.

    Args:
        network: for which they are.
        weights: as for :func:`dnc_sequence` or :func:`ntm_sequence`.
    """

    def __init__(self, network: Network, weights: Sequence[Tensor]) -> None:
        self.weights = list(weights)
        self._ids = list(map(id, weights))
        self._of = network
        self._versions = [w._version for w in weights]
        self._places = [w.data_ptr() for w in weights]
        self._inputs = weights[0].detach().new_empty((0, 0, network.sizes["I"]))
        with torch.no_grad():
            self.forward: Tensor = self._pack(backward=False)
        self._backward: Tensor | None = None

    def _pack(self, *, backward: bool) -> Tensor:
        of = self._of
        packed: Tensor = _op.memory_pack(of.model, of.options, self._inputs, self.weights, of.sizes["N"], backward)
        return packed

    def are_of(self, weights: Sequence[Tensor]) -> bool:
        return (
            list(map(id, weights)) == self._ids
            and [w._version for w in weights] == self._versions
            and [w.data_ptr() for w in weights] == self._places
        )

    def backward(self) -> Tensor:
        if self._backward is None:
            for i, (w, version) in enumerate(zip(self.weights, self._versions, strict=True)):
                if w._version != version:
                    raise RuntimeError(
                        f"one of the variables needed for gradient computation has been modified by an inplace operation: "
                        f"parameter {i} of the network, {list(w.shape)}, is at version {w._version}, expected {version}"
                    )
            self._backward = self._pack(backward=True)
        return self._backward


class _Piece:
    """Consecutive steps on one tensor: row 0 is the state before the first of them."""

    def __init__(self, first: int, steps: int, tape: Tensor, inputs: Tensor) -> None:
        self.first, self.steps = first, steps
        self.tape = tape  # [steps + 1, B, row]
        self.inputs = inputs  # [steps, B, I]


class _Pass:
    """One backward pass: the gradient of the state, handed on from step to step."""

    def __init__(self, task: int) -> None:
        self.task = task
        self.time: int | None = None  # the gradient below is that of the state at this time
        self.state: Tensor | None = None  # [B, state]
        self.link: Tensor | None = None  # [B,V,N,n]
        self.grads: dict[int, Tensor] = {}  # of each piece, by its first step: [steps, B, gradients]
        self.last = 0  # the steps before this time have run
        self.read: dict[int, list[Sequence[Tensor | None]]] = {}  # gradients of states that were looked at, by their time
        self.links: dict[int, Tensor] = {}  # that were computed again, by their time


class _Tape:
    """The steps of a run, and their backward passes. Refers to no tensor with a history but the parameters."""

    def __init__(self, network: Network, packed: PackedWeights, keep: bool, steps: int) -> None:
        self.network, self.keep, self.packed = network, keep, packed
        self.weights = [w.detach() for w in packed.weights]
        like = self.weights[0]
        batch = self.batch = network.sizes["B"]
        self.model = network.model, network.options
        self.options = *self.model, network.numbers(), network.clip_value
        self.row, self.state_size, self.grad_size = _op.memory_step_layout(*self.options[:3], like.dtype)
        self.pieces: list[_Piece] = []
        self.links: dict[int, Tensor] = {}  # padded; the kept ones, by their time
        self.link: Tensor | None = None  # padded; of the last state; none: zero, with no precedence
        n, align = network.sizes["N"], 64 // like.element_size()
        self.link_shape = (batch, network.sizes["V"], n, (n + align - 1) // align * align)
        self.link_every = 1
        while self.link_every**2 < steps and steps * self._link_bytes() > _FEW_LINK_BYTES:
            self.link_every += 1
        self._add_piece(0, steps if keep else 1)
        self.current: _Pass | None = None

    def _link_bytes(self) -> int:
        b, v, n, padded = self.link_shape
        return b * v * n * padded * self.weights[0].element_size() if self.network.is_linked else 0

    def _empty(self, *shape: int) -> Tensor:
        return _pooled_empty(shape, self.weights[0])  # type: ignore[no-any-return]

    def _add_piece(self, first: int, steps: int) -> None:
        inputs = self._empty(steps, self.batch, self.network.sizes["I"])
        self.pieces.append(_Piece(first, steps, self._empty(steps + 1, self.batch, self.row), inputs))

    def _at(self, step: int) -> _Piece:
        return next(piece for piece in reversed(self.pieces) if piece.first <= step)

    def import_state(self, state: Sequence[Tensor | None]) -> None:
        """As the first state; none for the initial one."""
        piece = self.pieces[0]
        _op.memory_step_import(*self.model, piece.inputs, self.weights, self.network.sizes["N"], state, False, piece.tape[0])
        link = state[_LINK] if state and self.network.is_linked else None
        if link is not None:
            self.link = F.pad(link.detach(), (0, self.link_shape[-1] - link.size(-1))).contiguous()
            self.links[0] = self.link

    def export_state(self, time: int) -> list[Tensor]:
        row = self._row(time)
        exported: list[Tensor] = _op.memory_step_export(
            *self.model, self.pieces[0].inputs, self.weights, self.network.sizes["N"], row
        )
        if self.network.is_linked:
            n = self.network.sizes["N"]
            exported[_LINK] = row.new_zeros(self.link_shape[:3] + (n,)) if self.link is None else self.link[..., :n].clone()
        return exported

    def _row(self, time: int) -> Tensor:
        if not self.keep:
            return self.pieces[0].tape[time % 2]
        piece = self._at(max(time - 1, 0))
        return piece.tape[time - piece.first]

    def forward(self, x: Tensor, time: int) -> Tensor:
        """The step from `time` to `time + 1`."""
        piece = self.pieces[-1]
        if not self.keep:
            before, after = time % 2, 1 - time % 2
        else:
            if time - piece.first == piece.steps:
                self._add_piece(time, min(2 * piece.steps, _MOST_STEPS))
                state = slice(0, self.state_size)
                self.pieces[-1].tape[0, :, state] = piece.tape[-1, :, state]
                piece = self.pieces[-1]
            before, after = time - piece.first, time - piece.first + 1
        previous, following = self.link, None
        if self.network.is_linked:
            kept = self.keep and (time + 1) % self.link_every == 0
            if kept:
                following = self.links[time + 1] = self._empty(*self.link_shape)
            elif previous is None or (self.keep and time % self.link_every == 0):
                following = self._empty(*self.link_shape)
            else:
                following = previous
            self.link = following
        y: Tensor = _step_op(
            *self.options, self.packed.forward, x, piece.tape, piece.inputs, previous, following, before, after
        )  # fmt: skip
        return y

    # ---- backward -----------------------------------------------------------------------------------------------------------

    def _pass(self) -> _Pass:
        task: int = torch._C._current_graph_task_id()
        if self.current is None or self.current.task != task:
            self.current = _Pass(task)
        return self.current

    def read_backward(self, time: int, grads: Sequence[Tensor | None]) -> None:
        self._pass().read.setdefault(time, []).append(grads)

    def _state_gradient(self, p: _Pass, time: int) -> None:
        """Makes the gradient in `p` that of the state at `time`, of which all that follows has been gone through."""
        if p.state is None:
            p.state = self._empty(self.batch, self.state_size)
            p.link = self._empty(*self.link_shape) if self.network.is_linked else None
        if p.time != time:
            p.state.zero_()
            if p.link is not None:
                p.link.zero_()
        p.time = time
        for grads in p.read.pop(time, ()):
            rows = torch.zeros_like(p.state)
            _op.memory_step_import(
                *self.model, self.pieces[0].inputs, self.weights, self.network.sizes["N"], grads, True, rows
            )
            p.state += rows
            of_link = grads[_LINK] if p.link is not None else None
            if of_link is not None and p.link is not None:
                p.link[..., : of_link.size(-1)] += of_link

    def _link_at(self, p: _Pass, time: int) -> Tensor | None:
        kept = time // self.link_every * self.link_every
        link = self.links.get(kept)
        if time == kept or time in p.links:
            return link if time == kept else p.links[time]
        p.links.clear()
        for step in range(kept, time):
            piece, following = self._at(step), self._empty(*self.link_shape)
            _op.memory_step_relink(*self.options[:3], piece.tape, link, following, step - piece.first)
            link = p.links[step + 1] = following
        return link

    def backward(self, time: int, grad_y: Tensor | None, wants_x: bool) -> Tensor | None:
        """Of the step from `time` to `time + 1`."""
        packed = self.packed.backward()
        p, piece = self._pass(), self._at(time)
        self._state_gradient(p, time + 1)
        assert p.state is not None
        if piece.first not in p.grads:
            p.grads[piece.first] = self._empty(piece.steps, self.batch, self.grad_size)
        previous = self._link_at(p, time) if self.network.is_linked else None
        grad_x: Tensor = _backward_op(
            *self.options, packed, grad_y, piece.tape, previous, time - piece.first, p.state, p.link,
            p.grads[piece.first], wants_x,
        )  # fmt: skip
        p.time, p.last = time, max(p.last, time + 1)
        return grad_x if wants_x else None

    def finish(self, wants_weights: bool, wants_state: bool) -> tuple[list[Tensor | None], list[Tensor | None]]:
        """The gradients of the weights and of the first state."""
        p = self._pass()
        weights: list[Tensor | None] = [None] * len(self.weights)
        for first, grads in p.grads.items() if wants_weights else ():
            piece = self._at(first)
            steps = min(p.last - first, piece.steps)
            more = _op.memory_step_weight_gradients(
                *self.model, self.weights, self.network.sizes["N"], piece.inputs[:steps], piece.tape[: steps + 1],
                grads[:steps],
            )  # fmt: skip
            weights = [m if w is None else w.add_(m) for w, m in zip(weights, more, strict=True)]
        state: list[Tensor | None] = []
        if wants_state:
            self._state_gradient(p, 0)
            assert p.state is not None
            state = list(
                _op.memory_step_export(*self.model, self.pieces[0].inputs, self.weights, self.network.sizes["N"], p.state)
            )
            if p.link is not None:
                state[_LINK] = p.link[..., : self.network.sizes["N"]].clone()
        self.current = None
        return weights, state


def _refuse_second_derivative() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError("memory_step: has no second derivative, got create_graph=True")


class _Begin(torch.autograd.Function):
    """The first token. Its backward pass comes last, and gives the gradients of the weights and of the first state."""

    @staticmethod
    def forward(ctx: Any, tape: _Tape, num_states: int, *tensors: Tensor) -> Tensor:
        ctx.tape, ctx.num_states = tape, num_states
        needs: tuple[bool, ...] = ctx.needs_input_grad[2:]
        ctx.wants_state, ctx.wants_weights = any(needs[:num_states]), any(needs[num_states:])
        ctx.save_for_backward(*tensors[num_states:])
        ctx.set_materialize_grads(False)
        return tensors[-1].new_empty(())

    @staticmethod
    def backward(ctx: Any, _: Tensor | None) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        _saved = ctx.saved_tensors  # raises if a parameter has changed
        weights, state = ctx.tape.finish(ctx.wants_weights, ctx.wants_state)
        return None, None, *(state or [None] * ctx.num_states), *weights


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, token: Tensor, tape: _Tape, time: int) -> tuple[Tensor, Tensor]:
        ctx.tape, ctx.time = tape, time
        ctx.set_materialize_grads(False)
        return tape.forward(x, time), token.new_empty(())

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        _refuse_second_derivative()
        return ctx.tape.backward(ctx.time, grad_y, ctx.needs_input_grad[0]), None, None, None


class _Read(torch.autograd.Function):
    """The state at a time, for who looks at it."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, tape: _Tape, time: int) -> tuple[Tensor, ...]:
        ctx.tape, ctx.time = tape, time
        ctx.set_materialize_grads(False)
        return tuple(tape.export_state(time))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, None, None]:
        _refuse_second_derivative()
        ctx.tape.read_backward(ctx.time, grads)
        return None, None, None


class MemoryRun:
    """A memory network taking one step after another.

    Args:
        network: of what model and sizes.
        packed: its parameters.
        state: before the first step; None: the initial one.
        expected_steps: memory for so many is taken at once; there may be more or fewer.
    """

    def __init__(
        self,
        network: Network,
        packed: PackedWeights,
        state: DncState | NtmState | None = None,
        *,
        expected_steps: int | None = None,
    ) -> None:
        self.network, self.packed = network, packed
        self.time = 0
        states: tuple[Tensor, ...] = () if state is None else tuple(state)
        self._keep = torch.is_grad_enabled()
        self._tape = _Tape(network, packed, self._keep, min(expected_steps or _FIRST_STEPS, _MOST_STEPS))
        self._tape.import_state([t.detach() for t in states])
        self._token = packed.forward
        if self._keep:
            self._token = _Begin.apply(self._tape, len(states), *states, *packed.weights)  # type: ignore[no-untyped-call]

    def goes_on(self, weights: Sequence[Tensor]) -> bool:
        """Whether a further step may be taken with these weights, and in this mode of autograd."""
        return self._keep == torch.is_grad_enabled() and self.packed.are_of(weights)

    def step(self, x: Tensor) -> Tensor:
        """``[1,B,O]`` from ``[B,I]``."""
        x = x.contiguous()
        if self._keep:
            y, self._token = _Step.apply(x, self._token, self._tape, self.time)  # type: ignore[no-untyped-call]
        else:
            y = self._tape.forward(x, self.time)
        self.time += 1
        return y  # type: ignore[no-any-return]

    def state(self) -> DncState | NtmState:
        """After the last step: tensors of their own, through which gradients flow."""
        if self._keep:
            fields = _Read.apply(self._token, self._tape, self.time)  # type: ignore[no-untyped-call]
        else:
            fields = self._tape.export_state(self.time)
        return self.network.kind(*fields)
