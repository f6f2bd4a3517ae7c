"""The tables and the figure of routed_mnist.py."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

# Ten colours that stay apart under every common colour blindness (M. A. Petroff, 2021).
COLOURS = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
INK, SOFT, FAINT = "#22262b", "#6b7280", "#d9dce1"
OURS, OTHER, MUTED = "#0b7a75", "#7d8694", "#b4bac4"  # away from the colours of the tasks
HEIGHT, WIDEST_GAP = 20.0, 1.6  # of a column of modules; a ribbon is 1 wide

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


class Rate(NamedTuple):
    """Samples per second: the quartiles of many measurements."""

    low: float
    median: float
    high: float


class Speed(NamedTuple):
    """Of one network on one batch."""

    ours: Rate
    plain: Rate
    modules: int  # in use, in all layers

    @property
    def ratio(self) -> float:
        return self.ours.median / self.plain.median


class Curve(Protocol):
    """Test accuracy (0 to 1) after some of the training steps."""

    steps: list[int]
    test: list[float]


def print_tables(
    accuracies: Mapping[str, Tensor],
    routes: Tensor,
    num_modules: int,
    speeds: Mapping[str, Speed],
    training_rate: float,
    trained: str,
    timed: str,
) -> None:
    """``accuracies`` holds one row `[tasks]` for each kind of routes."""
    columns = ("all", "0-4", "5-9", *range(routes.size(1)))
    print(f"\nTest accuracy per task in % (mean of yes and no), {trained}")
    print(f"{'routes':24}" + "".join(f"{column:>6}" for column in columns))
    for name, row in accuracies.items():
        print(f"{name:24}" + "".join(f"{100 * a:6.1f}" for a in (row.mean(), row[:5].mean(), row[5:].mean(), *row)))
    used = ", ".join(str(len(layer.unique())) for layer in routes)
    print(f"Modules in use along the learned routes, layer by layer: {used} (of {num_modules} each)")

    print(f"\nSamples per second, {timed}; median (quartiles)")
    print(f"{'routes':24}{'modules':>7}{'routing_ext':>30}{'plain Python':>30}   ratio")
    for name, speed in speeds.items():
        rates = [f"{rate.median:,.0f} ({rate.low:,.0f} to {rate.high:,.0f})" for rate in (speed.ours, speed.plain)]
        print(f"{name.removesuffix(' routes'):24}{speed.modules:7}{rates[0]:>30}{rates[1]:>30}{speed.ratio:7.1f}x")
    print(f"Training as a whole, with drawing batches, policy and optimiser: {training_rate:,.0f} samples per second\n")


def draw_figure(
    curves: Mapping[str, Curve],
    accuracies: Mapping[str, Tensor],
    routes: Tensor,
    num_modules: int,
    icons: Tensor,
    speeds: Mapping[str, Speed],
    trained: str,
    timed: str,
) -> bytes:
    """A PNG. ``routes [layers, tasks]`` holds modules, ``icons [tasks, height, width]`` the picture of each task."""
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(12.6, 6.0), dpi=160, facecolor="white")
        left, right = canvas.add_axes((0.015, 0.02, 0.59, 0.84)), canvas.add_axes((0.665, 0.46, 0.31, 0.4))
        draw_routes(left, routes.numpy(), icons.numpy(), accuracies["learned"].tolist(), num_modules)
        draw_learning(right, curves, accuracies)
        draw_speed(canvas.add_axes((0.73, 0.03, 0.265, 0.215)), speeds)
        for x, y, title, subtitle in (
            (0.03, 0.945, "The routes that it learned", "A ribbon is a task, a black box a module; tasks in one box share it"),
            (0.635, 0.945, "Accuracy on test images, %", trained),
            (0.635, 0.325, "Thousand samples per second", timed),
        ):
            canvas.text(x, y, title, fontsize=13, weight="bold")
            canvas.text(x, y - 0.037, subtitle, fontsize=9.5, color=SOFT)
        png = io.BytesIO()
        canvas.savefig(png, format="png")
    return png.getvalue()


def arrange(routes: np.ndarray, tries: int = 400) -> list[list[int]]:
    """The tasks in the order of each column (their pictures, then each layer), so that few ribbons cross."""
    rng, tasks = random.Random(0), list(range(routes.shape[1]))
    best, fewest = [tasks] * (len(routes) + 1), len(tasks) ** 3
    for _ in range(tries):
        columns = [rng.sample(tasks, len(tasks))]
        for modules in (*routes, *routes[::-1], *routes):
            place = {task: i for i, task in enumerate(columns[-1])}
            centre = {m: np.mean([place[t] for t in tasks if modules[t] == m]) for m in modules}
            columns.append(sorted(tasks, key=lambda t: (centre[modules[t]], modules[t], place[t])))
        columns = [columns[-len(routes)], *columns[-len(routes) :]]
        columns[0] = sorted(tasks, key=lambda t: columns[1].index(t))
        crossings = 0
        for left, right in pairwise(columns):
            places = [right.index(task) for task in left]
            crossings += sum(a > b for i, a in enumerate(places) for b in places[i + 1 :])
        if crossings < fewest:
            best, fewest = columns, crossings
    return best


def stack(order: Sequence[int], modules: Sequence[int]) -> dict[int, float]:
    """The height of each task's ribbon in a column: side by side within a module, with gaps between modules."""
    switches = sum(modules[a] != modules[b] for a, b in pairwise(order))
    gap = min(WIDEST_GAP, (HEIGHT - len(order)) / max(1, switches))
    heights, y = {}, (len(order) + gap * switches) / 2 - 0.5
    for i, task in enumerate(order):
        if i > 0:
            y -= 1 if modules[task] == modules[order[i - 1]] else 1 + gap
        heights[task] = y
    return heights


