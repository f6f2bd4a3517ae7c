"""A check that the fake kernels share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def check_devices(op: str, like: Tensor, **arguments: Tensor | Sequence[Tensor] | None) -> None:
    """Raises unless all arguments are on the device of `like`.

    The compiled kernels check this, too, but a meta tensor among others brings the call to the fake kernel, whose result
    would pass for a real one.
    """
    for name, given in arguments.items():
        for t in (given,) if isinstance(given, Tensor) else given or ():
            if t.device != like.device:
                raise RuntimeError(f"{op}: {name} must be on {like.device}, got {t.device}")
