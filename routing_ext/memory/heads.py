"""The heads: linear maps from the controller's hidden state to the parts of the interface, and each head's step on its own.

A circuit or an accessor does not call them: it runs all heads in one operator, with their parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import (
    content_weights,
    dnc_allocation,
    dnc_temporal_link,
    dnc_usage,
    memory_read,
    memory_write,
    ntm_location,
)
from .options import OF_DNC, dnc_options, read_options
from .sequence_state import PartModule, SequenceState, StateTensor, check_shape
from .visual import Heatmap

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "key": torch.tanh,
    "beta": F.softplus,
    "alloc_gate": torch.sigmoid,
    "write_gate": torch.sigmoid,
    "free_gate": torch.sigmoid,
    "read_mode": lambda t: t.softmax(-1),
    "gate": torch.sigmoid,
    "shift": lambda t: t.softmax(-1),
    "gamma": lambda t: 1 + F.softplus(t),
    "erase": torch.sigmoid,
    "add": torch.tanh,
}


class Head(PartModule):
    """What heads share. One object has `num_heads` heads, whose parameters lie in common linear maps ``hid_2_*``.

    Args:
        args: an object with the attributes below, or None.
        options: num_heads, hidden_dim (H), mem_hei (N), mem_wid (W); batch_size, dtype, visualize, vis, refs; of static heads
            num_allowed_shifts (3); of dynamic read heads num_read_modes, twice the number of write heads plus 1; of dynamic
            write heads usage, allocation and temperature, see :class:`DncOptions`.
    """

    _letter: str  # of the number of heads, in the shapes of the state
    _title: str  # of the heat map

    def __init__(self, args: Any = None, **options: Any) -> None:
        super().__init__()
        name = type(self).__name__
        read = read_options(
            name,
            args,
            options,
            ("num_heads", "hidden_dim", "mem_hei", "mem_wid"),
            {
                "batch_size": None,
                "num_allowed_shifts": 3,
                "num_read_modes": 3,
                "dtype": None,
                **OF_DNC,
                **Heatmap.OPTIONS,
            },
        )
        self.batch_size: int | None = read["batch_size"]
        self.num_heads: int = read["num_heads"]
        self.hidden_dim: int = read["hidden_dim"]
        self.mem_hei: int = read["mem_hei"]
        self.mem_wid: int = read["mem_wid"]
        self.num_allowed_shifts: int = read["num_allowed_shifts"]
        self.num_read_modes: int = read["num_read_modes"]
        self.options = dnc_options(name, read)
        self.usage: str = self.options.usage
        self._heatmap = Heatmap(self._title, read)
        self._sizes = {self._letter: self.num_heads, "N": self.mem_hei}
        self._state = SequenceState()
        for part, width in self._widths().items():
            self.add_module(f"hid_2_{part}", nn.Linear(self.hidden_dim, self.num_heads * width))
        self._cast(read["dtype"])

    def _widths(self) -> dict[str, int]:
        """Of the parts of the interface, in its order, elements a head."""
        raise NotImplementedError

    def _linears(self) -> list[nn.Linear]:
        return [getattr(self, f"hid_2_{part}") for part in self._widths()]

    def _interface(self, hidden: Tensor) -> dict[str, Tensor]:
        """The parts of the interface behind their activations, ``[B,heads,width]``; ``[B,heads]`` if the width is always 1."""
        parts = zip(self._widths(), self._linears(), strict=True)
        values = {part: ACTIVATIONS[part](linear(hidden).unflatten(-1, (self.num_heads, -1))) for part, linear in parts}
        return {
            part: value.squeeze(-1) if part.endswith(("beta", "gate", "gamma")) else value for part, value in values.items()
        }

    def _check(self, hidden_vb: Tensor, **others: Tensor) -> None:
        """Raises unless these arguments are of the sizes of the heads."""
        name, n = type(self).__name__, self.mem_hei
        shapes = {"memory_vb": (n, self.mem_wid), "usage_vb": (n,), "link_vb": (self.num_read_modes // 2, n, n)}
        check_shape(f"{name}: hidden_vb", hidden_vb, (-1, self.hidden_dim))
        for argument, value in others.items():
            check_shape(f"{name}: {argument}", value, (hidden_vb.size(0), *shapes[argument]))

    def visual(self) -> None:
        """Draws the weights of the first sample, if `visualize`."""
        self._heatmap.draw(self._field(self._owned[0])[0].mT)


class _WriteHead(Head):
    wl_curr_vb = StateTensor("write_weights")
    wl_prev_vb = StateTensor("write_weights")

    _owned = ("write_weights",)
    _letter = "V"
    _title = "write_head"


class _ReadHead(Head):
    wl_curr_vb = StateTensor("read_weights")
    wl_prev_vb = StateTensor("read_weights")

    _owned = ("read_weights",)
    _letter = "R"
    _title = "read_head"


class DynamicHead(Head):
    """A head of the DNC: finds locations by content. See :class:`Head`."""

    def _widths(self) -> dict[str, int]:
        return {"key": self.mem_wid, "beta": 1}


class DynamicWriteHead(DynamicHead, _WriteHead):
    """Write heads of the DNC; a drop-in for ``core.heads.dynamic_write_head.DynamicWriteHead``. See :class:`Head`."""

    def _widths(self) -> dict[str, int]:
        return super()._widths() | {"alloc_gate": 1, "write_gate": 1, "erase": self.mem_wid, "add": self.mem_wid}

    def forward(self, hidden_vb: Tensor, memory_vb: Tensor, usage_vb: Tensor) -> Tensor:
        """One step on its own.

        Args:
            hidden_vb: ``[B,H]``.
            memory_vb: ``[B,N,W]``.
            usage_vb: ``[B,N]``, after this step's updates. With ``usage="reference"`` it grows in place by what is allocated.

        Returns:
            The memory ``[B,N,W]``.

        Raises:
            ValueError: wrong shape.
        """
        self._check(hidden_vb, memory_vb=memory_vb, usage_vb=usage_vb)
        x = self._interface(hidden_vb)
        is_carried = self.usage == "reference"
        gates = x["write_gate"] if is_carried else x["write_gate"] * x["alloc_gate"]
        allocation, usage = dnc_allocation(
            usage_vb.clone(), gates, mode=self.options.allocation, temperature=self.options.temperature
        )
        if is_carried:
            usage_vb.copy_(usage)
        by_content = content_weights(x["key"], x["beta"], memory_vb)
        weights = x["write_gate"].unsqueeze(-1) * by_content.lerp(allocation, x["alloc_gate"].unsqueeze(-1))
        self.wl_curr_vb = weights
        return memory_write(memory_vb, weights, x["erase"], x["add"])

    def _update_usage(self, prev_usage_vb: Tensor) -> Tensor:
        """Usage ``[B,N]`` after the last step's writes."""
        weights = self._field("write_weights", prev_usage_vb.size(0))
        nothing = torch.zeros_like(weights[:, :1])
        return dnc_usage(prev_usage_vb, weights, nothing[..., 0], nothing, detach_write_weights=self.usage == "paper")

    def _temporal_link(self, prev_link_vb: Tensor, prev_preced_vb: Tensor) -> tuple[Tensor, Tensor]:
        """Link ``[B,V,N,N]`` and precedence ``[B,V,N]`` after this step's writes."""
        weights = self._field("write_weights", prev_link_vb.size(0))
        return dnc_temporal_link(prev_link_vb, prev_preced_vb, weights, torch.zeros_like(weights[:, :1]))[:2]


