"""What goes wrong in training and is no mistake of the program. Each message is one line that says what to do."""

from __future__ import annotations

import importlib
import signal
from types import ModuleType


class TrainingError(Exception):
    """The base of these errors."""


class ConfigError(TrainingError):
    """A configuration that cannot be used."""


class RunError(TrainingError):
    """A folder of a run that cannot be used."""


class CheckpointError(TrainingError):
    """A checkpoint that cannot be written or read."""


class MissingPackage(TrainingError):
    """A package that is not installed."""


class Diverged(TrainingError):
    """The loss or the weights are not finite any more, or the loss explodes."""


class Interrupted(TrainingError):
    """Training was stopped by a signal, and saved before.

    Attributes:
        signal: which one.
        step: training steps done.
    """

    def __init__(self, message: str, signal: signal.Signals, step: int) -> None:
        super().__init__(message)
        self.signal = signal
        self.step = step


def require(module: str, package: str, extra: str = "train") -> ModuleType:
    """The module, imported.

    Args:
        module: its name.
        package: what is installed for it.
        extra: of this package, which installs it, too.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        message = f'the package {package} is missing ({error.name}): pip install "routing_ext[{extra}]"'
        raise MissingPackage(message) from None
