"""What the examples share. Needs no package, so that it can say which one is missing."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

INK, SOFT, FAINT = "#22262b", "#6b7280", "#d9dce1"
OURS, OTHER, MUTED = "#0b7a75", "#7d8694", "#b4bac4"

# Of matplotlib.
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
}


def explain(error: ImportError) -> str:
    """Of a missing package: how to install it."""
    if not isinstance(error, ModuleNotFoundError):
        return str(error)
    package = {"sklearn": "scikit-learn", "routing_ext": "."}.get(error.name or "", error.name)
    place = ", in the root of its repository" if package == "." else ""
    script = Path(sys.argv[0]).name
    return f"{script}: the package {error.name} is missing. Install it with `python -m pip install {package}`{place}."


def positive(text: str) -> int:
    """An argument's type."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def output_file(text: str) -> Path:
    """An argument's type: a file in a folder that exists."""
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder {path.parent} does not exist")
    return path


class Rate(NamedTuple):
    """A number per second: the quartiles of many measurements."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:,.0f} ({self.low:,.0f} to {self.high:,.0f})"


def rates_in_turns(fast: Callable[[], object], slow: Callable[[], object], amount: int, seconds: float) -> tuple[Rate, Rate]:
    """What both do in a second, called in turns of about the same length, so that whatever else runs disturbs both alike.

    Args:
        fast, slow: each does `amount` in one call.
        amount: see above.
        seconds: how long to measure.
    """

    def seconds_of(call: Callable[[], object], repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats

    seconds_of(fast, 3), seconds_of(slow, 3)  # warm up
    repeats = max(1, round(seconds_of(slow, 3) / seconds_of(fast, 3)))
    rounds: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(rounds) < 8:
        rounds.append((seconds_of(fast, repeats), seconds_of(slow, 1)))
    first, second = (
        Rate(*(amount / quartile for quartile in reversed(statistics.quantiles(times, n=4))))
        for times in zip(*rounds, strict=True)
    )
    return first, second
