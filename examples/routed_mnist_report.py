"""The tables and the figure of routed_mnist.py."""

from __future__ import annotations

import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from demo_tools import FAINT, INK, MUTED, OTHER, OURS, SOFT, STYLE
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import FancyBboxPatch
from torch import Tensor

from routing_ext.cli.bench import Rate

# Ten colours that stay apart under every common colour blindness (M. A. Petroff, 2021).
COLOURS = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
WIDE, HIGH = 12.6, 10.9  # of the figure, inches
HEIGHT, WIDEST_GAP = 20.0, 1.6  # of a column of modules; a ribbon is 1 wide


class Speed(NamedTuple):
    """Of one network on one batch."""

    ours: Rate
    plain: Rate
    modules: int  # in use, in all layers

    @property
    def ratio(self) -> float:
        return self.ours.median / self.plain.median


@dataclass
class Curve:
    """What happened in training, after some of its steps."""

    steps: list[int] = field(default_factory=list)
    test: list[float] = field(default_factory=list)  # accuracy, the mean of all tasks
    chosen: list[Tensor] = field(default_factory=list)  # [layers, tasks, modules]: samples since the last entry
    samples_per_second: float = 0.0  # of training as a whole


class Findings(NamedTuple):
    """What the demo reports. Curves, accuracies and speeds have the kind of routes for key."""

    curves: Mapping[str, Curve]
    accuracies: Mapping[str, Tensor]  # [tasks]
    routes: Tensor  # [layers, tasks]: modules
    icons: Tensor  # [tasks, height, width]: a picture of each task
    speeds: Mapping[str, Speed]
    trained: str  # in words, how
    timed: str

    @property
    def num_modules(self) -> int:
        return self.curves["learned"].chosen[0].size(-1)


def print_tables(found: Findings) -> None:
    columns = ("all", "0-4", "5-9", *range(found.routes.size(1)))
    print(f"\nTest accuracy per task in %, {found.trained}")
    print(f"{'routes':24}" + "".join(f"{column:>6}" for column in columns))
    for name, row in found.accuracies.items():
        print(f"{name:24}" + "".join(f"{100 * a:6.1f}" for a in (row.mean(), row[:5].mean(), row[5:].mean(), *row)))
    used = ", ".join(str(len(layer.unique())) for layer in found.routes)
    print(f"Modules in use along the learned routes, layer by layer: {used} (of {found.num_modules} each)")

    print(f"\nSamples per second, {found.timed}; median (quartiles)")
    print(f"{'routes':24}{'modules':>7}{'routing_ext':>30}{'plain Python':>30}   ratio")
    for name, speed in found.speeds.items():
        rates = f"{speed.ours!s:>30}{speed.plain!s:>30}"
        print(f"{name.removesuffix(' routes'):24}{speed.modules:7}{rates}{speed.ratio:7.1f}x")
    rate = found.curves["learned"].samples_per_second
    print(f"Training as a whole, with drawing batches, decisions, their loss and optimiser: {rate:,.0f} samples per second\n")


def draw_figure(found: Findings) -> bytes:
    """A PNG."""
    with matplotlib.rc_context(STYLE):
        canvas = Figure(figsize=(WIDE, HIGH), dpi=160, facecolor="white")
        order = draw_routes(axes(canvas, 0.19, 4.95, 7.43, 5.05), found)
        draw_learning(axes(canvas, 8.38, 7.65, 3.9, 2.35), found)
        draw_speed(axes(canvas, 9.2, 5.03, 3.34, 1.3), found.speeds)
        draw_choices(canvas, found, order)
        draw_scale(axes(canvas, 10.5, 4.34, 1.65, 0.13))
        for x, y, title, subtitle in (
            (0.38, 10.52, "The routes that it learned", "A ribbon is a task, a black box a module; tasks in one box share it"),
            (8.0, 10.52, "Accuracy on test images, %", found.trained),
            (8.0, 6.78, "Thousand samples per second", found.timed),
            (0.38, 4.5, "How it came to choose them", "The share of a task's samples that each module got, at three times"),
        ):
            canvas.text(x / WIDE, y / HIGH, title, fontsize=13, weight="bold")
            canvas.text(x / WIDE, (y - 0.225) / HIGH, subtitle, fontsize=9.5, color=SOFT)
        png = io.BytesIO()
        canvas.savefig(png, format="png")
    return png.getvalue()