def draw_routes(ax: Axes, routes: np.ndarray, icons: np.ndarray, accuracies: Sequence[float], num_modules: int) -> None:
    """Ribbons from the picture of each task through its module in each layer to its accuracy."""
    orders, num_tasks = arrange(routes), routes.shape[1]
    each = list(range(num_tasks))
    columns = [stack(orders[0], each), *map(stack, orders[1:], routes), stack(orders[-1], each)]
    x, node = np.linspace(0, len(columns) - 1, 100 * (len(columns) - 1) + 1), 0.13
    for task in range(num_tasks):
        left = np.minimum(x.astype(int), len(columns) - 2)
        t = np.clip((x - left - node) / (1 - 2 * node), 0, 1)
        heights = np.array([column[task] for column in columns])
        y = heights[left] + (heights[left + 1] - heights[left]) * t * t * (3 - 2 * t)
        ax.fill_between(x, y - 0.46, y + 0.46, color=COLOURS[task % len(COLOURS)], alpha=0.85, linewidth=0)

    shape = f"round,pad=0,rounding_size={node / 2}"
    for c, modules in enumerate(routes, start=1):
        for m in set(modules.tolist()):
            ys = [columns[c][t] for t in each if modules[t] == m]
            low, height = min(ys) - 0.5, max(ys) - min(ys) + 1
            box = FancyBboxPatch((c - node / 2, low), node, height, shape, mutation_aspect=4, facecolor=INK, edgecolor="white")
            ax.add_patch(box)
            ax.text(c, low + height / 2 - 0.04, str(m), color="white", ha="center", va="center", fontsize=8.5, weight="bold")
    for task in range(num_tasks):
        image = OffsetImage(icons[task], cmap="gray_r", zoom=24 / icons.shape[1], interpolation="bicubic")
        ax.add_artist(AnnotationBbox(image, (-0.14, columns[0][task]), frameon=False))
        ax.text(len(routes) + 1.05, columns[-1][task], f"{100 * accuracies[task]:.1f} %", va="center", fontsize=10)

    heads = [(-0.22, "left", "task", "is it a ...?"), (len(routes) + 1, "left", "accuracy", "on test images")]
    for c, modules in enumerate(routes, start=1):
        heads.append((c, "center", f"layer {c}", f"{len(set(modules.tolist()))} of {num_modules} modules"))
    for place, align, head, text in heads:
        ax.text(place, HEIGHT / 2 + 1.55, head, ha=align, fontsize=10, weight="bold")
        ax.text(place, HEIGHT / 2 + 0.75, text, ha=align, fontsize=9, color=SOFT)
    ax.set(xlim=(-0.32, len(routes) + 1.45), ylim=(-HEIGHT / 2 - 0.3, HEIGHT / 2 + 2.2))
    ax.axis("off")


def draw_learning(ax: Axes, curves: Mapping[str, Curve], accuracies: Mapping[str, Tensor]) -> None:
    """Test accuracy over training steps, the lines named in their colours."""
    learned, fixed = curves["learned"], curves["random, one per task"]
    chance = 100 * float(accuracies["random, one per sample"].mean())
    ax.axhline(chance, color=OTHER, linewidth=1.2, linestyle=(0, (4, 3)))
    ax.plot(fixed.steps, np.multiply(100, fixed.test), color=OTHER, linewidth=1.4)
    ax.plot(learned.steps, np.multiply(100, learned.test), color=OURS, linewidth=2.6)
    labels = (
        (82, OURS, f"learned routes: {100 * learned.test[-1]:.1f}"),
        (75, OTHER, f"fixed random routes, one per task: {100 * fixed.test[-1]:.1f}"),
        (chance + 2.5, OTHER, f"random routes, one per sample: {chance:.1f}"),
    )
    for y, colour, text in labels:
        ax.text(0.98 * learned.steps[-1], y, text, color=colour, ha="right", weight="bold" if colour == OURS else "normal")
    ax.set(xlim=(0, learned.steps[-1]), ylim=(45, 101), xlabel="training steps")
    ax.grid(axis="y", color=FAINT, linewidth=0.6)
    ax.tick_params(length=0)


def draw_speed(ax: Axes, speeds: Mapping[str, Speed]) -> None:
    """Bars of the medians, with lines from quartile to quartile."""
    for group, speed in enumerate(speeds.values()):
        bars = ((speed.ours, OURS, f"routing_ext, {speed.ratio:.1f}x"), (speed.plain, MUTED, "plain Python"))
        for y, (rate, colour, text) in zip((2.5 * group, 2.5 * group + 1), bars, strict=True):
            ax.barh(y, rate.median / 1e3, color=colour, height=0.8)
            ax.plot([rate.low / 1e3, rate.high / 1e3], [y, y], color=INK, linewidth=1)
            end, weight = (rate.high / 1e3, y), "bold" if colour == OURS else "normal"
            label = f"{rate.median / 1e3:,.0f}  {text}"
            ax.annotate(label, end, (5, 0), textcoords="offset points", va="center", fontsize=9.5, weight=weight)
    ax.set_yticks([2.5 * group + 0.5 for group in range(len(speeds))], list(speeds), color=INK)
    ax.invert_yaxis()
    ax.set(xlim=(0, 2.1 * max(speed.ours.high for speed in speeds.values()) / 1e3), xticks=())
    ax.tick_params(length=0)
    ax.spines[["left", "bottom"]].set_visible(False)
