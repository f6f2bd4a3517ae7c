"""The memory matrix, as an object."""

from __future__ import annotations

from typing import Any

import torch

from .options import read_options
from .sequence_state import Part, SequenceState, StateTensor
from .visual import Heatmap


class ExternalMemory(Part):
    """N locations of W elements, 1e-6 each at the beginning.

    It has no parameters: within an accessor its dtype and device are the accessor's, else `dtype`, or torch's default.

    Args:
        args: an object with the attributes below, or None.
        options: mem_hei (N), mem_wid (W), batch_size, dtype, visualize, vis, refs.
    """

    memory_vb = StateTensor("memory")

    _owned = ("memory",)

    def __init__(self, args: Any = None, **options: Any) -> None:
        read = read_options(
            type(self).__name__, args, options, ("mem_hei", "mem_wid"), {"batch_size": None, "dtype": None, **Heatmap.OPTIONS}
        )
        self.batch_size: int | None = read["batch_size"]
        self.mem_hei: int = read["mem_hei"]
        self.mem_wid: int = read["mem_wid"]
        self._sizes = {"N": self.mem_hei, "W": self.mem_wid}
        self._state = SequenceState()
        self._like = torch.empty(0) if read["dtype"] is None else torch.empty(0).type(read["dtype"])
        self._heatmap = Heatmap("memory", read)

    def _place(self) -> tuple[torch.dtype | None, torch.device | None]:
        return self._like.dtype, self._like.device

    def visual(self) -> None:
        """Draws the memory of the first sample, if `visualize`."""
        self._heatmap.draw(self.memory_vb[0])


class External2DMemory(ExternalMemory):
    """The memory of both accessors; a drop-in for ``core.memory.External2DMemory``. See :class:`ExternalMemory`."""
