"""Recurrent networks of torch as an opaque operator: compilers would take them apart into the steps of one length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

KINDS = ("lstm", "gru", "rnn_tanh", "rnn_relu")

_library = torch.library.Library("routing_ext", "FRAGMENT")
_library.define("recurrent(str kind, Tensor x, Tensor[] state, Tensor[] weights) -> Tensor[]")
_library.define("recurrent_backward(str kind, Tensor[] grads, Tensor x, Tensor[] state, Tensor[] weights) -> Tensor[]")


def recurrent(kind: str, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """One layer of a recurrent network over a sequence: ``(y [T,B,H], state)``, what ``torch.lstm`` and its like compute.

    The backward pass computes the forward pass again.

    Args:
        kind: ``"lstm"``, ``"gru"``, ``"rnn_tanh"`` or ``"rnn_relu"``.
        x: ``[T,B,I]``; T at least 1.
        state: hidden state ``[1,B,H]`` and, of an LSTM, the cell state.
        weights: of the input, of the hidden state, and perhaps two biases.

    Raises:
        ValueError: no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"recurrent: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    y, *after = torch.ops.routing_ext.recurrent(kind, x, state, weights)
    return y, after


def _forward(kind: str, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    function: Any = getattr(torch, kind)
    before = list(state) if kind == "lstm" else state[0]
    return list(function(x, before, list(weights), len(weights) == 4, 1, 0.0, True, False, False))


def _backward(
    kind: str, grads: Sequence[Tensor], x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[Tensor]:
    with torch.enable_grad():
        inputs = [t.detach().requires_grad_() for t in (x, *state, *weights)]
        states = 1 + len(state)
        results = _forward(kind, inputs[0], inputs[1:states], inputs[states:])
        return list(torch.autograd.grad(results, inputs, grads))


_library.impl("recurrent", _forward, "CompositeExplicitAutograd")
_library.impl("recurrent_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("routing_ext::recurrent", lib=_library)
def _(kind: str, x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    return [x.new_empty((*x.shape[:2], state[0].size(2))), *(t.new_empty(t.shape) for t in state)]


@torch.library.register_fake("routing_ext::recurrent_backward", lib=_library)
def _(kind: str, grads: Sequence[Tensor], x: Tensor, state: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in (x, *state, *weights)]


def _save(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.kind, x, state, weights = inputs
    ctx.states = len(state)
    ctx.save_for_backward(x, *state, *weights)


def _differentiate(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    x, *others = ctx.saved_tensors
    state, weights = others[: ctx.states], others[ctx.states :]
    of_x, *of_others = torch.ops.routing_ext.recurrent_backward(ctx.kind, grads, x, state, weights)
    return None, of_x, of_others[: ctx.states], of_others[ctx.states :]


torch.library.register_autograd("routing_ext::recurrent", _differentiate, setup_context=_save, lib=_library)
