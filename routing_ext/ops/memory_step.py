"""Memory networks step by step, as fast as a whole sequence: nothing of the state is copied from step to step.

``csrc/autograd/memory_run.cpp`` does it; these are its doors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._C import memory_step, memory_stepper
from .._memory_options import is_linked
from .._states import DncState, NtmState
from .memory_sequence import default_link_every

_classes = torch.classes.routing_ext
_FIRST_STEPS = 16  # of a tape whose length is not known


class Network(NamedTuple):
    """What a run is of.

    `sizes` has B, I, H, O, N, W, V, R and S (0 for a DNC).
    """

    model: str  # "dnc" or "ntm"
    options: list[float]  # as numbers
    sizes: dict[str, int]
    dtype: torch.dtype
    device: torch.device
    clip_value: float

    @property
    def kind(self) -> type[DncState] | type[NtmState]:
        return DncState if self.model == "dnc" else NtmState

    def link_bytes(self) -> int:
        size = self.sizes
        return size["B"] * size["V"] * size["N"] ** 2 * self.dtype.itemsize if is_linked(self.model, self.options) else 0


def pack_weights(network: Network, weights: Sequence[Tensor]) -> Any:
    """The parameters as the kernels want them. ``have_values_of(weights)`` tells whether these are the same ones, unchanged.

    Args:
        network: for which they are.
        weights: as for :func:`dnc_sequence` or :func:`ntm_sequence`.
    """
    sizes = [network.sizes[name] for name in "IHONWVRS"]
    return _classes.PackedWeights(network.model, network.options, sizes, network.clip_value, weights)


class MemoryRun:
    """A memory network taking one step after another.

    Args:
        network: of what model and sizes.
        packed: its parameters, by :func:`pack_weights`.
        state: before the first step; None: the initial one.
        expected_steps: memory for so many is taken at once; there may be more or fewer.

    Attributes:
        time: ``time()``, the number of steps taken.
    """

    def __init__(
        self,
        network: Network,
        packed: Any,
        state: DncState | NtmState | None = None,
        *,
        expected_steps: int | None = None,
    ) -> None:
        self.network = network
        steps = expected_steps or _FIRST_STEPS
        link_every = default_link_every(steps, network.link_bytes(), network.device)
        before = [] if state is None else list(state)
        self._run = _classes.MemoryRun(packed, before, network.sizes["B"], steps, link_every)
        self.time = self._run.time
        self._stepper = memory_stepper(self._run.address())

    def step(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor | None:
        """``[1,B,O]`` from ``[B,I]``; None if these weights are others than those that the run began with, or if autograd is
        in another mode."""
        results = memory_step(self._stepper, x, weights)
        y: Tensor | None = self._run.step(x, weights) if results is NotImplemented else results
        return y

    def state(self) -> DncState | NtmState:
        """After the last step: tensors of their own, through which gradients flow."""
        return self.network.kind(*self._run.state())
