"""The figure of learn_memory.py: losses of the reference and of ours, copying while it is learned, and how far it reaches."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures.learning_routing import FAINT, INK, SIDES, SOFT
from benchmarks.results import Results, Row

COLOURS = ("#009e73", "#0072b2", "#d55e00")  # of variants


def part_of(study: Results, part: str) -> dict[str, list[Row]]:
    """The rows of a part of the study, by variant."""
    rows = [row for row in study["rows"] if row["part"] == part]
    return {variant: [r for r in rows if r["variant"] == variant] for variant in dict.fromkeys(r["variant"] for r in rows)}


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
            ax.minorticks_off()
            ax.tick_params(length=0)
        figure.tight_layout(w_pad=2.5, h_pad=2.0)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, metadata={"Description": digest})
        plt.close(figure)


def finish(ax: Any, text: str, variants: str | None = None, **labels: str) -> None:
    """Title, labels, and a legend, if there is something to be told; `variants` says what they are of."""
    ax.set_title(text, fontsize=12, weight="bold", loc="left")
    ax.set(**labels)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, title=variants, alignment="left")


def line(ax: Any, x: Sequence[float], columns: Sequence[Sequence[float]], colour: str, width: float, name: str) -> None:
    low, median, high = median_and_spread(columns)
    ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    ax.plot(x, median, "o-" if len(x) < 10 else "-", markersize=4, color=colour, linewidth=width, label=name)


def losses(ax: Any, study: Results) -> None:
    rows_of = part_of(study, "repeat-copy")
    for side, (colour, width, name) in SIDES.items():
        if side in rows_of:
            curves = [row["curve"] for row in rows_of[side]]
            line(ax, curves[0]["steps"], [[1000 * loss for loss in curve["losses"]] for curve in curves], colour, width, name)
    finish(ax, "DNC, repeat-copy: as in the reference", xlabel="training steps", ylabel="loss, thousandths")


def learning(ax: Any, study: Results) -> None:
    for (variant, rows), colour in zip(part_of(study, "copy").items(), COLOURS, strict=False):
        for i, row in enumerate(rows):
            thousands = [n / 1000 for n in row["sequences"]]
            ax.plot(thousands, row["bits_per_bit"], color=colour, linewidth=1, alpha=0.7, label="" if i else variant)
    ax.axhline(0.01, color=SOFT, linestyle="--", linewidth=1)
    ax.set(xscale="log", yscale="log")
    ax.xaxis.set_major_formatter("{x:g}")
    finish(ax, "NTM, copy: each seed", xlabel="thousands of sequences", ylabel="bits for each bit")


def lengths(ax: Any, study: Results) -> None:
    for (variant, rows), colour in zip(part_of(study, "copy").items(), COLOURS, strict=False):
        words = [test["max_num_words"] for test in rows[0]["tests"]]
        wrong = [[100 * test["wrong_bits"] for test in row["tests"]] for row in rows]
        line(ax, words, wrong, colour, 1.8, variant)
    ax.axvspan(*study["trained"]["copy"], color=FAINT, alpha=0.6, linewidth=0)
    finish(ax, "NTM, copy: more words than in training", xlabel="words", ylabel="wrong bits, %")
    ax.set_xlim(0, None)


def repeats(ax: Any, study: Results) -> None:
    for (variant, rows), colour in zip(part_of(study, "de-allocation").items(), COLOURS, strict=False):
        least = rows[0]["tests"][0]["max_num_words"]
        chosen = [i for i, test in enumerate(rows[0]["tests"]) if test["max_num_words"] == least]
        x = [rows[0]["tests"][i]["max_repeats"] for i in chosen]
        line(ax, x, [[100 * row["tests"][i]["wrong_bits"] for i in chosen] for row in rows], colour, 1.8, variant)
    ax.axvspan(*study["trained"]["de-allocation"], color=FAINT, alpha=0.6, linewidth=0)
    about = "DNC, repeat-copy: more repeats than in training"
    finish(ax, about, variants="de-allocation", xlabel="repeats", ylabel="wrong bits, %")
    ax.set_xlim(0, None)
