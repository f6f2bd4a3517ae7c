"""The states of memory networks: what one time step leaves to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

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


def choose(samples: Tensor, there: State, elsewhere: State) -> State:
    """`there` for these samples, bool ``[B]``, `elsewhere` for the others."""

    def chosen(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(samples.view(-1, *[1] * (a.dim() - 1)), a, b)

    return type(there)(*map(chosen, there, elsewhere))


class DncState(NamedTuple):
    """The state of a differentiable neural computer. That of a :class:`DNC` has its layers before B."""

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

    def map(self, f: Callable[[Tensor], Tensor]) -> DncState:
        """The state whose tensors are what f makes of this one's."""
        return DncState(*(f(t) for t in self))

    def detach(self) -> DncState:
        """The same numbers without their history: what truncated backpropagation goes on from."""
        return self.map(Tensor.detach)

    def to(self, *args: Any, **kwargs: Any) -> DncState:
        """In another dtype or on another device; arguments as of :meth:`torch.Tensor.to`."""
        return self.map(lambda t: t.to(*args, **kwargs))

    def samples(self, index: int | slice | list[int] | Tensor) -> DncState:
        """Of some samples, or of one, which then has no dimension B."""
        batch = self.hidden.dim() - 2
        return self.map(lambda t: t[(slice(None),) * batch + (index,)])


class NtmState(NamedTuple):
    """The state of a neural Turing machine. That of a :class:`NTM` has its layers before B."""

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

    def map(self, f: Callable[[Tensor], Tensor]) -> NtmState:
        """The state whose tensors are what f makes of this one's."""
        return NtmState(*(f(t) for t in self))

    def detach(self) -> NtmState:
        """The same numbers without their history: what truncated backpropagation goes on from."""
        return self.map(Tensor.detach)

    def to(self, *args: Any, **kwargs: Any) -> NtmState:
        """In another dtype or on another device; arguments as of :meth:`torch.Tensor.to`."""
        return self.map(lambda t: t.to(*args, **kwargs))

    def samples(self, index: int | slice | list[int] | Tensor) -> NtmState:
        """Of some samples, or of one, which then has no dimension B."""
        batch = self.hidden.dim() - 2
        return self.map(lambda t: t[(slice(None),) * batch + (index,)])


for _state in (DncState, NtmState):
    torch.serialization.add_safe_globals([_state])  # so that torch.load reads saved ones
    _register_namedtuple(_state, serialized_type_name=f"routing_ext.{_state.__name__}")  # and torch.export.load, too
