"""The state of the sequence under way, and the attributes through which modules show their part of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._states import SHAPES, State, initial_tensor
from ..ops.memory_step import MemoryRun


class SequenceState:
    """Tensors by the names of the fields of :class:`DncState`, shared by a circuit and its parts.

    While a circuit takes its steps, the state is in its run. Who looks at it makes tensors of it, from which the circuit goes
    on: as everywhere in autograd, hooks on them run, and what is done to them is done to the sequence. A field without a
    tensor has its initial value, whatever the batch turns out to be. Copies and pickles have the numbers, no history.
    """

    def __init__(self) -> None:
        self._fields: dict[str, Tensor] = {}
        self._run: MemoryRun | None = None
        self.steps: int | None = None  # of the last run that ended

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        return {"_fields": {name: t.detach() for name, t in self._fields.items()}, "_run": None, "steps": None}

    @property
    def run(self) -> MemoryRun | None:
        """Which has the state, if it is not in tensors."""
        return self._run

    @run.setter
    def run(self, run: MemoryRun) -> None:
        self._run = run
        self._fields = {}

    def settle(self) -> None:
        """Takes the state from the run, which ends with that."""
        if self._run is not None:
            self._fields = self._run.state()._asdict()
            self._end(self._run)

    def _end(self, run: MemoryRun) -> None:
        self.steps, self._run = run.time(), None

    def get(self, field: str) -> Tensor | None:
        self.settle()
        return self._fields.get(field)

    def update(self, fields: Mapping[str, Tensor]) -> None:
        self.settle()
        self._fields.update(fields)

    def clear(self, fields: Iterable[str]) -> None:
        fields = set(fields)
        if self._run is not None and fields.issuperset(self._run.network.kind._fields):
            self._end(self._run)
        self.settle()
        for field in fields:
            self._fields.pop(field, None)

    def apply(self, function: Callable[[Tensor], Tensor]) -> None:
        self.settle()
        self._fields = {name: function(t) for name, t in self._fields.items()}

    def batch(self) -> int | None:
        """B of the sequence under way, None before its first step."""
        if self._run is not None:
            return self._run.network.sizes["B"]
        return next((t.size(0) for t in self._fields.values()), None)

    def is_initial(self) -> bool:
        return self._run is None and not self._fields


class StateTensor:
    """An attribute that shows one field of the state and, assigned to, replaces it."""

    def __init__(self, field: str) -> None:
        self.field = field
        self.__doc__ = f"The state's `{field}`, ``[{','.join(SHAPES[field])}]``; assignable."

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, part: Any, owner: type | None = None) -> Any:
        return self if part is None else part._field(self.field)

    def __set__(self, part: Any, value: Tensor) -> None:
        what, shape = f"{type(part).__name__}: {self._name}", part._shape(self.field, -1)
        if isinstance(value, Tensor) and value.dim() == 2 and value.size(1) == math.prod(shape[1:]):
            value = value.reshape(value.size(0), *shape[1:])  # flat, as the reference's read vectors are before the first step
        check_shape(what, value, shape)
        part._state.update({self.field: value})


def check_shape(what: str, value: Tensor, shape: Sequence[int]) -> None:
    """Raises unless this is a tensor of this shape; a first size of -1 stands for any batch.

    Raises:
        TypeError: no tensor.
        ValueError: of another shape.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{what} must be a tensor, got {type(value).__name__}")
    batch = value.size(0) if value.dim() and shape[0] == -1 else shape[0]
    if value.shape != (batch, *shape[1:]):
        wanted = ", ".join(map(str, ("B" if shape[0] == -1 else shape[0], *shape[1:])))
        raise ValueError(f"{what} must be [{wanted}], got {list(value.shape)}")


class Part:
    """What has a part of the state: some fields, and the sizes that they depend on.

    Attributes:
        batch_size: for which the attributes show an initial state; None: one sample.
    """

    _owned: tuple[str, ...] = ()  # the fields that `_reset_states` resets
    _state: SequenceState
    _sizes: dict[str, int]
    batch_size: int | None

    def _place(self) -> tuple[torch.dtype | None, torch.device | None]:
        """Dtype and device of the state."""
        raise NotImplementedError

    def _shape(self, field: str, batch: int) -> tuple[int, ...]:
        return tuple(batch if dimension == "B" else self._sizes[dimension] for dimension in SHAPES[field])

    def _field(self, field: str, batch: int | None = None) -> Tensor:
        """The value of a field, for a batch of this size if it is an initial one."""
        value = self._state.get(field)
        if value is not None:
            return value
        known = (batch, self._state.batch(), self.batch_size, 1)
        batch = next(b for b in known if b is not None)
        return initial_tensor(field, {"B": batch, **self._sizes}, *self._place())

    def _reset_states(self) -> None:
        """To the initial state; to be called before each sequence."""
        self._state.clear(self._owned)


class PartModule(Part, nn.Module):
    """A module with a part of the state."""

    def _place(self) -> tuple[torch.dtype | None, torch.device | None]:
        parameter = next(self.parameters())
        return parameter.dtype, parameter.device

    def _cast(self, dtype: torch.dtype | type | str | None) -> None:
        """To the dtype that was asked for, the last thing in the construction of a module."""
        if dtype is not None:
            self.type(dtype)  # type: ignore[arg-type]

    def _current(self, kind: type[State], batch: int) -> State:
        """The whole state, for this many samples."""
        state = kind(*(self._field(field, batch) for field in kind._fields))
        for value in state:
            self._check_batch(value.size(0), batch)
        return state

    def _check_batch(self, under_way: int, batch: int) -> None:
        if under_way != batch:
            raise ValueError(
                f"{type(self).__name__}: batch must be that of the sequence under way, {under_way}, got {batch}; "
                "_reset_states() begins another sequence"
            )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._state.apply(fn)  # as often as there are parts that share it, which changes nothing
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
