"""The accessors: write heads, read heads and the memory between them, one step at a time."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._states import DncState, NtmState
from ..ops import dnc_access, ntm_access
from .external_memory import External2DMemory
from .heads import DynamicReadHead, DynamicWriteHead, Head, StaticReadHead, StaticWriteHead
from .options import OF_DNC, OF_STEP, dnc_options, read_options
from .sequence_state import PartModule, SequenceState, StateTensor, check_shape


class Accessor(PartModule):
    """What accessors share.

    Attributes:
        write_heads, read_heads: the heads.
        memory: the memory, whose matrix is ``memory.memory_vb``.

    Args:
        args: an object with the attributes below and, optionally, write_head_params, read_head_params and memory_params with
            more attributes of the parts; or None.
        options: hidden_dim (H), num_write_heads (V), num_read_heads (R), mem_hei (N), mem_wid (W); batch_size, dtype,
            num_allowed_shifts, usage, allocation, temperature, erase_freed.
    """

    _WriteHead: ClassVar[type[Head]]
    _ReadHead: ClassVar[type[Head]]

    def __init__(self, args: Any = None, **options: Any) -> None:
        super().__init__()
        read = read_options(
            type(self).__name__,
            args,
            options,
            ("hidden_dim", "num_write_heads", "num_read_heads", "mem_hei", "mem_wid"),
            {"batch_size": None, "num_allowed_shifts": None, "dtype": None, **OF_STEP},
        )
        self.batch_size: int | None = read["batch_size"]
        self.hidden_dim: int = read["hidden_dim"]
        self.num_write_heads: int = read["num_write_heads"]
        self.num_read_heads: int = read["num_read_heads"]
        self.mem_hei: int = read["mem_hei"]
        self.mem_wid: int = read["mem_wid"]
        self.options = dnc_options(type(self).__name__, read)
        self.usage: str = self.options.usage
        self._sizes = {
            "H": self.hidden_dim,
            "V": self.num_write_heads,
            "R": self.num_read_heads,
            "N": self.mem_hei,
            "W": self.mem_wid,
        }
        common = {name: read[name] for name in ("batch_size", "mem_hei", "mem_wid", "dtype")}
        of_heads = {**common, **{name: read[name] for name in ("hidden_dim", "num_allowed_shifts", *OF_DNC)}}
        self.write_heads = self._WriteHead(
            getattr(args, "write_head_params", None), num_heads=self.num_write_heads, **of_heads
        )
        self.read_heads = self._ReadHead(
            getattr(args, "read_head_params", None),
            num_heads=self.num_read_heads,
            num_read_modes=2 * self.num_write_heads + 1,
            **of_heads,
        )
        self.memory = External2DMemory(getattr(args, "memory_params", None), **common)
        self._share(SequenceState())

    def _share(self, state: SequenceState) -> None:
        """Makes this the state of all parts."""
        self._state = self.write_heads._state = self.read_heads._state = self.memory._state = state

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.memory._like = fn(self.memory._like)
        return super()._apply(fn, recurse)

    def _linears(self) -> list[nn.Linear]:
        """The linear maps to the interface, in its order."""
        return self.write_heads._linears() + self.read_heads._linears()

    def _access(self, interface: Tensor, batch: int) -> DncState | NtmState:
        raise NotImplementedError

    def forward(self, hidden_vb: Tensor) -> Tensor:
        """One step on its own: the read vectors ``[B,R,W]`` from the controller's hidden state ``[B,H]``."""
        check_shape(f"{type(self).__name__}: hidden_vb", hidden_vb, (-1, self.hidden_dim))
        linears = self._linears()
        weight, bias = torch.cat([x.weight for x in linears]), torch.cat([x.bias for x in linears])
        state = self._access(F.linear(hidden_vb, weight, bias), hidden_vb.size(0))
        self._state.update({field: getattr(state, field) for field in self._owned})
        return state.read_vectors

    def visual(self) -> None:
        """Draws weights and memory of the first sample, if they have `visualize`."""
        self.write_heads.visual()
        self.read_heads.visual()
        self.memory.visual()


class DynamicAccessor(Accessor):
    """The memory of the DNC; a drop-in for ``core.accessors.dynamic_accessor.DynamicAccessor``. See :class:`Accessor`."""

    usage_vb = StateTensor("usage")
    link_vb = StateTensor("link")
    preced_vb = StateTensor("precedence")

    _owned = ("memory", "usage", "precedence", "link", "write_weights", "read_weights")
    _WriteHead = DynamicWriteHead
    _ReadHead = DynamicReadHead

    def _access(self, interface: Tensor, batch: int) -> DncState:
        return dnc_access(interface, self._current(DncState, batch), **self.options._asdict())


class StaticAccessor(Accessor):
    """The memory of the NTM; a drop-in for ``core.accessors.static_accessor.StaticAccessor``. See :class:`Accessor`."""

    _owned = ("memory", "write_weights", "read_weights")
    _WriteHead = StaticWriteHead
    _ReadHead = StaticReadHead

    def __init__(self, args: Any = None, **options: Any) -> None:
        super().__init__(args, **options)
        shifts = self.write_heads.num_allowed_shifts, self.read_heads.num_allowed_shifts
        if shifts[0] != shifts[1]:
            raise ValueError(
                f"StaticAccessor: num_allowed_shifts must be the same for all heads, got {shifts[0]} and {shifts[1]}"
            )

    def _access(self, interface: Tensor, batch: int) -> NtmState:
        return ntm_access(interface, self._current(NtmState, batch))
