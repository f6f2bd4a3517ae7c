"""Fused operators and layers for networks that route each sample through modules of its own."""

from ._extension import build_info
from ._version import __version__

# isort: split
# Only now: the operators are registered when the extension is loaded.
from . import compat, memory, ops, reference, routing, tasks, training

__all__ = ["__version__", "build_info", "compat", "memory", "ops", "reference", "routing", "tasks", "training"]
