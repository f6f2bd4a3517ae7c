"""Where a module's parameters are, to find them fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._C import values_at


class _Found(NamedTuple):
    modules: list[tuple[dict[str, Any], str, nn.Module]]  # a module's children, the name of one, and this child
    parameters: list[tuple[dict[str, Any], str]]


class Places:
    """Remembers where the tensors of a list are. To look all of them up by name takes longer than a step of a small network.

    Copies and pickles remember nothing.
    """

    def __init__(self) -> None:
        self._root: dict[str, Any] | None = None
        self._found: _Found | None = None

    def __reduce__(self) -> tuple[type[Places], tuple[()]]:
        return Places, ()

    def tensors(self, root: nn.Module, by_name: Callable[[], list[Tensor]]) -> list[Tensor]:
        """``by_name()``, fast if it gave parameters of `root`'s modules the last time, and these are still where they were."""
        if torch.compiler.is_compiling():
            return by_name()
        if self._found is not None and self._root is root._modules:  # a shallow copy of a module shares this object
            tensors: list[Tensor] | None = values_at(*self._found)
            if tensors is not None:
                return tensors
        tensors = by_name()
        self._root, self._found = root._modules, self._find(root, tensors)
        return tensors

    @staticmethod
    def _find(root: nn.Module, tensors: list[Tensor]) -> _Found | None:
        places = {id(t): (m._parameters, name) for m in root.modules() for name, t in m._parameters.items()}
        if not all(id(t) in places for t in tensors):
            return None  # one is computed
        modules = [(m._modules, name, child) for m in root.modules() for name, child in m.named_children()]
        return _Found(modules, [places[id(t)] for t in tensors])