def axes(canvas: Figure, x: float, y: float, width: float, height: float) -> Axes:
    """At a place in inches from the lower left corner."""
    return canvas.add_axes((x / WIDE, y / HIGH, width / WIDE, height / HIGH))


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


def draw_routes(ax: Axes, found: Findings) -> list[int]:
    """Ribbons from each task's picture through its module in each layer to its accuracy. Returns the order of the tasks."""
    routes, icons, accuracies = found.routes.numpy(), found.icons.numpy(), found.accuracies["learned"].tolist()
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
        heads.append((c, "center", f"layer {c}", f"{len(set(modules.tolist()))} of {found.num_modules} modules"))
    for place, align, head, text in heads:
        ax.text(place, HEIGHT / 2 + 1.55, head, ha=align, fontsize=10, weight="bold")
        ax.text(place, HEIGHT / 2 + 0.75, text, ha=align, fontsize=9, color=SOFT)
    ax.set(xlim=(-0.32, len(routes) + 1.45), ylim=(-HEIGHT / 2 - 0.3, HEIGHT / 2 + 2.2))
    ax.axis("off")
    return orders[0]


def draw_learning(ax: Axes, found: Findings) -> None:
    """Test accuracy over training steps, the lines named in their colours."""
    learned, fixed = found.curves["learned"], found.curves["random, one per task"]
    chance = 100 * float(found.accuracies["random, one per sample"].mean())
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


def draw_choices(canvas: Figure, found: Findings, order: Sequence[int]) -> None:
    """Heat maps [tasks, modules] of each layer, for three moments of training; a cell has its task's colour."""
    curve, steps = found.curves["learned"], [0, *found.curves["learned"].steps]
    colours = np.array([to_rgb(COLOURS[task % len(COLOURS)]) for task in order])[:, None]
    last, some = len(curve.steps), max(1, len(curve.steps) // 30)
    moments = ((0, 1), (some, 2 * some), (last - some, last))
    x, y, width, height = 1.55, 0.5, 3.4, 1.05
    for row, (begin, end) in enumerate(reversed(moments)):
        counts = torch.stack(curve.chosen[begin:end]).sum(0)[:, order]
        shares = (counts / counts.sum(2, keepdim=True).clamp(min=1)).numpy()
        bottom = y + row * (height + 0.15)
        place = 0.38 / WIDE, (bottom + height / 2) / HIGH
        canvas.text(*place, f"steps {steps[begin] + 1:,}\nto {steps[end]:,}", va="center", color=SOFT)
        for layer, share in enumerate(shares):
            ax = axes(canvas, x + layer * (width + 0.3), bottom, width, height)
            ax.pcolormesh(1 - visible(share[:, :, None]) * (1 - colours), edgecolors=FAINT, linewidth=0.4)
            ax.invert_yaxis()
            ax.set_yticks(np.arange(len(order)) + 0.5, [str(task) for task in order], fontsize=7.5)
            used = found.routes[layer].unique()
            ax.set_xticks(used + 0.5, [str(int(module)) if row == 0 else "" for module in used], fontsize=8)
            ax.tick_params(length=0, pad=2)
            ax.spines[:].set_visible(False)
            if layer == 0:
                ax.set_ylabel("task", fontsize=8)
            if row == 0:
                ax.set_xlabel("module", fontsize=8, labelpad=1)
            if row == len(moments) - 1:
                ax.set_title(f"layer {layer + 1}", fontsize=10, weight="bold", pad=5)


def visible(share: np.ndarray) -> np.ndarray:
    """How strong the colour of a cell is; rare choices are to be seen, too."""
    return share**0.6


def draw_scale(ax: Axes) -> None:
    """The key of the heat maps."""
    ax.imshow(1 - visible(np.linspace(0, 1, 256))[None], cmap="gray", vmin=-0.2, vmax=1, aspect="auto", extent=(0, 100, 0, 1))
    ax.set(yticks=(), xticks=(0, 25, 50, 100))
    ax.set_xticklabels(["0", "25", "50", "100 %"], fontsize=8)
    ax.tick_params(length=0, pad=2)
    ax.spines[:].set_visible(True)


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
