"""A controller with an external memory, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._states import State, initial_like


def memory_sequence(
    x: Tensor,
    weights: Sequence[Tensor],
    state: State,
    access: Callable[[Tensor, State], State],
    *,
    clip_value: float = 20.0,
    output: str = "sigmoid",
    initial: str = "reference",
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, State]:
    """``(y [T,B,O], state)``: at each step an LSTM, the memory's part `access`, and the output layer.

    ``hidden, cell = LSTM([x, read vectors], hidden, cell)``; hidden is clipped to +-clip_value, also for the next step; the
    interface is linear in it; ``y = sigmoid(clip(Linear([hidden, read vectors])))``.

    Args:
        x: ``[T,B,I]``.
        weights: ``w_ih [4H,I+R*W]``, ``w_hh [4H,H]``, ``b_ih [4H]``, ``b_hh [4H]`` of ``nn.LSTMCell``; weight and bias of each
            part of the interface, in its order; output ``weight [O,H+R*W]`` and ``bias [O]``.
        state: before the first step.
        access: from the interface ``[B,IF]`` and the state to the state with memory and read vectors of this step.
        clip_value: of hidden state and output.
        output: ``"linear"``: y is what the output layer gives, neither clipped nor between 0 and 1.
        initial: what resets lead to: ``"reference"``, the initial state of pytorch-dnc, or ``"zeros"``.
        lengths: int64 ``[B]``, from 0 to T: how many steps of each sample there are. At the others y is zero, and the state
            stays as it is.
        resets: bool ``[T,B]``: whether a sample begins anew at this step, with the initial state.
    """
    w_ih, w_hh, b_ih, b_hh, *interface, output_weight, output_bias = weights
    interface_weight, interface_bias = torch.cat(interface[::2]), torch.cat(interface[1::2])
    ys = [x.new_empty(0, x.size(1), output_bias.size(0))]
    for t, x_t in enumerate(x):
        there = x_t.new_ones(x_t.size(0), dtype=torch.bool) if lengths is None else t < lengths
        if resets is not None:
            state = _where(resets[t] & there, initial_like(state, initial), state)
        controller_input = torch.cat([x_t, state.read_vectors.flatten(1)], 1)
        hidden, cell = torch.lstm_cell(controller_input, (state.hidden, state.cell), w_ih, w_hh, b_ih, b_hh)
        hidden = hidden.clamp(-clip_value, clip_value)
        following = access(F.linear(hidden, interface_weight, interface_bias), state._replace(hidden=hidden, cell=cell))
        y = F.linear(torch.cat([hidden, following.read_vectors.flatten(1)], 1), output_weight, output_bias)
        if output == "sigmoid":
            y = y.clamp(-clip_value, clip_value).sigmoid()
        ys.append(torch.where(there.unsqueeze(1), y, 0).unsqueeze(0))
        state = _where(there, following, state)
    return torch.cat(ys), state


def _where(samples: Tensor, there: State, elsewhere: State) -> State:
    """`there` for these samples, ``[B]``."""
    pairs = zip(there, elsewhere, strict=True)
    return type(there)(*(torch.where(samples.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in pairs))
