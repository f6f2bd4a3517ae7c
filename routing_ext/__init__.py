"""Fused operators and layers for networks that route each sample through modules of its own."""

from ._extension import build_info
from ._version import __version__
from . import ops, reference, routing

__all__ = ["__version__", "build_info", "ops", "reference", "routing"]
