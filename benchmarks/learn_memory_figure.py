"""The figure of learn_memory.py: losses of the reference and of ours, copying while it is learned, and how far it reaches."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.learn_routing_figure import FAINT, INK, SIDES, SOFT
from benchmarks.results import Results, Row

VARIANTS = {"free gates": "#0072b2", "no free gates": "#d55e00"}


def part_of(study: Results, part: str, **like: Any) -> list[Row]:
    """The rows of a part of the study, of one side or variant."""
    return [row for row in study["rows"] if row["part"] == part and all(row[key] == value for key, value in like.items())]


def median_and_spread(columns: Sequence[Sequence[float]]) -> tuple[list[float], list[float], list[float]]:
    """Lowest, median and highest of the seeds, at each of some points."""
    points = list(zip(*columns, strict=True))
    return [min(p) for p in points], [statistics.median(p) for p in points], [max(p) for p in points]


def draw(path: Path, study: Results, digest: str) -> None:
    """Four panels; lines are medians over the seeds, bands all seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: Any = {"font.size": 10, "text.color": INK, "axes.edgecolor": FAINT, "axes.labelcolor": SOFT, "xtick.color": SOFT}
    with matplotlib.rc_context({**style, "ytick.color": SOFT, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(2, 2, figsize=(11, 7.4))
        for ax, panel in zip(axes.flat, (losses, learning, lengths, repeats), strict=True):
            panel(ax, study)
            ax.grid(axis="y", color=FAINT, linewidth=0.6)
            ax.set_axisbelow(True)
            ax.tick_params(length=0)
        figure.tight_layout(w_pad=2.5, h_pad=2.0)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Description": digest})
        plt.close(figure)


def title(ax: Any, text: str, **labels: str) -> None:
    ax.set_title(text, fontsize=12, weight="bold", loc="left")
    ax.set(**labels)


def line(ax: Any, x: Sequence[float], columns: Sequence[Sequence[float]], colour: str, width: float, name: str) -> None:
    low, median, high = median_and_spread(columns)
    ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    ax.plot(x, median, "o-" if len(x) < 10 else "-", markersize=4, color=colour, linewidth=width, label=name)


def losses(ax: Any, study: Results) -> None:
    for side, (colour, width, name) in SIDES.items():
        rows = part_of(study, "repeat-copy", side=side)
        if rows:
            line(ax, rows[0]["steps"], [[1000 * loss for loss in row["losses"]] for row in rows], colour, width, name)
    title(ax, "DNC, repeat-copy: as in the reference", xlabel="training steps", ylabel="loss, thousandths")
    ax.legend(frameon=False)


def learning(ax: Any, study: Results) -> None:
    for row in part_of(study, "copy"):
        thousands = [n / 1000 for n in row["sequences"]]
        ax.plot(thousands, row["bits_per_bit"], color=SIDES["ours"][0], linewidth=1, alpha=0.7)
    ax.axhline(0.01, color=SOFT, linestyle="--", linewidth=1)
    ax.set_yscale("log")
    title(ax, "NTM, copy: each seed", xlabel="thousands of sequences", ylabel="bits for each bit")


def lengths(ax: Any, study: Results) -> None:
    rows = part_of(study, "copy")
    words = [test["max_num_words"] for test in rows[0]["tests"]]
    wrong = [[100 * test["wrong_bits"] for test in row["tests"]] for row in rows]
    line(ax, words, wrong, SIDES["ours"][0], 1.8, "")
    ax.axvspan(*study["trained"]["copy"], color=FAINT, alpha=0.6, linewidth=0)
    title(ax, "NTM, copy: more words than in training", xlabel="words", ylabel="wrong bits, %")
    ax.set_xlim(0, None)


def repeats(ax: Any, study: Results) -> None:
    for variant, colour in VARIANTS.items():
        rows = part_of(study, "free gates", variant=variant)
        least = rows[0]["tests"][0]["max_num_words"]
        chosen = [i for i, test in enumerate(rows[0]["tests"]) if test["max_num_words"] == least]
        x = [rows[0]["tests"][i]["max_repeats"] for i in chosen]
        line(ax, x, [[100 * row["tests"][i]["wrong_bits"] for i in chosen] for row in rows], colour, 1.8, variant)
    ax.axvspan(*study["trained"]["free gates"], color=FAINT, alpha=0.6, linewidth=0)
    title(ax, "DNC, repeat-copy: more repeats than in training", xlabel="repeats", ylabel="wrong bits, %")
    ax.set_xlim(0, None)
    ax.legend(frameon=False)
