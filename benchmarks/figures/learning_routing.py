"""The figure of learn_routing.py: test accuracy against training steps and against time, of the reference and of ours."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.results import Results, Row

SIDES = {"reference": ("#e69f00", 5.0, "the reference"), "ours": ("#0072b2", 1.8, "routing_ext")}  # colour, width, name
INK, SOFT, FAINT = "#22262b", "#6b7280", "#d9dce1"


def curves(study: Results, method: str, side: str) -> list[Row]:
    return [row for row in study["rows"] if (row["method"], row["side"]) == (method, side)]


def spread(rows: Sequence[Row], key: str) -> tuple[list[float], list[float], list[float]]:
    """Lowest, median and highest of the seeds, at each evaluation."""
    columns = list(zip(*(row[key] for row in rows), strict=True))
    return [min(c) for c in columns], [statistics.median(c) for c in columns], [max(c) for c in columns]


def draw(path: Path, study: Results, digest: str) -> None:
    """A row of panels against training steps, and one against seconds; lines are medians over the seeds, bands all seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    style: Any = {"font.size": 10, "text.color": INK, "axes.edgecolor": FAINT, "axes.labelcolor": SOFT, "xtick.color": SOFT}
    methods = list(dict.fromkeys(row["method"] for row in study["rows"]))
    with matplotlib.rc_context({**style, "ytick.color": SOFT, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(2, len(methods), figsize=(4.1 * len(methods), 6.2), sharey=True, sharex="row")
        for column, method in enumerate(methods):
            for ax, key in zip(axes[:, column], ("steps", "seconds"), strict=True):
                for side, (colour, width, _) in SIDES.items():
                    rows = curves(study, method, side)
                    if rows:
                        draw_curve(ax, rows, key, colour, width if key == "steps" else 2.2)
                ax.grid(axis="y", color=FAINT, linewidth=0.6)
                ax.set_axisbelow(True)
                ax.tick_params(length=0)
            axes[0, column].set_title(method, fontsize=12, weight="bold", loc="left")
            axes[0, column].set_xlabel("training steps")
            axes[1, column].set_xlabel("seconds of training")
        for ax in axes[:, 0]:
            ax.set_ylabel("accuracy on test images, %")
        axes[0, 0].set(ylim=(45, 100), xlim=(0, None))
        axes[1, 0].set_xscale("log")
        axes[1, 0].minorticks_off()
        axes[1, 0].xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda v, _: f"{v:g}"))
        name_sides(axes[0, -1], study, methods[-1])
        figure.tight_layout(w_pad=2.5, h_pad=2.0)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150, metadata={"Description": digest})
        plt.close(figure)


def draw_curve(ax: Any, rows: Sequence[Row], key: str, colour: str, width: float) -> None:
    low, median, high = ([100 * a for a in part] for part in spread(rows, "accuracy"))
    _, x, _ = spread(rows, key)
    begin = 0 if key == "steps" else 1  # 0 seconds have no place on a logarithmic axis
    ax.fill_between(x[begin:], low[begin:], high[begin:], color=colour, alpha=0.18, linewidth=0)
    ax.plot(x[begin:], median[begin:], color=colour, linewidth=width, solid_capstyle="round")


def name_sides(ax: Any, study: Results, method: str) -> None:
    """In place of a legend."""
    named = [side for side in SIDES if curves(study, method, side)]
    for i, side in enumerate(named):
        colour, width, name = SIDES[side]
        y = 0.12 + 0.11 * (len(named) - 1 - i)
        ax.plot([0.5, 0.58], [y, y], color=colour, linewidth=width, transform=ax.transAxes, solid_capstyle="round")
        ax.text(0.62, y, name, color=INK, va="center", transform=ax.transAxes)
