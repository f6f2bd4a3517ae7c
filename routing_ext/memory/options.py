"""The arguments of the layers: an object like the reference's, keywords of the same names, or both."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from .._memory_options import DncOptions

# Those of a DNC's options that leave its parameters as they are: what heads know of, and what only the whole step does.
OF_DNC: Mapping[str, Any] = {name: DncOptions._field_defaults[name] for name in ("usage", "allocation", "temperature")}
OF_STEP: Mapping[str, Any] = {**OF_DNC, "erase_freed": DncOptions._field_defaults["erase_freed"]}


def read_options(
    owner: str, args: Any, given: Mapping[str, Any], sizes: Sequence[str], optional: Mapping[str, Any]
) -> dict[str, Any]:
    """Each option's value: as `given`, else the attribute of `args`, else its default. None stands for not given.

    Args:
        owner: the class that is constructed, for messages.
        args: any object, or None.
        given: keywords.
        sizes: names of positive integers that must be there.
        optional: names and defaults of the others.

    Raises:
        TypeError: an unknown keyword, or a size that is missing or no integer.
        ValueError: a size below 1, or a negative clip_value.
    """
    unknown = sorted(given.keys() - {*sizes, *optional})
    if unknown:
        raise TypeError(f"{owner}: arguments are {', '.join([*sizes, *optional])}; got {', '.join(unknown)}")
    options: dict[str, Any] = {name: given.get(name) for name in (*sizes, *optional)}
    for name, value in options.items():
        if value is None:
            value = getattr(args, name, None)
        options[name] = optional.get(name) if value is None else value
    for name in sizes:
        if options[name] is None:
            raise TypeError(f"{owner}: {name} must be given, in args or as a keyword; got neither")
    for name in (*sizes, "batch_size", "num_allowed_shifts", "num_read_modes"):
        if options.get(name) is not None:
            options[name] = _size(f"{owner}: {name}", options[name])
    if "clip_value" in options and not options["clip_value"] >= 0:
        raise ValueError(f"{owner}: clip_value must be at least 0, got {options['clip_value']}")
    return options


def _size(what: str, value: Any) -> int:
    try:
        size = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be an integer, got {value!r}") from None
    if size < 1:
        raise ValueError(f"{what} must be at least 1, got {size}")
    return size


def dnc_options(owner: str, read: Mapping[str, Any]) -> DncOptions:
    """Those of `OF_STEP` among what :func:`read_options` gave."""
    return DncOptions.read(owner, {name: read[name] for name in OF_STEP if name in read})
