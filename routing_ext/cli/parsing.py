"""Options of a command, as a dataclass."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any, TypeVar

from ..training.errors import require
from .errors import UserError

T = TypeVar("T")

PROGRAM = "routing-ext"
_RULE = "───"


def parse(options: type[T], arguments: Sequence[str], command: str, default: T | None = None) -> T:
    """The options of a command line.

    Args:
        options: a dataclass: its fields are the options, its docstring the help.
        arguments: without the name of the command.
        command: its name.
        default: what is not given is as here.

    Raises:
        UserError: a wrong option, with exit code 2.
        MissingPackage: tyro is not installed.
        SystemExit: help was asked for, and printed.
    """
    tyro: Any = require("tyro", "tyro")
    given = {} if default is None else {"default": default}
    flat = (tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            parsed: T = tyro.cli(options, args=list(arguments), prog=f"{PROGRAM} {command}", config=flat, **given)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(f"{_one_line(complaint.getvalue())} (see {PROGRAM} {command} --help)", exit_code=2) from None
    return parsed


def _one_line(box: str) -> str:
    """What tyro says in a box of several lines: the complaint, and what was perhaps meant."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    rules = [number for number, line in enumerate(lines) if line.startswith(_RULE)]
    text = " ".join(lines[: rules[0] if rules else None])
    if "Perhaps you meant:" in lines:
        near = [line.split()[0].rstrip(",") for line in lines if line.startswith("--")]
        text += f"; perhaps {near[0]} was meant" if near else ""
    return text
