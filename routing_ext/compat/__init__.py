"""Lets code that was written for a reference implementation import ours, unchanged.

>>> from routing_ext import compat
>>> compat.enable("PytorchRouting")
>>> from PytorchRouting.CoreLayers import Selection  # ours
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from . import dnc, pytorch_dnc, pytorch_routing

__all__ = ["disable", "enable", "supported"]

# For each reference the package that its code imports, and for each module of that what it offers, under its own name.
_TABLES: dict[str, tuple[str, Mapping[str, tuple[Any, ...]]]] = {
    "PytorchRouting": ("PytorchRouting", pytorch_routing.MODULES),
    "dnc": ("dnc", dnc.MODULES),
    "pytorch_dnc": ("core", pytorch_dnc.MODULES),
}

_enabled: dict[str, _Finder] = {}


def supported() -> list[str]:
    """The references that can be enabled."""
    return sorted(_TABLES)


def enable(package: str) -> None:
    """From now on, the import paths of `package` lead to our classes, whether or not it is installed.

    Modules of it that have no counterpart here, such as its examples, still come from where they are, and get our classes in
    turn. Enabling twice does nothing more. The effect is on the whole process. The code of pytorch_dnc imports its classes
    from a package `core` in its own folder: there it is `core` that leads to our classes.

    Args:
        package: one of :func:`supported`.

    Raises:
        ValueError: no such package.
        RuntimeError: it, or a part of it, was already imported: what has been taken from it would stay as it is.
    """
    root, table = _table(package, "enable")
    if package in _enabled:
        return
    earlier = _imported(root)
    if earlier:
        shown = ", ".join(earlier[:3]) + (", ..." if len(earlier) > 3 else "")
        raise RuntimeError(
            f"compat.enable: must be called before anything is imported from {root}, got it after {shown}: "
            "names that are bound already would keep the other classes"
        )
    _enabled[package] = _Finder(root, table)
    sys.meta_path.insert(0, _enabled[package])


def disable(package: str | None = None) -> None:
    """Undoes :func:`enable`: later imports find `package` as it is installed, or not at all.

    Names that are bound already keep our classes.

    Args:
        package: one of :func:`supported`; None for all.

    Raises:
        ValueError: no such package.
    """
    if package is not None:
        _table(package, "disable")
    for name in [package] if package is not None else list(_enabled):
        finder = _enabled.pop(name, None)
        if finder is not None:
            sys.meta_path.remove(finder)
            for module in _imported(_TABLES[name][0]):
                del sys.modules[module]


def _table(package: str, function: str) -> tuple[str, Mapping[str, tuple[Any, ...]]]:
    if package not in _TABLES:
        raise ValueError(f"compat.{function}: package must be one of {supported()}, got {package!r}")
    return _TABLES[package]


def _imported(package: str) -> list[str]:
    return [name for name in sys.modules if name == package or name.startswith(f"{package}.")]


class _Finder(MetaPathFinder, Loader):
    """Finds and makes the modules of one table."""

    def __init__(self, package: str, table: Mapping[str, tuple[Any, ...]]) -> None:
        self._contents = {f"{package}.{name}" if name else package: contents for name, contents in table.items()}

    def _children(self, fullname: str) -> list[str]:
        return [name for name in self._contents if name.rpartition(".")[0] == fullname]

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in self._contents:
            return None
        spec = ModuleSpec(fullname, self, is_package=bool(self._children(fullname)))
        if spec.submodule_search_locations is not None:
            # For what is not in the table. The package's own code is found there, but not run.
            folder = fullname.rpartition(".")[2]
            found = self._elsewhere(fullname) if path is None else [str(Path(parent, folder)) for parent in path]
            spec.submodule_search_locations.extend(found)
        return spec

    def _elsewhere(self, package: str) -> list[str]:
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(package, None)
            if spec is not None:
                return list(spec.submodule_search_locations or ())
        return []

    def exec_module(self, module: ModuleType) -> None:
        # Importing a module sets it as an attribute of its package. A class of the same name has to come after it.
        for child in self._children(module.__name__):
            importlib.import_module(child)
        for item in self._contents[module.__name__]:
            setattr(module, item.__name__, item)
