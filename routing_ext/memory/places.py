"""Where a module's parameters are, to find them fast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .._C import values_at


class _Found(NamedTuple):
    of: dict[str, Any]  # the module's children when it was looked through
    modules: list[tuple[dict[str, Any], str, nn.Module]]  # a module's children, the name of one, and this child
    parameters: list[tuple[dict[str, Any], str]] | None  # None: a tensor is computed


class Places:
    """Remembers where the tensors of a list are. To look all of them up by name takes longer than a step of a small network.

    Copies and pickles remember nothing.
    """

    def __init__(self) -> None:
        self._found: _Found | None = None

    def __reduce__(self) -> tuple[type[Places], tuple[()]]:
        return Places, ()

    def tensors(self, root: nn.Module, by_name: Callable[[], list[Tensor]]) -> list[Tensor]:
        """``by_name()``, fast if it gave parameters of `root`'s modules the last time, and these are still where they were."""
        if torch.compiler.is_compiling():
            return by_name()
        found = self._found
        if found is not None and found.of is root._modules:  # a shallow copy of a module shares this object
            if found.parameters is None:
                return by_name()
            tensors: list[Tensor] | None = values_at(found.modules, found.parameters)
            if tensors is not None:
                return tensors
        tensors = by_name()
        self._found = self._find(root, tensors)
        return tensors

    @staticmethod
    def _find(root: nn.Module, tensors: list[Tensor]) -> _Found:
        places = {id(t): (m._parameters, name) for m in root.modules() for name, t in m._parameters.items()}
        if not all(id(t) in places for t in tensors):
            return _Found(root._modules, [], None)
        modules = [(m._modules, name, child) for m in root.modules() for name, child in m.named_children()]
        return _Found(root._modules, modules, [places[id(t)] for t in tensors])
