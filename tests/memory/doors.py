"""The operators under test: the definition of each, and the fast one where there is one."""

from __future__ import annotations

import pytest

from routing_ext import ops, reference


def door(name: str) -> pytest.MarkDecorator:
    """The test gets the operator as an argument of its own name."""
    modules = [module for module in (reference, ops) if hasattr(module, name)]
    return pytest.mark.parametrize(
        name, [getattr(m, name) for m in modules], ids=[m.__name__.rpartition(".")[2] for m in modules]
    )
