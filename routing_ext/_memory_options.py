"""What a step of a memory network does differently if asked to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_CHOICES = {"usage": ("reference", "paper"), "allocation": ("sort", "softmax")}


class DncOptions(NamedTuple):
    """The options of a DNC's step, which the operators take as keywords. The defaults are what pytorch-dnc does.

    Attributes:
        usage: ``"reference"``: what a head is about to allocate counts as used by its write gate, for the heads after it and
            in the usage that is carried to the next step, and usage has a gradient to the write weights. ``"paper"``: it
            counts by write gate times allocation gate, for the heads after it only, and there is no such gradient (Graves et
            al., 2016, as in DeepMind's implementation).
        allocation: ``"sort"`` or ``"softmax"`` (Ben-Ari and Bekker, 2017), see :func:`routing_ext.reference.dnc_allocation`.
        temperature: of that softmax, positive.
    """

    usage: str = "reference"
    allocation: str = "sort"
    temperature: float = 0.5

    @classmethod
    def read(cls, op: str, given: Mapping[str, Any]) -> DncOptions:
        """The options among keywords.

        Args:
            op: who was given them, for messages.
            given: keywords.

        Raises:
            TypeError: a keyword that is no option.
            ValueError: an option has no such value.
        """
        for name in given:
            if name not in cls._fields:
                raise TypeError(f"{op}: options are {', '.join(cls._fields)}; got {name}")
        options = cls(**given)
        for name, choices in _CHOICES.items():
            value = getattr(options, name)
            if value not in choices:
                raise ValueError(f"{op}: {name} must be " + " or ".join(f'"{c}"' for c in choices) + f", got {value!r}")
        if options.allocation == "softmax" and options.temperature <= 0:
            raise ValueError(f"{op}: temperature must be positive, got {options.temperature}")
        return options

    def numbers(self) -> list[float]:
        """As the raw operators want them; none where nothing differs. In the order of csrc/math/memory_interface.h."""
        if self == DncOptions():
            return []
        return [self.usage == "paper", self.temperature if self.allocation == "softmax" else 0]
