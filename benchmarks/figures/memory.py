"""The figure of bench_memory_scaling.py: time of a step against memory and sequence, and the peak of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.results import Results

PANELS = {
    "N": ("locations N", "µs of a step, forward + backward"),
    "T": ("steps T", "µs of a step, forward + backward"),
    "peak": ("steps T", "peak of memory, MB"),
}
COLOURS = {"unroll": "#0072b2", "plain PyTorch": "#d55e00", "floor": "0.4"}
FAINT = 0.4

Curves = dict[str, list[tuple[int, float]]]


def name_of(slug: str) -> str:
    return f"memory-speed-{slug}.png"


def points_of(machine: Results) -> dict[str, dict[str, Curves]]:
    """``{model: {panel: {curve: [(N or T, µs or MB)]}}}``."""
    found: dict[str, dict[str, Curves]] = {}
    rows = [r for r in machine["rows"] if r["bench"] == "memory_scaling"]
    for r in sorted(rows, key=lambda r: (r["case"]["model"], r["threads"], r["position"])):
        case, panel = r["case"], r["case"]["name"]
        values = [(panel, name, side["us"][1] / case["T"]) for name, side in r["sides"].items()]
        values += [(panel, "floor", r["floor_us"] / case["T"])]
        values += [("peak", name, peak / 1e6) for name, peak in r["peak_bytes"].items()]
        panels = found.setdefault(case["model"], {})
        for panel, name, value in values:
            curve = f"{name}, {r['threads']} thread{'s' if r['threads'] > 1 else ''}"
            panels.setdefault(panel, {}).setdefault(curve, []).append((case["N" if panel == "N" else "T"], value))
    return found


def draw(path: Path, models: dict[str, dict[str, Curves]], digest: str) -> None:
    """A row of panels for each model; curves of one thread are faint."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(models), len(PANELS), figsize=(13.5, 3.6 * len(models)), squeeze=False, layout="constrained"
    )
    handles: dict[str, Any] = {}
    for row, (model, panels) in zip(axes, models.items(), strict=True):
        for ax, (panel, (xlabel, ylabel)) in zip(row, PANELS.items(), strict=True):
            curves = panels.get(panel, {})
            for curve, points in curves.items():
                form, threads = curve.split(", ")
                style = {"color": COLOURS[form], "alpha": FAINT if threads == "1 thread" else 1.0}
                (handles[curve],) = ax.plot(
                    *zip(*points, strict=True), "--" if form == "floor" else "o-", markersize=4, **style
                )
            ticks = sorted({x for points in curves.values() for x, _ in points})
            ax.set(xscale="log", yscale="log", title=model.upper(), xlabel=xlabel, ylabel=ylabel)
            ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
            ax.minorticks_off()
            ax.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda v, _: f"{v:g}"))
            ax.grid(alpha=0.3)
    names = sorted(handles)
    figure.legend([handles[n] for n in names], names, loc="outside lower center", ncols=len(names), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Description": digest})
    plt.close(figure)
