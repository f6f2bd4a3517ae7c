"""Options of a command, as a dataclass."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, TypeVar

from ..training.errors import require
from .errors import UserError

T = TypeVar("T")

PROGRAM = "routing-ext"


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
    lines = [line.strip("│ ") for line in box.splitlines()]
    # The title is within the box's border, or where the terminal has no such characters, above a rule.
    rule = next((number for number, line in enumerate(lines) if line.startswith(("╭", "---"))), -1)
    rest = lines[rule + 1 :]
    text = " ".join(takewhile(lambda line: not line.startswith(("╰", "───", "---")), rest))
    if "Perhaps you meant:" in rest:
        near = next((line.split()[0].rstrip(",") for line in rest if re.match("--[a-z]", line)), None)
        text += f"; perhaps {near} was meant" if near else ""
    text = re.sub(r"^Error parsing \w+: ", "", " ".join(text.split()))
    return re.sub(
        r"no type matching (\S+) could be instantiated from (\[.*?\])\. Got errors: .*", r"expected \1, got \2", text
    )
