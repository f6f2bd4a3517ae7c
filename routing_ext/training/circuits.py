"""The networks that sequence tasks are trained on, by their names."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import Tensor, nn

from ..memory import DNCCircuit, NTMCircuit

LstmState = tuple[Tensor, Tensor]


class LSTMNetwork(nn.Module):
    """An LSTM and a linear layer: the network without a memory, to compare with.

    Args:
        input_dim: I.
        output_dim: O.
        hidden_dim: H.
        clip_value: output, before its logistic function, is clipped to +-clip_value, as in :class:`DNCCircuit`.
    """

    def __init__(self, input_dim: int, output_dim: int, hidden_dim: int, clip_value: float = 20.0) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_dim, hidden_dim)
        self.hid_to_out = nn.Linear(hidden_dim, output_dim)
        self.clip_value = clip_value

    def unroll(self, x: Tensor, state: LstmState | None = None) -> tuple[Tensor, LstmState]:
        """``(y [T,B,O], state)``, y being probabilities.

        Args:
            x: ``[T,B,I]``.
            state: before the first step, ``(h [1,B,H], c [1,B,H])``; zeros by default.
        """
        hidden, state = self.lstm(x, state)
        logits: Tensor = self.hid_to_out(hidden)
        return logits.clamp(-self.clip_value, self.clip_value).sigmoid(), state


@dataclasses.dataclass(frozen=True)
class CircuitConfig:
    """The network of a sequence task.

    Attributes:
        circuit: ntm, dnc, or lstm, which has no memory.
        hidden_dim: H, of the controller, or of the LSTM.
        num_write_heads: V.
        num_read_heads: R.
        mem_hei: N, locations of the memory.
        mem_wid: W, elements of a location.
        num_allowed_shifts: S, of an NTM.
        clip_value: hidden state and output, before its logistic function, are clipped to +- this.
        usage: of a DNC: reference (as pytorch-dnc), paper (Graves et al., 2016) or package (as the package dnc).
        allocation: of a DNC: sort (as published) or softmax (Ben-Ari and Bekker, 2017).
        temperature: of that softmax.
        erase_freed: of a DNC: what the free gates free is erased, too (de-allocation; Csordas and Schmidhuber, 2019).

    Raises:
        ValueError: a number out of range.
    """

    circuit: Literal["ntm", "dnc", "lstm"] = "dnc"
    hidden_dim: int = 64
    num_write_heads: int = 1
    num_read_heads: int = 4
    mem_hei: int = 16
    mem_wid: int = 16
    num_allowed_shifts: int = 3
    clip_value: float = 20.0
    usage: Literal["reference", "paper", "package"] = "reference"
    allocation: Literal["sort", "softmax"] = "sort"
    temperature: float = 0.5
    erase_freed: bool = False

    def __post_init__(self) -> None:
        for name in ("hidden_dim", "num_write_heads", "num_read_heads", "mem_hei", "mem_wid", "num_allowed_shifts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("clip_value", "temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    def network(self, input_dim: int, output_dim: int) -> DNCCircuit | NTMCircuit | LSTMNetwork:
        """The network, with random weights.

        Args:
            input_dim: I.
            output_dim: O.
        """
        if self.circuit == "lstm":
            return LSTMNetwork(input_dim, output_dim, self.hidden_dim, self.clip_value)
        options = {name: value for name, value in dataclasses.asdict(self).items() if name != "circuit"}
        made = DNCCircuit if self.circuit == "dnc" else NTMCircuit
        return made(input_dim=input_dim, output_dim=output_dim, **options)