class DynamicReadHead(DynamicHead, _ReadHead):
    """Read heads of the DNC; a drop-in for ``core.heads.dynamic_read_head.DynamicReadHead``. See :class:`Head`."""

    def _widths(self) -> dict[str, int]:
        return super()._widths() | {"free_gate": 1, "read_mode": self.num_read_modes}

    def forward(self, hidden_vb: Tensor, memory_vb: Tensor, link_vb: Tensor, num_write_heads: int | None = None) -> Tensor:
        """One step on its own.

        Args:
            hidden_vb: ``[B,H]``.
            memory_vb: ``[B,N,W]``.
            link_vb: ``[B,V,N,N]``; its diagonal, which is zero in every state, counts as zero.
            num_write_heads: V, which the link tells as well.

        Returns:
            The read vectors ``[B,R,W]``.

        Raises:
            ValueError: wrong shape.
        """
        self._check(hidden_vb, memory_vb=memory_vb, link_vb=link_vb)
        x = self._interface(hidden_vb)
        previous = self._field("read_weights", link_vb.size(0))
        unwritten = link_vb.new_zeros(link_vb.shape[:3])
        _, _, forward, backward = dnc_temporal_link(link_vb, unwritten, unwritten, previous)
        by_content = content_weights(x["key"], x["beta"], memory_vb).unsqueeze(1)
        reads = torch.cat([backward, forward, by_content], 1)  # [B,2V+1,R,N]
        weights = torch.einsum("brm,bmrn->brn", x["read_mode"], reads)
        self.wl_curr_vb = weights
        return memory_read(memory_vb, weights)

    def _update_usage(self, hidden_vb: Tensor, prev_usage_vb: Tensor) -> Tensor:
        """Usage ``[B,N]`` after the last step's reads."""
        weights = self._field("read_weights", prev_usage_vb.size(0))
        nothing = torch.zeros_like(weights[:, :1])
        return dnc_usage(prev_usage_vb, nothing, self._interface(hidden_vb)["free_gate"], weights)


