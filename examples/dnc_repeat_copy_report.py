"""The tables and the figure of dnc_repeat_copy.py."""

from __future__ import annotations

import dataclasses
import io
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from demo_tools import FAINT, INK, MUTED, OURS, SOFT, STYLE, Rate
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import Tensor

WRONG = "#c2410c"
# Each goes from white in one direction of lightness, so that no colour must be told from another one, but signs: blue and
# orange, which stay apart under every common colour blindness.
BITS = LinearSegmentedColormap.from_list("bits", ["white", INK])
WEIGHTS = LinearSegmentedColormap.from_list("weights", ["white", "#8fd0c6", OURS, "#043c3a"])
SIGNED = LinearSegmentedColormap.from_list(
    "signed", ["#7a3a00", "#e08214", "#fde3c0", "white", "#cfdcf2", "#4a78c2", "#16335f"]
)


@dataclasses.dataclass
class History:
    """Means of the last training steps before each of `steps`."""

    steps: list[int] = dataclasses.field(default_factory=list)
    loss: list[float] = dataclasses.field(default_factory=list)
    bits: list[float] = dataclasses.field(default_factory=list)
    wrong: list[float] = dataclasses.field(default_factory=list)  # share of the sequences with an error
    sequences_per_second: float = 0.0

    def append(self, step: int, loss: float, bits: float, wrong: float) -> None:
        self.steps.append(step)
        self.loss.append(loss)
        self.bits.append(bits)
        self.wrong.append(wrong)


class Result(NamedTuple):
    """Of the trained network, on new sequences."""

    bits: float  # a sequence
    guessing: float  # what guessing would cost, in bits a sequence
    right: int  # sequences without an error
    sequences: int


class Speed(NamedTuple):
    """Sequences per second."""

    ours: Rate
    plain: Rate

    @property
    def ratio(self) -> float:
        return self.ours.median / self.plain.median


class Trace(NamedTuple):
    """One sequence of T steps."""

    input: Tensor  # [T,I]
    target: Tensor  # [T,O]
    output: Tensor  # [T,O]
    counts: Tensor  # [T], whether the output counts
    wrong: Tensor  # [T,O]
    num_words: int
    repeats: int
    memory: Tensor  # [T,N,W], after each step
    usage: Tensor  # [T,N]
    link: Tensor  # [T,V,N,N]
    write_weights: Tensor  # [T,V,N]
    read_weights: Tensor  # [T,R,N]

    @property
    def moments(self) -> list[str]:
        """What each step is."""
        words = [f"word {word + 1}" for word in range(self.num_words)]
        times = "once" if self.repeats == 1 else "twice" if self.repeats == 2 else f"{self.repeats} times"
        return ["start", *words, times, *words * self.repeats, "end"]


def print_tables(history: History, result: Result, speed: Speed, trained: str, timed: str) -> None:
    right = f"{result.right:,} of {result.sequences:,}"
    print(f"\nRepeat-copy, {trained}")
    print(f"{'training loss, as in pytorch-dnc':34}{history.loss[0]:>10.5f} at first, {history.loss[-1]:.5f} at the end")
    print(f"{'new sequences: bits a sequence':34}{result.bits:>10.4f} (guessing: {result.guessing:.1f})")
    print(f"{'new sequences without an error':34}{right:>10}")

    print(f"\nSequences per second, {timed}; median (quartiles)")
    print(f"{'routing_ext':34}{speed.ours!s:>30}")
    print(f"{'plain PyTorch':34}{speed.plain!s:>30}")
    print(f"{'ratio':34}{speed.ratio:>9.1f}x")
    print(
        f"Training as a whole, with drawing batches and optimiser: {history.sequences_per_second:,.0f} sequences per second\n"
    )


def draw_figure(trace: Trace, history: History, result: Result, speed: Speed, trained: str, timed: str) -> bytes:
    """A PNG."""
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(15.0, 9.6), dpi=140, facecolor="white")
        draw_trace(canvas, trace)
        left, width = 0.735, 0.25
        draw_bits(canvas.add_axes((left, 0.6, width, 0.29)), history, result)
        draw_errors(canvas.add_axes((left, 0.295, width, 0.15)), history, result)
        draw_speed(canvas.add_axes((left, 0.035, width, 0.1)), speed)
        for y, title, subtitle in (
            (0.955, "Cross-entropy, bits a sequence", trained),
            (0.51, "Sequences with an error, %", "in training, where each sequence is new"),
            (0.195, "Sequences per second", timed),
        ):
            write_title(canvas, left - 0.022, y, title, subtitle)
        png = io.BytesIO()
        canvas.savefig(png, format="png")
    return png.getvalue()


