"""The states of memory networks: what one time step leaves to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

State = TypeVar("State", "DncState", "NtmState")

# Of each field, its shape. B batch, H hidden units, V write heads, R read heads, N locations of W elements.
SHAPES = {
    "memory": "BNW",
    "usage": "BN",
    "precedence": "BVN",
    "link": "BVNN",
    "write_weights": "BVN",
    "read_weights": "BRN",
    "hidden": "BH",
    "cell": "BH",
    "read_vectors": "BRW",
}


def initial_tensor(
    field: str, sizes: Mapping[str, int], dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    """The initial value of a field: 1e-6 in memory and read vectors, all weight on location 0, otherwise 0."""
    shape = [sizes[dimension] for dimension in SHAPES[field]]
    return _set_initial(field, torch.zeros(shape, dtype=dtype, device=device))


def _set_initial(field: str, zeros: Tensor) -> Tensor:
    if field in ("memory", "read_vectors"):
        return zeros.fill_(1e-6)
    if field in ("write_weights", "read_weights"):
        zeros[..., 0] = 1.0
    return zeros


def initial_like(state: State, initial: str = "reference") -> State:
    """The state before the first step of as many samples; `initial`: ``"reference"``, or ``"zeros"``."""
    fields = {name: torch.zeros_like(t, requires_grad=False) for name, t in state._asdict().items()}
    return state._replace(**{name: t if initial == "zeros" else _set_initial(name, t) for name, t in fields.items()})


class DncState(NamedTuple):
    """The state of a differentiable neural computer."""

    memory: Tensor  # [B,N,W]
    usage: Tensor  # [B,N], how much each location is in use
    precedence: Tensor  # [B,V,N], how recently each location was written
    link: Tensor  # [B,V,N,N], [i,j]: location i was written after j
    write_weights: Tensor  # [B,V,N]
    read_weights: Tensor  # [B,R,N]
    hidden: Tensor  # [B,H], of the controller
    cell: Tensor  # [B,H]
    read_vectors: Tensor  # [B,R,W]

    @classmethod
    def initial(
        cls, sizes: Mapping[str, int], dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> DncState:
        """The state before the first step. `sizes` has B, H, V, R, N and W."""
        return cls(*(initial_tensor(field, sizes, dtype, device) for field in cls._fields))

    def detach(self) -> DncState:
        """The same numbers without their history: what truncated backpropagation goes on from."""
        return DncState(*(t.detach() for t in self))


class NtmState(NamedTuple):
    """The state of a neural Turing machine."""

    memory: Tensor  # [B,N,W]
    write_weights: Tensor  # [B,V,N]
    read_weights: Tensor  # [B,R,N]
    hidden: Tensor  # [B,H], of the controller
    cell: Tensor  # [B,H]
    read_vectors: Tensor  # [B,R,W]

    @classmethod
    def initial(
        cls, sizes: Mapping[str, int], dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> NtmState:
        """The state before the first step. `sizes` has B, H, V, R, N and W."""
        return cls(*(initial_tensor(field, sizes, dtype, device) for field in cls._fields))

    def detach(self) -> NtmState:
        """The same numbers without their history: what truncated backpropagation goes on from."""
        return NtmState(*(t.detach() for t in self))
