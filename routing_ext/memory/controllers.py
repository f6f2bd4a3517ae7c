"""The controller: an LSTM cell that sees the input and what was read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .options import read_options
from .sequence_state import PartModule, SequenceState, StateTensor, check_shape


class Controller(PartModule):
    """What controllers share.

    Args:
        args: an object with the attributes below, or None.
        options: input_dim (I), read_vec_dim (R*W), hidden_dim (H), batch_size, clip_value, dtype.
    """

    _owned = ("hidden", "cell")

    hidden_vb = StateTensor("hidden")
    cell_vb = StateTensor("cell")

    def __init__(self, args: Any = None, **options: Any) -> None:
        super().__init__()
        read = read_options(
            type(self).__name__,
            args,
            options,
            ("input_dim", "read_vec_dim", "hidden_dim"),
            {"batch_size": None, "clip_value": 20.0, "dtype": None},
        )
        self.batch_size: int | None = read["batch_size"]
        self.input_dim: int = read["input_dim"]
        self.read_vec_dim: int = read["read_vec_dim"]
        self.hidden_dim: int = read["hidden_dim"]
        self.clip_value: float = read["clip_value"]
        self._sizes = {"H": self.hidden_dim}
        self._state = SequenceState()
        self._build()
        self._cast(read["dtype"])

    def _build(self) -> None:
        """Makes the parameters."""
        raise NotImplementedError

    @property
    def lstm_hidden_vb(self) -> tuple[Tensor, Tensor]:
        """``(hidden, cell)``, each ``[B,H]``; assignable."""
        return self.hidden_vb, self.cell_vb

    @lstm_hidden_vb.setter
    def lstm_hidden_vb(self, value: tuple[Tensor, Tensor]) -> None:
        self.hidden_vb, self.cell_vb = value


class LSTMController(Controller):
    """An LSTM cell whose hidden state is clipped; a drop-in for ``core.controllers.lstm_controller.LSTMController``.

    Args:
        args: an object with the attributes below, or None.
        options: input_dim (I), read_vec_dim (R*W), hidden_dim (H); batch_size, clip_value (20), dtype.
    """

    def _build(self) -> None:
        self.in_2_hid = nn.LSTMCell(self.input_dim + self.read_vec_dim, self.hidden_dim)

    def _weights(self) -> list[Tensor]:
        cell = self.in_2_hid
        return [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]

    def forward(self, input_vb: Tensor, read_vec_vb: Tensor) -> Tensor:
        """One step on its own: hidden ``[B,H]`` from the input ``[B,I]`` and the read vectors ``[B,R*W]`` or ``[B,R,W]``."""
        rows, read_vectors = input_vb.flatten(0, -2), read_vec_vb.flatten(1)
        check_shape(f"{type(self).__name__}: input_vb", rows, (-1, self.input_dim))
        check_shape(f"{type(self).__name__}: read_vec_vb", read_vectors, (len(rows), self.read_vec_dim))
        x = torch.cat([rows, read_vectors], 1)
        hidden, cell = self.in_2_hid(x, (self._field("hidden", len(rows)), self._field("cell", len(rows))))
        self.lstm_hidden_vb = hidden.clamp(-self.clip_value, self.clip_value), cell
        return self.lstm_hidden_vb[0]