def write_title(canvas: Figure, x: float, y: float, title: str, subtitle: str) -> None:
    canvas.text(x, y, title, fontsize=13, weight="bold")
    canvas.text(x, y - 0.023, subtitle, fontsize=9.5, color=SOFT)


def draw_trace(canvas: Figure, trace: Trace) -> None:
    """Panels one above the other, which have a common time axis: a column is a step, and may hold a picture."""
    heads, locations, elements = trace.read_weights.shape[1], *trace.memory.shape[1:]
    one, signed = Normalize(0, 1), Normalize(-1, 1)  # -1 to 1 is what one write can leave
    shown = trace.input.clone()
    shown[:, -1] = shown[:, -1] > 0  # the number of repeats is written there
    by_location = f"{locations} locations"
    panels: list[tuple[str, str, Tensor, Colormap, Normalize, float]] = [
        ("hears", "bits, start, repeats", shown.unsqueeze(2), BITS, one, 7.2),
        ("should say", "bits, end", trace.target.unsqueeze(2), BITS, one, 6),
        ("says", "bits, end", trace.output.unsqueeze(2), BITS, one, 6),
        ("writes", by_location, trace.write_weights.mT, WEIGHTS, one, 9),
        ("reads", f"{by_location},\n{heads} heads side by side", trace.read_weights.mT, WEIGHTS, one, 9),
        ("in use", by_location, trace.usage.unsqueeze(2), WEIGHTS, one, 9),
        ("memory", f"{by_location}\nof {elements} elements", trace.memory, SIGNED, signed, 9),
        ("link", "row was written\nafter column", trace.link.sum(1), WEIGHTS, one, 9),
    ]
    left, width, top, bottom, gap = 0.105, 0.58, 0.86, 0.055, 0.012
    unit = (top - bottom - gap * (len(panels) - 1)) / sum(height for *_, height in panels)
    axes = {}
    for name, about, values, colours, scale, height in panels:
        top -= unit * height
        ax = axes[name] = canvas.add_axes((left, top, width, unit * height))
        draw_tiles(ax, values, colours, scale)
        if colours is BITS:
            ax.hlines(np.arange(values.size(1) - 1) + 0.5, -0.46, len(values) - 0.54, color="white", linewidth=1.5)
        x, y = -0.012, 0.5
        ax.text(x, y, name, transform=ax.transAxes, ha="right", va="bottom", fontsize=10.5, weight="bold")
        ax.text(x, y - 0.03, about, transform=ax.transAxes, ha="right", va="top", fontsize=8, color=SOFT)
        top -= gap

    steps, asked, last = len(trace.moments), trace.num_words + 1, trace.input.size(1) - 1
    number: dict[str, Any] = {"color": "white", "fontsize": 7.5, "weight": "bold"}
    axes["hears"].text(asked, last, f"{trace.repeats}x", ha="center", va="center", **number)
    for step, bit in trace.wrong.nonzero().tolist():
        axes["says"].plot(step, bit, marker="x", color=WRONG, markersize=8, markeredgewidth=2.5)
    for step in (~trace.counts).nonzero()[:, 0].tolist():  # whatever it says there, it is not asked
        axes["says"].add_patch(Rectangle((step - 0.5, -0.5), 1, trace.output.size(1), color="white", alpha=0.75, linewidth=0))
    for step, moment in enumerate(trace.moments):
        axes["hears"].annotate(moment, (step, -0.5), (0, 5), textcoords="offset points", ha="center", va="bottom", fontsize=10)
    for first, end, phase in ((0, asked + 1, "it hears"), (asked + 1, steps, "it says")):
        ends = [left + width * (first + 0.04) / steps, left + width * (end - 0.04) / steps]
        canvas.add_artist(Line2D(ends, [0.895, 0.895], color=MUTED, linewidth=1.2))
        canvas.text(sum(ends) / 2, 0.9, phase, color=SOFT, ha="center", va="bottom")
    about = f"{trace.num_words} words, to be said {trace.moments[asked]}. A column is a step, and shows what is there after it"
    write_title(canvas, 0.015, 0.955, "One sequence", about)
    draw_scales(canvas, left, width)


