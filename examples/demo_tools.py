"""What the examples share. Needs no package, so that it can say which one is missing."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

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
