"""Layers of Routing Networks (Rosenbaum et al., 2018): each sample of a batch goes through the module chosen for it."""

from .linear_bank import LinearBank
from .selection import Selection

__all__ = ["LinearBank", "Selection"]
