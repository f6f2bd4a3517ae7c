"""How several runs learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator

from ..config_file import to_options
from .style import FAINT, LINES, MUTED, STYLE

if TYPE_CHECKING:
    from ..run import Run

# What is drawn, of each report that has it: what it is called, and whether its axis is logarithmic.
PANELS = {
    "loss": ("loss", True),
    "bits": ("bits a sequence", True),
    "wrong": ("sequences with an error, %", False),
    "accuracy": ("accuracy on test images, %", False),
}
FLOOR = 1e-4  # of a logarithmic axis
LONGEST_NAME = 70
IN_A_COLUMN = 4  # of the legend, if there is room for several


def draw_curves(runs: Sequence[Run]) -> Figure:
    """A panel for each metric, against training sequences.

    Runs that differ in nothing but the seed are a group: a line for the median, a band between the quartiles. Groups are named
    by what they differ in. Lines are means of training since the last report; circles are evaluations. Accuracy has the latter
    only.

    Args:
        runs: at least one.
    """
    groups = grouped(runs)
    reports = {name: [run.metrics() for run in group] for name, group in groups.items()}
    found = {key for lines in reports.values() for run in lines for line in run for key in line}
    panels = [name for name in PANELS if name in found]
    with matplotlib.rc_context(STYLE):
        width = max(4.4 * len(panels), 6.0)
        column = 0.6 + 0.085 * max(map(len, [*groups, "evaluation"]))  # inches
        columns = max(1, min(int(width / column), -(-(len(groups) + 1) // IN_A_COLUMN)))
        legend = 0.24 * -(-(len(groups) + 1) // columns) + 0.2
        figure = Figure(figsize=(width, 3.9 + legend), dpi=140, facecolor="white", layout="constrained")
        axes = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
        for ax, name in zip(axes, panels, strict=False):
            for i, lines in enumerate(reports.values()):
                _draw(ax, name, lines, LINES[i % len(LINES)], "-" if i < len(LINES) else "--")
            _finish(ax, name, "images" if "accuracy" in panels else "sequences")
        handles = [
            Line2D([], [], color=LINES[i % len(LINES)], linewidth=2.4, linestyle="-" if i < len(LINES) else "--")
            for i in range(len(groups))
        ]
        handles.append(Line2D([], [], linestyle="none", marker="o", color=MUTED, markersize=4))
        figure.legend(handles, [*groups, "evaluation"], loc="outside upper left", frameon=False, fontsize=10, ncols=columns)
    return figure


def grouped(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs that have all options in common, but for the seed, by what tells them from the other groups."""
    options = [{k: str(v) for k, v in to_options(run.problem, run.config).items() if k != "seed"} for run in runs]
    members: list[list[int]] = []
    for i, own in enumerate(options):
        group = next((group for group in members if options[group[0]] == own), None)
        if group is None:
            members.append([i])
        else:
            group.append(i)
    firsts = [options[group[0]] for group in members]
    names = dict.fromkeys(name for own in firsts for name in own)
    differing = [name for name in names if len({own.get(name) for own in firsts}) > 1]
    groups: dict[str, list[Run]] = {}
    for group in members:
        own = options[group[0]]
        told = ", ".join(f"{name} {own[name]}" for name in differing if name in own)
        if not told or len(told) > LONGEST_NAME:
            told = ", ".join(dict.fromkeys(runs[i].name for i in group))
        groups[told + (f" ({len(group)} seeds)" if len(group) > 1 else "")] = [runs[i] for i in group]
    return groups


def _draw(ax: Axes, name: str, runs: Sequence[Sequence[Mapping[str, Any]]], colour: str, dash: str) -> None:
    scale = 100 if PANELS[name][1] is False else 1
    for kind in ("train", "evaluation"):
        x, quartiles = spread(runs, kind, name)
        if len(x) == 0 or (kind == "train" and name == "accuracy"):
            continue
        low, median, high = (np.maximum(scale * part, FLOOR if PANELS[name][1] else 0) for part in quartiles)
        if kind == "train":
            ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            ax.plot(x, median, dash, color=colour, linewidth=2.0, solid_capstyle="round")
        else:
            line = dash if name == "accuracy" else "none"
            ax.plot(
                x, median, linestyle=line, marker="o", color=colour, markersize=4, markeredgecolor="white", markeredgewidth=0.6
            )
            if name == "accuracy":
                ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def spread(runs: Sequence[Sequence[Mapping[str, Any]]], kind: str, name: str) -> tuple[Any, Any]:
    """``(sequences [n], quartiles [3,n])`` of a value, where all runs that got so far have reported it."""
    values: dict[int, list[float]] = {}
    for run in runs:
        for line in run:
            if line["kind"] == kind and line.get(name) is not None:
                values.setdefault(line["sequences"], []).append(line[name])
    most = max(map(len, values.values()), default=0)
    x = sorted(sequences for sequences, found in values.items() if 2 * len(found) > most)
    quartiles = [np.quantile(values[sequences], (0.25, 0.5, 0.75)) for sequences in x]
    return np.array(x), np.array(quartiles).reshape(-1, 3).T


def _finish(ax: Axes, name: str, examples: str) -> None:
    title, logarithmic = PANELS[name]
    ax.set_title(title, fontsize=12, weight="bold", loc="left", pad=10)
    ax.set_xlabel(f"training {examples}")
    if logarithmic:
        ax.set_yscale("log")
        low, high = ax.get_ylim()
        subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if high < 10 * low else (1.0, 2.0, 5.0) if high < 500 * low else (1.0,)
        ax.yaxis.set_major_locator(LogLocator(subs=subs))
        ax.minorticks_off()
        ax.yaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set_xlim(left=0)
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    ax.tick_params(length=0)
