"""A controller with an external memory, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._states import State, choose, initial_like


def memory_sequence(
    x: Tensor,
    weights: Sequence[Tensor],
    state: State,
    access: Callable[[Tensor, State], State],
    num_parts: int,
    *,
    clip_value: float = 20.0,
    output: str = "sigmoid",
    norm: Sequence[Tensor] | None = None,
    norm_eps: float = 1e-5,
    **masks: Any,
) -> tuple[Tensor, State]:
    """``(y [T,B,O], state)``: at each step an LSTM, the memory's part `access`, and the output layer.

    ``hidden, cell = LSTM([x, read vectors], hidden, cell)``; hidden is clipped to +-clip_value, also for the next step; the
    interface is linear in it, and with `norm` normalised; ``y = sigmoid(clip(Linear([hidden, read vectors])))``.

    Args:
        x: ``[T,B,I]``.
        weights: ``w_ih [4H,I+R*W]``, ``w_hh [4H,H]``, ``b_ih [4H]``, ``b_hh [4H]`` of ``nn.LSTMCell``; weight and bias of each
            part of the interface, in its order; output ``weight [O,H+R*W]`` and ``bias [O]``. Without the last two,
            ``y [T,B,H+R*W]`` is hidden state and read vectors.
        state: before the first step.
        access: from the interface ``[B,IF]`` and the state to the state with memory and read vectors of this step.
        num_parts: of the interface.
        clip_value: of hidden state and output.
        output: ``"linear"``: y is what the output layer gives, neither clipped nor between 0 and 1.
        norm: weight and bias ``[IF]`` of a layer normalisation of the interface, all its parts together.
        norm_eps: of that.
        masks: of :func:`unrolled`.
    """
    w_ih, w_hh, b_ih, b_hh, *rest = weights
    interface, output_layer = rest[: 2 * num_parts], rest[2 * num_parts :]
    interface_weight, interface_bias = torch.cat(interface[::2]), torch.cat(interface[1::2])

    def step(x_t: Tensor, state: State) -> tuple[Tensor, State]:
        controller_input = torch.cat([x_t, state.read_vectors.flatten(1)], 1)
        hidden, cell = torch.lstm_cell(controller_input, (state.hidden, state.cell), w_ih, w_hh, b_ih, b_hh)
        hidden = hidden.clamp(-clip_value, clip_value)
        signals = F.linear(hidden, interface_weight, interface_bias)
        if norm is not None:
            weight, bias = norm
            signals = F.layer_norm(signals, list(signals.shape[1:]), weight, bias, norm_eps)
        state = access(signals, state._replace(hidden=hidden, cell=cell))
        y = torch.cat([hidden, state.read_vectors.flatten(1)], 1)
        if output_layer:
            y = F.linear(y, *output_layer)
            if output == "sigmoid":
                y = y.clamp(-clip_value, clip_value).sigmoid()
        return y, state

    return unrolled(x, state, step, **masks)


def unrolled(
    x: Tensor,
    state: State,
    step: Callable[[Tensor, State], tuple[Tensor, State]],
    *,
    initial: str = "reference",
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reset_memory: Tensor | None = None,
) -> tuple[Tensor, State]:
    """``(y [T,B,...], state)``: one step after another, ``y_t, state = step(x_t, state)``.

    Args:
        x: ``[T,B,...]``.
        state: before the first step.
        step: of all samples.
        initial: what resets lead to: ``"reference"``, the initial state of pytorch-dnc, or ``"zeros"``.
        lengths: int64 ``[B]``, from 0 to T: how many steps of each sample there are. At the others y is zero, and the state
            stays as it is.
        resets: bool ``[T,B]``: whether a sample begins anew at this step, with the initial state.
        reset_memory: ``[B,N,W]``, the memory with which it does.
    """
    ys = []
    for t, x_t in enumerate(x):
        there = x_t.new_ones(x_t.size(0), dtype=torch.bool) if lengths is None else t < lengths
        if resets is not None:
            fresh = initial_like(state, initial)
            fresh = fresh if reset_memory is None else fresh._replace(memory=reset_memory)
            state = choose(resets[t] & there, fresh, state)
        y, following = step(x_t, state)
        ys.append(torch.where(there.unsqueeze(1), y, 0))
        state = choose(there, following, state)
    return torch.stack(ys) if ys else step(x.new_zeros(x.shape[1:]), state)[0].unsqueeze(0)[:0], state
