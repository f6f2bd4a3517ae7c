"""The program routing-ext: each command is a module of this package, with a dataclass Options and a function run(options)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from .._version import __version__
from ..training.errors import ConfigError, Interrupted, TrainingError, require
from .errors import UserError
from .parsing import PROGRAM, parse

COMMANDS = {
    "train": "trains a network, or goes on with a run",
    "test": "tests a run on larger problems than it was trained on, and draws what the network does",
    "plot": "draws how runs learned, side by side",
    "info": "shows versions, build and machine",
    "bench": "shows how much faster the fused layers are here, in less than a minute",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: of the command line, by default those of the process.

    Returns:
        The exit code: 0; 1 for an error; 2 for a wrong command line; 128 + the signal that stopped it.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(arguments)
    except UserError as error:
        return _fail(error, error.exit_code)
    except Interrupted as error:
        return _fail(error, 128 + error.signal)
    except ConfigError as error:
        return _fail(error, 2)
    except BrokenPipeError:  # as in `routing-ext info | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to be flushed at the end
        return 128 + signal.SIGPIPE
    except TrainingError as error:
        return _fail(error, 1)
    except OSError as error:
        return _fail(f"{error}: see whether there is room, and a right to write, then try again", 1)
    except KeyboardInterrupt:
        return _fail("stopped", 130)


def _run(arguments: list[str]) -> int:
    name, rest = (arguments or ["--help"])[0], arguments[1:]
    if name == "--version":
        print(f"{PROGRAM} {__version__}")
    elif name in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    elif name not in COMMANDS:
        raise UserError(f"unknown command {name}: use one of {', '.join(COMMANDS)}", exit_code=2)
    else:
        command = require(f"{__name__}.{name}", "tyro")
        try:
            options = command.parse(rest) if hasattr(command, "parse") else parse(command.Options, rest, name)
        except SystemExit:  # help was printed
            return 0
        code: int = command.run(options) or 0
        sys.stdout.flush()
        return code
    return 0


def _help() -> str:
    rows = "\n".join(f"  {name:6} {about}" for name, about in COMMANDS.items())
    return f"usage: {PROGRAM} COMMAND [OPTIONS]\n\n{rows}\n\n{PROGRAM} COMMAND --help shows the options of a command."


def _fail(error: Exception | str, exit_code: int) -> int:
    """Of several processes that train together, which mostly fail together, the first one speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(f"{PROGRAM}: {' '.join(str(error).split())}", file=sys.stderr)
    return exit_code
