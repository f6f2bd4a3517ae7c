"""Errors that a person at the command line can do something about."""

from __future__ import annotations


class UserError(Exception):
    """Printed as one line, without a traceback.

    Args:
        message: what is wrong, and what to do.
        exit_code: of the program; 2 for a wrong command line.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
