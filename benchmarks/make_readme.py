"""Writes the tables of README.md and docs/benchmarks.md, and the figures, from benchmarks/results/*.json.

    python -m benchmarks.make_readme [--check]

A table stands between ``<!-- benchmark:NAME -->`` and ``<!-- /benchmark -->``. ``--check`` writes nothing, and fails if a
table or a figure is not what the results give.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.results import Results, Row

ROOT = Path(__file__).parent.parent
FIGURES = Path("docs/assets")
NOISY = 0.1  # as in measure.py, which needs torch
NO_RESULTS = "*No results yet: `python -m benchmarks.run` measures them.*"


# Rows ------------------------------------------------------------------------------------------------------------------------


def rows_of(machine: Results, bench: str, threads: int | None = None) -> list[Row]:
    return [r for r in machine["rows"] if r["bench"] == bench and threads in (None, r["threads"])]


def side_of(row: Row, kind: str) -> tuple[str, dict[str, Any]] | None:
    """The fastest of a kind."""
    sides = [(name, side) for name, side in row["sides"].items() if side["kind"] == kind]
    return min(sides, key=lambda side: side[1]["us"][1]) if sides else None


def median_of(row: Row, kind: str) -> float:
    found = side_of(row, kind)
    assert found is not None, f"{row['id']} has no {kind}"
    return found[1]["us"][1]  # type: ignore[no-any-return]


# Cells -----------------------------------------------------------------------------------------------------------------------


def time(us: float) -> str:
    """Three digits and a unit."""
    value, unit = (us, "µs") if us < 1000 else (us / 1000, "ms") if us < 1e6 else (us / 1e6, "s")
    return f"{number(value)} {unit}"


def number(value: float) -> str:
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{digits}f}"


def timed(side: dict[str, Any]) -> str:
    q1, median, q3 = side["us"]
    return f"{time(median)} <small>{time(q1)}-{time(q3)}</small>"


def times_faster(side: dict[str, Any], spread: bool = False) -> str:
    ratio, q1, q3 = side["ratio"]
    text = f"{number(ratio)}x"
    return f"{text} <small>{number(q1)}-{number(q3)}</small>" if spread else text


def compared(row: Row, kind: str) -> str:
    found = side_of(row, kind)
    return "-" if found is None else f"{timed(found[1])} = {times_faster(found[1])}"


def best_torch(row: Row) -> str:
    found = side_of(row, "torch")
    if found is None:
        return "-"
    name, side = found
    return f"{times_faster(side)} {name}{' †' if side.get('zero_gradients') else ''}"


def of_floor(row: Row, kind: str) -> str:
    return f"{row['floor_us'] / median_of(row, kind):.0%}" if "floor_us" in row else "-"


def flags(row: Row) -> str:
    return " ⚠" if row["noise"] >= NOISY else ""


def shape(case: dict[str, Any]) -> str:
    return f"{case['d']}→{case['o']}"


def table(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, [":--" if i == 0 else "--:" for i in range(len(head))], *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


# Blocks ----------------------------------------------------------------------------------------------------------------------


def conditions(machine: Results, rows: list[Row]) -> str:
    m, dates = machine["machine"], sorted({r["date"] for r in rows})
    when = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return (
        f"{m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB; {m['os']}; torch {m['torch']} ({m['torch_isa']}); "
        f"our kernels: {m['build']['isa']}, {m['build']['compiler']}; Python {m['python']}; {when}."
    )


def notes(rows: list[Row]) -> str:
    texts = []
    if any(side.get("zero_gradients") for row in rows for side in row["sides"].values()):
        texts.append("† gives idle modules a gradient of zeros, where the loop gives None.")
    if any(row["noise"] >= NOISY for row in rows):
        texts.append("⚠ the machine was disturbed while this row was measured.")
    return "\n\n".join(texts)


def threads_of(rows: Iterable[Row]) -> list[int]:
    return sorted({row["threads"] for row in rows})


def titled(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def block(machine: Results, bench: str, draw: Callable[[list[Row]], str]) -> str:
    """One table for each number of threads."""
    rows = rows_of(machine, bench)
    if not rows:
        return NO_RESULTS
    parts = [conditions(machine, rows)]
    for threads in threads_of(rows):
        some = rows_of(machine, bench, threads)
        parts += [f"**{titled(threads)}**", draw(some), notes(some)]
    return "\n\n".join(part for part in parts if part)


def summary(slug: str, machine: Results) -> str:
    rows = [r for r in rows_of(machine, "grouped_linear", 1) if r.get("headline")]
    if not rows:
        return NO_RESULTS
    body = [
        [
            f"{shape(r['case'])}, K={r['case']['K']}, B={r['case']['B']}{flags(r)}",
            time(median_of(r, "ours")),
            time(median_of(r, "reference")),
            f"**{times_faster(side_of(r, 'reference')[1])}**",  # type: ignore[index]
            best_torch(r),
            of_floor(r, "ours"),
        ]
        for r in rows
    ]
    head = ["forward + backward", "Selection", "plain-Python loop", "faster", "than the best plain PyTorch", "of the floor"]
    return "\n\n".join(
        part
        for part in (
            table(head, body),
            notes(rows),
            f"K linear layers in float32, B samples, one thread; medians. {conditions(machine, rows)}",
        )
        if part
    )


def grouped_linear(slug: str, machine: Results) -> str:
    def draw(rows: list[Row]) -> str:
        forms = list(dict.fromkeys(n for r in rows for n, s in r["sides"].items() if s["kind"] == "torch"))
        head = ["", "K", "B", "Selection", "plain-Python loop", *forms, "faster than the best of them", "floor"]
        head += ["whole call", "kernels alone"]
        body = []
        for r in rows:
            case = r["case"]
            dtype = "" if case["dtype"] == "float32" else f" {case['dtype']}"
            floor = f"{time(r['floor_us'])} ({r['floor_of']})"
            best = side_of(r, "torch")
            cells = [f"{shape(case)}{dtype}, {'f+b' if case['backward'] else 'f'}{flags(r)}", str(case["K"]), str(case["B"])]
            cells += [timed(side_of(r, "ours")[1]), compared(r, "reference")]  # type: ignore[index]
            for name in forms:
                side = r["sides"].get(name)
                dagger = " †" if side and side.get("zero_gradients") else ""
                cells.append(f"{time(side['us'][1])}{dagger}" if side else "-")
            cells += [times_faster(best[1], spread=True) if best else "-"]
            cells += [floor, of_floor(r, "ours"), of_floor(r, "kernels")]
            body.append(cells)
        return table(head, body)

    text = block(machine, "grouped_linear", draw)
    if text == NO_RESULTS:
        return text
    figure = f"![Speed-up of Selection over the plain-Python loop, by batch size](assets/{figure_name(slug)})"
    return f"{text}\n\n{rates(machine)}\n\n{figure}"


def rates(machine: Results) -> str:
    lines = ["What the floors are computed from, measured in the same run (the largest of each group counts):", ""]
    for threads, r in sorted(machine["rates"].items()):
        for dtype, by_whom in r["gflops"].items():
            figures = ", ".join(f"{name} {rate:.0f}" for name, rate in by_whom.items())
            lines.append(f"- {titled(int(threads))}, {dtype}, GFLOP/s of a 512x512x512 product: {figures}.")
        copies = ", ".join(f"{rate:.0f} of {int(size) / 2**20:g} MiB" for size, rate in r["bandwidth"].items())
        lines.append(f"- {titled(int(threads))}, GB/s of a copy, by what it touches: {copies}.")
    return "\n".join(lines)


def linear_bank(slug: str, machine: Results) -> str:
    def draw(rows: list[Row]) -> str:
        names = [n for n, s in rows[0]["sides"].items() if s["kind"] in ("reference", "torch")]
        body = []
        for r in rows:
            case = r["case"]
            cells = [f"{shape(case)}, {'f+b+Adam' if case['step'] else 'f+b'}{flags(r)}", str(case["K"]), str(case["B"])]
            cells += [timed(side_of(r, "ours")[1])]  # type: ignore[index]
            cells += [f"{time(r['sides'][n]['us'][1])} = {times_faster(r['sides'][n])}" for n in names]
            body.append([*cells, of_floor(r, "ours")])
        return table(["", "K", "B", "LinearBank", *names, "of the floor"], body)

    return block(machine, "linear_bank", draw)


def dispatch_plan(slug: str, machine: Results) -> str:
    def draw(rows: list[Row]) -> str:
        head = ["K", "B", "dispatch_plan", "argsort and bincount", "whole call, of the floor", "kernel alone"]
        return table(
            head,
            [
                [
                    f"{r['case']['K']}{', masked' if r['case']['masked'] else ''}{flags(r)}",
                    str(r["case"]["B"]),
                    timed(side_of(r, "ours")[1]),  # type: ignore[index]
                    compared(r, "torch"),
                    of_floor(r, "ours"),
                    of_floor(r, "kernels"),
                ]
                for r in rows
            ],
        )

    return block(machine, "dispatch_plan", draw)


def move_rows(slug: str, machine: Results) -> str:
    def draw(rows: list[Row]) -> str:
        head = ["", "rows x width", "ours", "best of torch", "", "whole call, of the floor", "kernels alone"]
        body = []
        for r in rows:
            case, best = r["case"], side_of(r, "torch")
            assert best is not None
            body.append(
                [
                    f"{case['op']}_rows, {'f+b' if case['backward'] else 'f'}{flags(r)}",
                    f"{case['rows']} x {case['width']}",
                    timed(side_of(r, "ours")[1]),  # type: ignore[index]
                    f"{timed(best[1])} = {times_faster(best[1])}",
                    best[0],
                    of_floor(r, "ours"),
                    of_floor(r, "kernels"),
                ]
            )
        return table(head, body)

    return block(machine, "move_rows", draw)


def selection_generic(slug: str, machine: Results) -> str:
    def draw(rows: list[Row]) -> str:
        head = ["", "K", "B", "Selection", "plain-Python loop", "sort and split", "modules alone"]
        return table(
            head,
            [
                [
                    f"{r['case']['module']}, {'f+b' if r['case']['backward'] else 'f'}{flags(r)}",
                    str(r["case"]["K"]),
                    str(r["case"]["B"]),
                    timed(side_of(r, "ours")[1]),  # type: ignore[index]
                    compared(r, "reference"),
                    compared(r, "torch"),
                    time(median_of(r, "bound")),
                ]
                for r in rows
            ],
        )

    return block(machine, "selection_generic", draw)


Draw = Callable[[str, Results], str]
TABLES: dict[str, dict[str, Draw]] = {
    "README.md": {"summary": summary},
    "docs/benchmarks.md": {
        "grouped_linear": grouped_linear,
        "linear_bank": linear_bank,
        "dispatch_plan": dispatch_plan,
        "move_rows": move_rows,
        "selection_generic": selection_generic,
    },
}


# Figures ---------------------------------------------------------------------------------------------------------------------


def figure_name(slug: str) -> str:
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


def draw_figure(path: Path, machine: Results, digest: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = points_of(machine)
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


def digest_of(machine: Results) -> str:
    """Stands in the figure's file: tells whether it is of these results, whichever matplotlib drew it."""
    return "benchmarks-" + hashlib.sha256(json.dumps(points_of(machine)).encode()).hexdigest()[:16]