class StaticHead(Head):
    """A head of the NTM: finds locations by content and by their distance from the last ones. See :class:`Head`."""

    def _widths(self) -> dict[str, int]:
        return {"key": self.mem_wid, "beta": 1, "gate": 1, "shift": self.num_allowed_shifts, "gamma": 1}

    def _address(self, hidden: Tensor, memory: Tensor) -> tuple[Mapping[str, Tensor], Tensor]:
        """The interface, and the weights ``[B,heads,N]``, which become the state's."""
        self._check(hidden, memory_vb=memory)
        x, previous = self._interface(hidden), self._field(self._owned[0], memory.size(0))
        content = content_weights(x["key"], x["beta"], memory)
        weights = ntm_location(content, x["gate"], x["shift"], x["gamma"], previous)
        self._state.update({self._owned[0]: weights})
        return x, weights


class StaticWriteHead(StaticHead, _WriteHead):
    """Write heads of the NTM; a drop-in for ``core.heads.static_write_head.StaticWriteHead``. See :class:`Head`."""

    def _widths(self) -> dict[str, int]:
        return super()._widths() | {"erase": self.mem_wid, "add": self.mem_wid}

    def forward(self, hidden_vb: Tensor, memory_vb: Tensor) -> Tensor:
        """One step on its own: the memory ``[B,N,W]`` after writing to it, from the hidden state ``[B,H]``."""
        x, weights = self._address(hidden_vb, memory_vb)
        return memory_write(memory_vb, weights, x["erase"], x["add"])


class StaticReadHead(StaticHead, _ReadHead):
    """Read heads of the NTM; a drop-in for ``core.heads.static_read_head.StaticReadHead``. See :class:`Head`."""

    def forward(self, hidden_vb: Tensor, memory_vb: Tensor) -> Tensor:
        """One step on its own: the read vectors ``[B,R,W]`` from the hidden state ``[B,H]`` and the memory ``[B,N,W]``."""
        _, weights = self._address(hidden_vb, memory_vb)
        return memory_read(memory_vb, weights)
