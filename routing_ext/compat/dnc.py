"""What the modules of the package `dnc` offer, ours in place of it. Its sparse networks have no counterpart here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..memory import dnc_package

MODULES: Mapping[str, tuple[Any, ...]] = {
    "": (dnc_package.DNC, dnc_package.Memory),
    "dnc": (dnc_package.DNC,),
    "memory": (dnc_package.Memory,),
}