# Files -----------------------------------------------------------------------------------------------------------------------


def fill(text: str, path: str, draws: dict[str, Draw], machines: dict[str, Results]) -> str:
    for name, draw in draws.items():
        found = re.compile(rf"(<!-- benchmark:{name} -->\n).*?(<!-- /benchmark -->)", re.DOTALL)
        if not found.search(text):
            sys.exit(f"{path} must have <!-- benchmark:{name} --> and <!-- /benchmark --> behind it, which were not found")
        body = "\n\n".join(draw(slug, machine) for slug, machine in machines.items()) or NO_RESULTS
        text = found.sub(lambda m: f"{m[1]}{body}\n{m[2]}", text)  # noqa: B023
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something is stale")
    check = parser.parse_args().check
    machines, stale = results.load_all(), []
    for name, draws in TABLES.items():
        path = ROOT / name
        if not path.exists():
            sys.exit(f"{name} must exist, with the markers {', '.join(f'<!-- benchmark:{n} -->' for n in draws)}")
        old = path.read_text()
        new = fill(old, name, draws, machines)
        if new != old:
            stale.append(name)
            if not check:
                path.write_text(new)
    for slug, machine in machines.items():
        path, digest = ROOT / FIGURES / figure_name(slug), digest_of(machine)
        if points_of(machine) and (not path.exists() or digest.encode() not in path.read_bytes()):
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                draw_figure(path, machine, digest)
    if check and stale:
        sys.exit(f"not what benchmarks/results gives: {', '.join(stale)}; run python -m benchmarks.make_readme")
    print("\n".join(f"written: {name}" for name in stale) or "all up to date")


if __name__ == "__main__":
    main()
