"""Colours of all figures. They stay apart under every common colour blindness, and in print."""

from __future__ import annotations

from typing import Any

from matplotlib.colors import LinearSegmentedColormap

INK, SOFT, FAINT = "#22262b", "#6b7280", "#d9dce1"
OURS, MUTED, WRONG = "#0b7a75", "#b4bac4", "#c2410c"
# Of lines (Okabe and Ito, 2008), without its yellow, which is too light on white.
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", INK)

# Each goes from white in one direction of lightness, so that no colour must be told from another one, but signs: blue and
# orange.
BITS = LinearSegmentedColormap.from_list("bits", ["white", INK])
WEIGHTS = LinearSegmentedColormap.from_list("weights", ["white", "#8fd0c6", OURS, "#043c3a"])
SIGNED = LinearSegmentedColormap.from_list(
    "signed", ["#7a3a00", "#e08214", "#fde3c0", "white", "#cfdcf2", "#4a78c2", "#16335f"]
)

# Of matplotlib.
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
}
