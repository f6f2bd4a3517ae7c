"""Turns the Sphinx roles of the docstrings, which help() and editors know, into what Markdown knows.

The names of this package become links, all others plain code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import griffe

ROLE = re.compile(r":(?:attr|class|exc|func|meth|mod):`(~?)([\w.]+)`")


class RolesExtension(griffe.Extension):
    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        for obj in _objects(pkg):
            if obj.docstring is not None:
                obj.docstring.value = ROLE.sub(lambda role, obj=obj: _markdown(obj, *role.groups()), obj.docstring.value)


def _objects(obj: griffe.Object) -> Iterator[griffe.Object]:
    yield obj
    for member in obj.members.values():
        if not member.is_alias:
            yield from _objects(member)


def _markdown(obj: griffe.Object, short: str, name: str) -> str:
    shown = f"`{name.rpartition('.')[2] if short else name}`"
    target = _target(obj, name)
    return shown if target is None else f"[{shown}][{target}]"


def _target(obj: griffe.Object, name: str) -> str | None:
    """The path of a name of this package, given in full, or without its module where the module of `obj` knows it."""
    if not name.startswith("routing_ext."):
        first, *rest = name.split(".")
        known = obj.module.members.get(first)
        if known is None:
            return None
        name = ".".join([known.target_path if known.is_alias else known.path, *rest])
        if not name.startswith("routing_ext."):
            return None
    found = obj.modules_collection[name]
    if found.is_alias:
        found = found.final_target
    # Where a function has its module's name, the function is meant.
    return found.members[found.name].path if found.is_module else found.path
