"""One sequence, all of it in one figure."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

from .style import BITS, FAINT, INK, MUTED, SIGNED, SOFT, STYLE, WEIGHTS, WRONG
from .trace import Trace

WIDTH, LEFT, RIGHT = 14.0, 1.65, 0.35  # inches: of the figure, and of its margins
TOP, BOTTOM, GAP = 1.35, 0.95, 0.14
NUMBERS = 0.34  # room for the numbers of the steps, between panels
FEW_STEPS = 16  # of which each has its own pictures
SHOWN_STEPS = 10  # of many
MANY_COLUMNS = 96  # heads side by side make no more


class Panel(NamedTuple):
    """Rows of pictures, one for each of some steps, on the common axis of time."""

    name: str
    about: str
    pictures: Tensor  # [steps, rows, columns]
    colours: Colormap
    scale: Normalize
    height: float  # inches
    steps: Tensor | None = None  # which; None: all


def draw_trace(trace: Trace, title: str = "One sequence", about: str = "") -> Figure:
    """Panels one above the other: input, target and output, write and read weights, usage, memory and link.

    They share the axis of time: a column is a step, and shows what is there after it. Of long sequences, memory and link are
    shown after some of the steps.

    Args:
        trace: the sequence.
        title: above all.
        about: more of it, in a smaller font.
    """
    trace = trace.of_used_locations()
    panels = list(_panels(trace))
    numbered = max(i for i, panel in enumerate(panels) if panel.steps is None)
    between = NUMBERS * (numbered < len(panels) - 1)
    height = TOP + BOTTOM + sum(panel.height + GAP for panel in panels) - GAP + between
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(WIDTH, height), dpi=140, facecolor="white")
        top = height - TOP
        for panel in panels:
            place = (LEFT, top - panel.height, WIDTH - LEFT - RIGHT, panel.height)
            ax = canvas.add_axes((place[0] / WIDTH, place[1] / height, place[2] / WIDTH, place[3] / height))
            _draw_panel(ax, panel, trace)
            top -= panel.height + GAP + between * (panel is panels[numbered])
        canvas.text(0.25 / WIDTH, 1 - 0.42 / height, title, fontsize=14, weight="bold")
        canvas.text(0.25 / WIDTH, 1 - 0.68 / height, about, fontsize=10, color=SOFT)
        _draw_phases(canvas, trace)
        _number_steps(canvas.axes[numbered], trace)
        if panels[-1].steps is not None:
            texts = [f"after step {int(step) + 1}" for step in panels[-1].steps]
            canvas.axes[-1].set_xticks(range(len(texts)), texts, fontsize=8)
        _draw_keys(canvas, panels)
    return canvas


def _panels(trace: Trace) -> Iterator[Panel]:
    one, num_steps = Normalize(0, 1), trace.num_steps
    few = num_steps <= FEW_STEPS
    some = None if few else torch.linspace(num_steps / SHOWN_STEPS - 1, num_steps - 1, SHOWN_STEPS).round().long()
    for name, about, values in (
        ("input", "", trace.input),
        ("target", "what it should say", trace.target),
        ("output", f"what it says; {WRONG_MARK} is wrong", trace.output),
    ):
        yield Panel(name, about, values.unsqueeze(2), BITS, one, _height(values.size(1), 0.1, 0.35, 2.2))
    if trace.memory is None:
        return
    locations, elements = trace.memory.shape[1:]
    height = _height(locations, 0.055, 0.8, 1.9)
    by_location = f"{locations} locations" + (f",\nused of {trace.num_locations}" if locations != trace.num_locations else "")
    for name, weights in (("writes", trace.write_weights), ("reads", trace.read_weights)):
        assert weights is not None
        heads = weights.size(1)
        if heads == 1 or num_steps * heads > MANY_COLUMNS:
            for head, values in enumerate(weights.unbind(1), 1):
                which = f"{name}, head {head}" if heads > 1 else name
                yield Panel(which, by_location, values.unsqueeze(2), WEIGHTS, one, height if heads == 1 else 0.75 * height)
        else:
            about = f"{by_location},\n{heads} heads side by side"
            yield Panel(name, about, weights.mT, WEIGHTS, one, height)
    if trace.usage is not None:
        yield Panel("usage", by_location, trace.usage.unsqueeze(2), WEIGHTS, one, height)
    high = trace.memory_range
    when = "" if few else "\nafter some steps"
    shown = slice(None) if some is None else some
    about = f"{locations} locations\nof {elements} elements{when}"
    yield Panel("memory", about, trace.memory[shown], SIGNED, Normalize(-high, high), max(height, 1.0), some)
    if trace.link is not None:
        links = trace.link[shown].sum(1)
        yield Panel("link", f"row was written\nafter column{when}", links, WEIGHTS, one, max(height, 1.0), some)


WRONG_MARK = "\u2715"


def _height(rows: int, of_row: float, low: float, high: float) -> float:
    return min(max(rows * of_row, low), high)


def _draw_panel(ax: Axes, panel: Panel, trace: Trace) -> None:
    steps, rows, _ = panel.pictures.shape
    if steps <= FEW_STEPS:
        _draw_tiles(ax, panel)
    else:
        picture = panel.pictures.permute(1, 0, 2).flatten(1).numpy()
        extent = (-0.5, steps - 0.5, rows - 0.5, -0.5)
        ax.imshow(picture, cmap=panel.colours, norm=panel.scale, extent=extent, aspect="auto", interpolation="nearest")
        ax.spines[:].set(visible=True, color=FAINT)
    ax.set(xlim=(-0.5, steps - 0.5), ylim=(rows - 0.5, -0.5), xticks=(), yticks=())
    ax.tick_params(length=0, pad=2)
    if panel.name == "output":
        _mark_output(ax, trace, panel.height)
    x, y = -0.012, 0.5
    above = "bottom" if panel.about else "center"
    ax.text(x, y, panel.name, transform=ax.transAxes, ha="right", va=above, fontsize=10.5, weight="bold")
    ax.text(x, y - 0.03, panel.about, transform=ax.transAxes, ha="right", va="top", fontsize=8, color=SOFT, linespacing=1.1)


def _draw_tiles(ax: Axes, panel: Panel) -> None:
    """Each picture in a column of its own."""
    rows = panel.pictures.size(1)
    for step, picture in enumerate(panel.pictures.numpy()):
        extent = (step - 0.46, step + 0.46, rows - 0.5, -0.5)
        ax.imshow(picture, cmap=panel.colours, norm=panel.scale, extent=extent, aspect="auto", interpolation="nearest")
        ax.add_patch(
            Rectangle((step - 0.46, -0.5), 0.92, rows, fill=False, edgecolor=FAINT, linewidth=0.8, clip_on=False, zorder=3)
        )
    if panel.colours is BITS:
        ax.hlines(np.arange(rows - 1) + 0.5, -0.45, panel.pictures.size(0) - 0.55, color="white", linewidth=1.5)
    ax.spines[:].set_visible(False)


def _mark_output(ax: Axes, trace: Trace, height: float) -> None:
    """What is wrong, and what does not count."""
    steps, bits = trace.wrong.nonzero().unbind(1)
    size = min(8.0, 480 / trace.num_steps, 60 * height / trace.output.size(1))  # points
    ax.plot(steps, bits, linestyle="", marker="x", color=WRONG, markersize=size, markeredgewidth=size / 3.5)
    for step in (~trace.counts).nonzero()[:, 0].tolist():
        box = Rectangle((step - 0.5, -0.5), 1, trace.output.size(1), color="white", alpha=0.75, linewidth=0)
        ax.add_patch(box)


def _draw_phases(canvas: Figure, trace: Trace) -> None:
    """Above the first panel: when the network listens, and when its output counts."""
    ax = canvas.axes[0]
    box = ax.get_position()
    inch = 1 / canvas.get_figheight()
    first = 0
    for counts, group in groupby(trace.counts.tolist()):
        steps = len(list(group))
        ends = [box.x0 + box.width * (first + shift * steps) / trace.num_steps for shift in (0.0, 1.0)]
        pad = min(0.004, 0.04 * (ends[1] - ends[0]))
        y = box.y1 + 0.12 * inch
        colour = INK if counts else MUTED
        canvas.add_artist(Line2D([ends[0] + pad, ends[1] - pad], [y, y], color=colour, linewidth=2.0 if counts else 1.2))
        if ends[1] - ends[0] > 0.045:
            text = "it answers" if counts else "it listens"
            colour = INK if counts else SOFT
            canvas.text(sum(ends) / 2, y + 0.06 * inch, text, color=colour, ha="center", va="bottom", fontsize=9.5)
        first += steps


def _number_steps(ax: Axes, trace: Trace) -> None:
    every = next(every for every in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if trace.num_steps <= 25 * every)
    steps = [step for step in range(trace.num_steps) if (step + 1) % every == 0]
    ax.set_xticks(steps, [str(step + 1) for step in steps], fontsize=8)
    ax.set_xlabel("step", fontsize=9, labelpad=1)


def _draw_keys(canvas: Figure, panels: list[Panel]) -> None:
    """What the colours mean."""
    by_colours = {panel.colours.name: panel for panel in panels}
    weights = ", ".join(["weights", *(name for name in ("usage", "link") if any(panel.name == name for panel in panels))])
    names = {BITS.name: "bits", WEIGHTS.name: weights, SIGNED.name: "memory"}
    height = canvas.get_figheight()
    for i, (name, panel) in enumerate(by_colours.items()):
        low, high = panel.scale.vmin, panel.scale.vmax
        signed = name == SIGNED.name
        left = (LEFT + 1.6 + 4.0 * i) / WIDTH
        ax = canvas.add_axes((left, 0.22 / height, 1.0 / WIDTH, 0.14 / height))
        ax.imshow(np.linspace(0, 1, 64)[None], cmap=panel.colours, aspect="auto")
        ax.set(xticks=(), yticks=())
        ax.spines[:].set(visible=True, color=FAINT)
        texts = (f"{names[name]}   {low:g}{' or less' * signed}", f"{high:g}{' or more' * signed}")
        for x, align, text in ((-0.05, "right", texts[0]), (1.05, "left", texts[1])):
            ax.text(x, 0.45, text, transform=ax.transAxes, ha=align, va="center", fontsize=8.5, color=SOFT)
