"""A controller with an external memory, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .._states import State


def memory_sequence(
    x: Tensor, weights: Sequence[Tensor], state: State, clip_value: float, access: Callable[[Tensor, State], State]
) -> tuple[Tensor, State]:
    """``(y [T,B,O], state)``: at each step an LSTM, the memory's part `access`, and the output layer.

    ``hidden, cell = LSTM([x, read vectors], hidden, cell)``; hidden is clipped to +-clip_value, also for the next step; the
    interface is linear in it; ``y = sigmoid(clip(Linear([hidden, read vectors])))``.

    Args:
        x: ``[T,B,I]``.
        weights: ``w_ih [4H,I+R*W]``, ``w_hh [4H,H]``, ``b_ih [4H]``, ``b_hh [4H]`` of ``nn.LSTMCell``; weight and bias of each
            part of the interface, in its order; output ``weight [O,H+R*W]`` and ``bias [O]``.
        state: before the first step.
        clip_value: of hidden state and output.
        access: from the interface ``[B,IF]`` and the state to the state with memory and read vectors of this step.
    """
    w_ih, w_hh, b_ih, b_hh, *interface, output_weight, output_bias = weights
    interface_weight, interface_bias = torch.cat(interface[::2]), torch.cat(interface[1::2])
    ys = [x.new_empty(0, x.size(1), output_bias.size(0))]
    for x_t in x:
        controller_input = torch.cat([x_t, state.read_vectors.flatten(1)], 1)
        hidden, cell = torch.lstm_cell(controller_input, (state.hidden, state.cell), w_ih, w_hh, b_ih, b_hh)
        hidden = hidden.clamp(-clip_value, clip_value)
        state = access(F.linear(hidden, interface_weight, interface_bias), state._replace(hidden=hidden, cell=cell))
        output = F.linear(torch.cat([hidden, state.read_vectors.flatten(1)], 1), output_weight, output_bias)
        ys.append(output.clamp(-clip_value, clip_value).sigmoid().unsqueeze(0))
    return torch.cat(ys), state