def draw_tiles(ax: Axes, values: Tensor, colours: Colormap, scale: Normalize) -> None:
    """``values [T,n,m]``: for each step a picture of n rows and m columns, in a column of its own."""
    steps, rows, _ = values.shape
    for step, picture in enumerate(values.numpy()):
        extent = (step - 0.46, step + 0.46, rows - 0.5, -0.5)
        ax.imshow(picture, cmap=colours, norm=scale, extent=extent, aspect="auto", interpolation="nearest")
        frame = Rectangle((step - 0.46, -0.5), 0.92, rows, fill=False, edgecolor=FAINT, linewidth=0.8, clip_on=False, zorder=3)
        ax.add_patch(frame)
    ax.set(xlim=(-0.5, steps - 0.5), ylim=(rows - 0.5, -0.5), xticks=(), yticks=())
    ax.spines[:].set_visible(False)


def draw_scales(canvas: Figure, left: float, width: float) -> None:
    """What the colours mean."""
    scales = (
        ("bits", BITS, "0", "1"),
        ("weights, use, link", WEIGHTS, "0", "1"),
        ("memory", SIGNED, "-1 or less", "1 or more"),
    )
    for i, (name, colours, low, high) in enumerate(scales):
        ax = canvas.add_axes((left + width * i / 3 + 0.085, 0.02, 0.06, 0.013))
        ax.imshow(np.linspace(0, 1, 64)[None], cmap=colours, aspect="auto")
        ax.set(xticks=(), yticks=())
        ax.spines[:].set(visible=True, color=FAINT)
        for x, align, text in ((-0.05, "right", f"{name}   {low}"), (1.05, "left", high)):
            ax.text(x, 0.45, text, transform=ax.transAxes, ha=align, va="center", fontsize=8.5, color=SOFT)


def draw_bits(ax: Axes, history: History, result: Result) -> None:
    floor = 1e-3
    ax.axhline(result.guessing, color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)))
    ax.plot(history.steps, np.maximum(history.bits, floor), color=OURS, linewidth=2.4)
    ax.set(xlim=(0, history.steps[-1]), ylim=(floor, 60), yscale="log", xlabel="training steps")
    ax.set_yticks([10, 1, 0.1, 0.01, 0.001], ["10", "1", "0.1", "0.01", "0.001"])
    ax.text(0.98 * history.steps[-1], 1.12 * result.guessing, "guessing", color=SOFT, ha="right", va="bottom", fontsize=9)
    bits = f"{result.bits:.3f}" if result.bits >= floor else f"under {floor}"
    place: dict[str, Any] = {"transform": ax.transAxes, "ha": "right", "va": "top"}
    ax.text(0.98, 0.68, f"afterwards: {bits}", color=OURS, weight="bold", **place)
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    ax.tick_params(length=0)
    ax.minorticks_off()


def draw_errors(ax: Axes, history: History, result: Result) -> None:
    ax.fill_between(history.steps, np.multiply(100, history.wrong), color=OURS, alpha=0.15, linewidth=0)
    ax.plot(history.steps, np.multiply(100, history.wrong), color=OURS, linewidth=2.0)
    text = f"afterwards: {result.sequences - result.right:,} of {result.sequences:,}"
    ax.text(0.98, 0.9, text, transform=ax.transAxes, color=OURS, weight="bold", ha="right", va="top")
    ax.set(xlim=(0, history.steps[-1]), ylim=(0, 103), xlabel="training steps")
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    ax.tick_params(length=0)


def draw_speed(ax: Axes, speed: Speed) -> None:
    """Bars of the medians, with lines from quartile to quartile."""
    bars = ((speed.ours, OURS, f"routing_ext, {speed.ratio:.1f}x"), (speed.plain, MUTED, "plain PyTorch"))
    for y, (rate, colour, text) in enumerate(bars):
        ax.barh(y, rate.median, color=colour, height=0.75)
        ax.plot([rate.low, rate.high], [y, y], color=INK, linewidth=1)
        weight = "bold" if colour == OURS else "normal"
        label = f"{rate.median:,.0f}  {text}"
        ax.annotate(label, (rate.high, y), (5, 0), textcoords="offset points", va="center", fontsize=9.5, weight=weight)
    ax.invert_yaxis()
    ax.set(xlim=(0, 2.2 * max(speed.ours.high, speed.plain.high)), xticks=(), yticks=())
    ax.spines[["left", "bottom"]].set_visible(False)
