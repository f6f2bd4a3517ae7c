"""The figure of per-sample dispatch: how many times faster than the plain-Python loop, by batch size."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.results import Results
from benchmarks.tables.cells import rows_of, shape, side_of


def name_of(slug: str) -> str:
    return f"benchmarks-{slug}.png"


def points_of(machine: Results) -> dict[str, dict[int, list[tuple[int, float]]]]:
    """``{title: {K: [(B, speed-up)]}}`` of grouped_linear, forward and backward, float32, one thread."""
    rows = [r for r in rows_of(machine, "grouped_linear", 1) if r["case"]["backward"] and r["case"]["dtype"] == "float32"]
    rows.sort(key=lambda r: (r["case"]["d"], r["case"]["K"], r["case"]["B"]))
    return {
        title: {
            k: [(r["case"]["B"], side_of(r, "reference")[1]["ratio"][0]) for r in line]  # type: ignore[index]
            for k, line in groupby(panel, key=lambda r: r["case"]["K"])
        }
        for title, panel in groupby(rows, key=lambda r: shape(r["case"]))
    }


def draw(path: Path, panels: Any, digest: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.5 * len(panels), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    colours = dict(
        zip(
            sorted({k for lines in panels.values() for k in lines}), ("#0072b2", "#d55e00", "#009e73", "#cc79a7"), strict=False
        )
    )
    for ax, (title, lines) in zip(axes[0], panels.items(), strict=True):
        for k, points in lines.items():
            ax.plot(*zip(*points, strict=True), marker="o", color=colours[k], label=f"K = {k}")
        ax.axhline(1, color="0.3", linestyle="--", linewidth=1)
        ax.text(0.98, 0.96, "plain-Python loop", transform=ax.get_yaxis_transform(), color="0.3", ha="right", va="top")
        batches = sorted({b for points in lines.values() for b, _ in points})
        ax.set(xscale="log", yscale="log", title=title, xlabel="batch size B")
        ax.set_xticks(batches, [f"{b:,}" for b in batches])
        ax.minorticks_off()
        ax.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda v, _: f"{v:g}x"))
        ax.grid(alpha=0.3)
        ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.97))
    axes[0][0].set_ylabel("times faster, forward + backward")
    axes[0][0].set_ylim(bottom=min(0.7, axes[0][0].get_ylim()[0]))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Description": digest})
    plt.close(figure)
