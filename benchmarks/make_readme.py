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
import statistics
import sys
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import learn_memory_figure, learn_routing_figure, memory_figure, results
from benchmarks.results import Results, Row

ROOT = Path(__file__).parent.parent
FIGURES = Path("docs/assets")
NOISY = 0.1  # as in measure.py, which needs torch


def no_results(program: str) -> str:
    return f"*No results yet: `python -m benchmarks.{program}` measures them.*"


NO_RESULTS = no_results("run")


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


def size(value: float) -> str:
    """Bytes, in decimal units."""
    value, unit = (value / 1e3, "kB") if value < 1e6 else (value / 1e6, "MB") if value < 1e9 else (value / 1e9, "GB")
    return f"{number(value)} {unit}"


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


def memory_ops(slug: str, machine: Results) -> str:
    def draw(rows: list[Row]) -> str:
        head = ["", "B", "N", "ours", "plain PyTorch", "whole call, of the floor", "kernels alone"]
        return table(
            head,
            [
                [
                    f"{r['case']['op']}, {'f+b' if r['case']['backward'] else 'f'}{flags(r)}",
                    str(r["case"]["B"]),
                    str(r["case"]["N"]),
                    timed(side_of(r, "ours")[1]),  # type: ignore[index]
                    compared(r, "torch"),
                    of_floor(r, "ours"),
                    of_floor(r, "kernels"),
                ]
                for r in rows
            ],
        )

    return block(machine, "memory_ops", draw)


def step_by_step(row: Row) -> str:
    """How many times faster than the reference our circuit is in the reference's loop; from their ratios to `unroll`."""
    found = side_of(row, "reference")
    if found is None:
        return "-"
    faster = found[1]["ratio"][0] * row["sides"]["unroll"]["us"][1] / row["sides"]["step by step"]["us"][1]
    return f"{number(faster)}x"


def network(row: Row) -> str:
    case = row["case"]
    sizes = ", ".join(f"{name}={case[name]}" for name in ("B", "H", "R", "N", "W", "T"))
    return f"{case['model'].upper()}, {sizes}{flags(row)}"


def memory(slug: str, machine: Results) -> str:
    all_rows = rows_of(machine, "memory_sequence")
    if not all_rows:
        return NO_RESULTS
    threads = threads_of(all_rows)[-1]
    rows = rows_of(machine, "memory_sequence", threads)
    body = []
    for r in rows:
        ours, compiled, published = r["sides"]["unroll"], r["sides"].get("compiled step"), side_of(r, "reference")
        body.append(
            [
                network(r),
                time(ours["us"][1]),
                time(published[1]["us"][1]) if published else "-",
                f"**{times_faster(published[1])}**" if published else "-",
                step_by_step(r),
                times_faster(compiled) if compiled else "-",
                f"{r['floor_us'] / ours['us'][1]:.0%}",
            ]
        )
    head = ["forward + backward", "`unroll`", "pytorch-dnc", "faster", "step by step", "than compiled", "of the floor"]
    text = (
        "T steps of B sequences, H hidden units, R read heads, N locations of W elements, float32; binary cross entropy, no "
        "optimiser. *Step by step*: how much faster our circuit is than pytorch-dnc's in the same loop over the steps. "
        f"*Compiled*: a vectorised step under torch.compile. Medians with {titled(threads)}. {conditions(machine, rows)}"
    )
    return "\n\n".join(part for part in (table(head, body), notes(rows), text) if part)


def memory_sequence(slug: str, machine: Results) -> str:
    def draw(rows: list[Row]) -> str:
        others = ["reference", "plain PyTorch", "compiled step"]
        body = []
        for r in rows:
            sides = r["sides"]
            cells = [network(r), timed(sides["unroll"]), f"{timed(sides['step by step'])} = {step_by_step(r)}"]
            for name in others:
                cells.append(f"{timed(sides[name])} = {times_faster(sides[name], spread=True)}" if name in sides else "-")
            floor = r["floor_us"]
            body.append([*cells, f"{time(floor)} ({r['floor_of']})", f"{floor / sides['unroll']['us'][1]:.0%}"])
        head = ["", "`unroll`", "step by step", "pytorch-dnc", *others[1:], "floor", "`unroll`, of the floor"]
        return table(head, body)

    text = block(machine, "memory_sequence", draw)
    return text if text == NO_RESULTS else f"{text}\n\n{memory_use(machine)}"


def memory_use(machine: Results) -> str:
    names = {
        "unroll": "`unroll`",
        "step by step": "step by step",
        "reference": "pytorch-dnc",
        "plain PyTorch": "plain PyTorch",
    }
    kept_by = [name for name in names if name != "step by step"]
    threads = threads_of(rows_of(machine, "memory_sequence"))[-1]
    body = []
    for r in rows_of(machine, "memory_sequence", threads):
        kept, faults, steps = r["saved_bytes"], r["page_faults"], r["case"]["T"]
        cells = [network(r).removesuffix(flags(r)), *(size(kept[n] / steps) if n in kept else "-" for n in kept_by)]
        body.append([*cells, *(f"{faults[n]:.0f}" if n in faults else "-" for n in names)])
    head = ["", *(f"kept for a step: {names[n]}" for n in kept_by), *(f"page faults: {name}" for name in names.values())]
    return f"Memory, with {titled(threads)}:\n\n{table(head, body)}"


def memory_layers(slug: str, machine: Results) -> str:
    """Three tables: of the sizes, of the options, of the lengths."""

    def longer(row: Row, name: str, than: str) -> str:
        return f"{row['sides'][name]['us'][1] / row['sides'][than]['us'][1]:.2f}"

    def against(row: Row, name: str, other: str) -> str:
        sides = row["sides"]
        return f"{number(sides[other]['us'][1] / sides[name]['us'][1])}x" if other in sides else "-"

    def of_sizes(rows: list[Row]) -> str:
        body = []
        for r in rows:
            sides = r["sides"]
            cells = [network(r), timed(sides["DNC"]), longer(r, "DNC", "unroll"), timed(sides["dnc_package"])]
            cells += [compared(r, "reference"), against(r, "DNC", "reference")]
            body.append([*cells, times_faster(sides["plain PyTorch"]), f"{r['floor_us'] / sides['dnc_package']['us'][1]:.0%}"])
        head = ["", "`DNC`", "of `unroll`", "`dnc_package.DNC`", "the package", "the package to `DNC`", "plain PyTorch"]
        return table([*head, "of the floor"], body)

    def of_options(rows: list[Row]) -> str:
        body = [[f"{r['case']['option']}{flags(r)}", timed(r["sides"]["with"]), longer(r, "with", "without")] for r in rows]
        return table([network(rows[0]).removesuffix(flags(rows[0])), "time", "of that without"], body)

    def of_lengths(rows: list[Row]) -> str:
        names = ["mixed", "as many steps", "all steps"]
        body = [[network(r), *(timed(r["sides"][name]) for name in names), longer(r, "mixed", "as many steps")] for r in rows]
        return table(["lengths", "from few to T", "as many steps, all alike", "all T", "mixed, of alike"], body)

    def draw(rows: list[Row]) -> str:
        parts = {"sizes": of_sizes, "options": of_options, "lengths": of_lengths}
        found = {part: [r for r in rows if r["case"]["part"] == part] for part in parts}
        return "\n\n".join(parts[part](of_part) for part, of_part in found.items() if of_part)

    return block(machine, "memory_layers", draw)


def memory_scaling(slug: str, machine: Results) -> str:
    def draw(rows: list[Row]) -> str:
        head = ["", "N", "T", "time of a step", "floor of a step", "plain PyTorch", "peak of memory", "plain PyTorch"]
        body = []
        for r in rows:
            case, plain, peaks = r["case"], r["sides"].get("plain PyTorch"), r["peak_bytes"]
            body.append(
                [
                    f"{case['model'].upper()}, B={case['B']}{flags(r)}",
                    str(case["N"]),
                    str(case["T"]),
                    time(median_of(r, "ours") / case["T"]),
                    f"{time(r['floor_us'] / case['T'])} ({r['floor_of']})",
                    times_faster(plain) if plain else "-",
                    *(size(peaks[n]) if n in peaks else "-" for n in ("unroll", "plain PyTorch")),
                ]
            )
        return table(head, body)

    text = block(machine, "memory_scaling", draw)
    if text == NO_RESULTS:
        return text
    return f"{text}\n\n![Time of a step and peak of memory, by memory and sequence](assets/{memory_figure.name_of(slug)})"


def routing(slug: str, machine: Results) -> str:
    rows = [r for r in rows_of(machine, "routing_step", 1) if r.get("headline")]
    if not rows:
        return NO_RESULTS
    body = [
        [
            f"B={r['case']['B']}{flags(r)}",
            time(r["sides"]["routing layers"]["us"][1]),
            time(median_of(r, "reference")),
            f"**{times_faster(side_of(r, 'reference')[1])}**",  # type: ignore[index]
            time(r["sides"]["LinearBank, fast_sampling"]["us"][1]),
            time(median_of(r, "bound")),
        ]
        for r in rows
    ]
    head = ["routing step, WPL", "ours", loop_name(rows), "faster", "LinearBank, fast_sampling", "gradients alone"]
    text = (
        "20 tasks with an agent each, 20 modules, 3 decisions; forward, loss and backward of the routed layers, float32, one "
        f"thread; medians. {conditions(machine, rows)}"
    )
    return "\n\n".join(part for part in (table(head, body), notes(rows), text) if part)


def loop_name(rows: list[Row]) -> str:
    """What the reference's column is of: the reference itself, or our code in its manner."""
    names = {side_of(r, "reference")[0] for r in rows}  # type: ignore[index]
    return "PytorchRouting" if names == {"reference"} else "per-sample Python"


def routing_step(slug: str, machine: Results) -> str:
    def draw(rows: list[Row]) -> str:
        body = []
        for r in rows:
            case, sides = r["case"], r["sides"]
            name, loop = side_of(r, "reference")  # type: ignore[misc]
            what = f"{case['algorithm']}, {case['architecture']}{', with trunk' if case['trunk'] else ''}"
            cells = [f"{what}{flags(r)}", str(case["B"]), timed(sides["routing layers"])]
            cells.append(f"{timed(loop)} = {times_faster(loop, spread=True)}{'' if name == 'reference' else ' ‡'}")
            for other in ("LinearBank, fast_sampling", "channels_last"):
                cells.append(time(sides[other]["us"][1]) if other in sides else "-")
            body.append([*cells, time(median_of(r, "bound"))])
        head = ["", "B", "ours", "per-sample Python", "LinearBank, fast_sampling", "LinearBank, trunk in channels_last"]
        drawn = table([*head, "gradients alone"], body)
        return f"{drawn}\n\n‡ our code in the reference's manner, else the reference itself." if "‡" in drawn else drawn

    return block(machine, "routing_step", draw)


def routing_modules(slug: str, machine: Results) -> str:
    def draw(rows: list[Row]) -> str:
        head = ["K", "B", "ours", "LinearBank, fast_sampling", "cross-stitch"]
        body = [
            [
                f"{r['case']['K']}{flags(r)}",
                str(r["case"]["B"]),
                *(timed(r["sides"][name]) for name in ("routing layers", "LinearBank, fast_sampling", "cross-stitch")),
            ]
            for r in rows
        ]
        return table(head, body)

    return block(machine, "routing_modules", draw)


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


def learning_routing(slug: str, study: Results) -> str:
    def to_reach(row: Row, target: float) -> float:
        return next(s for s, a in zip(row["seconds"], row["accuracy"], strict=True) if a >= target)

    methods = list(dict.fromkeys(row["method"] for row in study["rows"]))
    seeds = sorted({row["seed"] for row in study["rows"]})
    body = []
    for method in methods:
        ours, theirs = (learn_routing_figure.curves(study, method, side) for side in ("ours", "reference"))
        target = int(100 * min(max(row["accuracy"]) for row in ours + theirs)) / 100
        seconds = [statistics.median(to_reach(row, target) for row in rows) for rows in (ours, theirs) if rows]
        for side, rows in (("reference", theirs), ("ours", ours)):
            if not rows:
                continue
            final = [100 * row["accuracy"][-1] for row in rows]
            noisy = " ⚠" if max(row["waited"] for row in rows) >= NOISY else ""
            cells = [f"{method}, {side}{noisy}", *(f"{a:.1f}" for a in final), f"**{statistics.mean(final):.1f}**"]
            cells += [f"{statistics.stdev(final):.1f}" if len(final) > 1 else "-", f"{100 * target:.0f} %"]
            cells += [time(1e6 * (seconds[0] if side == "ours" else seconds[1]))]
            cells += [f"**{number(seconds[1] / seconds[0])}x**" if side == "ours" and theirs else "-"]
            body.append([*cells, agreement(ours, theirs) if side == "ours" and theirs else "-"])
    head = ["", *(f"seed {seed}" for seed in seeds), "mean", "s.d.", "time to", "", "faster"]
    parts = [table([*head, "same choices"], body)]
    if any(row["waited"] >= NOISY for row in study["rows"]):
        parts.append("⚠ the machine was disturbed: the times of this row are too long.")
    parts.append(f"One thread. {conditions(study, [study])}")
    return "\n\n".join([*parts, f"![Accuracy over training steps, and over seconds](assets/{slug}.png)"])


def agreement(ours: list[Row], theirs: list[Row]) -> str:
    """For how long the sampled routes are the same ones, from the same seed."""
    steps = [row["same_choices"] for row in theirs]
    total = theirs[0]["steps"][-1]
    full = sum(s == total for s in steps)
    if full == len(steps):
        return f"in all {total:,} steps"
    return f"in all {total:,} steps with {full} of {len(steps)} seeds, at least in the first {min(steps):,}"


def learning_memory(slug: str, study: Results) -> str:
    rows = study["rows"]
    of_part = {part: [row for row in rows if row["part"] == part] for part in dict.fromkeys(row["part"] for row in rows)}
    parts = []
    if "repeat-copy" in of_part:
        parts.append(repeat_copy_losses(of_part["repeat-copy"]))
    if "copy" in of_part:
        parts.append(copy_learned(of_part["copy"], next(iter(of_part.get("speed", [])), None)))
        parts.append(reach("NTM, copy", of_part["copy"], "`{}`"))
    if "de-allocation" in of_part:
        parts.append(reach("DNC, repeat-copy: de-allocation", of_part["de-allocation"]))
    if any(row.get("waited", 0) >= NOISY for row in rows):
        parts.append("⚠ the machine was disturbed: the times of this row are too long.")
    parts.append(f"One thread. {conditions(study, [study])}")
    return "\n\n".join([*parts, f"![Losses, sequences until copying is learned, and longer problems](assets/{slug}.png)"])


def seeds_of(rows: Iterable[Row]) -> list[str]:
    return [f"seed {seed}" for seed in sorted({row["seed"] for row in rows})]


def by_variant(rows: list[Row]) -> dict[str, list[Row]]:
    return {variant: [r for r in rows if r["variant"] == variant] for variant in dict.fromkeys(r["variant"] for r in rows)}


def repeat_copy_losses(all_rows: list[Row]) -> str:
    """The mean loss of training and of the evaluation after it, and the time, of both sides."""
    made = by_variant(all_rows)
    sides = {side: made[side] for side in ("reference", "ours") if side in made}
    seconds = {side: statistics.median(r["seconds"] for r in rows) for side, rows in sides.items()}
    body = []
    for key, name in (("train_loss", "training loss"), ("evaluation_loss", "evaluation loss")):
        for side, rows in sides.items():
            values = [r[key] for r in rows]
            cells = [f"{name}, {side}", *(f"{v:.5f}" for v in values), f"**{statistics.mean(values):.5f}**"]
            body.append([*cells, f"{statistics.stdev(values):.5f}" if len(values) > 1 else "-"])
    for side, rows in sides.items():
        noisy = " ⚠" if max(r["waited"] for r in rows) >= NOISY else ""
        faster = f" = **{number(seconds['reference'] / seconds[side])}x**" if side == "ours" and len(sides) > 1 else ""
        cells = [f"time, {side}{noisy}", *(time(1e6 * r["seconds"]) for r in rows)]
        body.append([*cells, f"{time(1e6 * seconds[side])}{faster}", "-"])
    head = ["DNC, repeat-copy", *seeds_of(r for rows in sides.values() for r in rows), "mean; of times the median", "s.d."]
    return table(head, body)


def copy_learned(all_rows: list[Row], speed: Row | None) -> str:
    """When the NTM copies; how long that takes, by the speed of a step."""
    seeds = seeds_of(all_rows)
    texts: dict[str, Callable[[float], str]] = {"sequences": lambda n: f"{n:,.0f}"}
    if speed is not None:
        milliseconds, batch_size = speed["milliseconds"][1], all_rows[0]["sequences"][-1] / all_rows[0]["steps"]
        noisy = " ⚠" if speed["waited"] >= NOISY else ""
        texts[f"time, at {number(milliseconds)} ms a step{noisy}"] = lambda n: time(1000 * milliseconds * n / batch_size)
    body = []
    for variant, rows in by_variant(all_rows).items():
        values = [r["solved_after"] for r in rows if r["solved_after"] is not None]
        for name, text in texts.items():
            cells = [f"`{variant}`, {name}", *("-" if r["solved_after"] is None else text(r["solved_after"]) for r in rows)]
            cells += [""] * (len(seeds) - len(rows))
            body.append([*cells, f"**{text(statistics.median(values))}**" if len(values) == len(rows) else "-"])
    return table(["NTM, copy: until 0.01 bits for a bit", *seeds, "median"], body)


def reach(what: str, all_rows: list[Row], name_of: str = "{}") -> str:
    """Wrong bits on larger problems."""
    body = []
    for variant, rows in by_variant(all_rows).items():
        for key, name in (("wrong_bits", "wrong bits"), ("solved", "sequences without an error")):
            columns = [sorted(100 * t[key] for t in column) for column in zip(*(r["tests"] for r in rows), strict=True)]
            cells = [f"{statistics.median(c):.1f} <small>{c[0]:.1f}-{c[-1]:.1f}</small>" for c in columns]
            body.append([f"{name_of.format(variant)}, {name}, %", *cells])
    return table([what, *(test["name"] for test in all_rows[0]["tests"])], body)


Draw = Callable[[str, Results], str]
TABLES: dict[str, dict[str, Draw]] = {
    "README.md": {"summary": summary, "routing": routing, "memory": memory},
    "docs/benchmarks.md": {
        "grouped_linear": grouped_linear,
        "linear_bank": linear_bank,
        "dispatch_plan": dispatch_plan,
        "move_rows": move_rows,
        "selection_generic": selection_generic,
        "routing_step": routing_step,
        "routing_modules": routing_modules,
        "memory_sequence": memory_sequence,
        "memory_scaling": memory_scaling,
        "memory_layers": memory_layers,
        "memory_ops": memory_ops,
    },
}


class Study(NamedTuple):
    """The program that makes it, where its table stands, and what draws table and figure."""

    program: str
    page: str
    table: str
    draw_table: Draw
    draw_figure: Callable[[Path, Results, str], None]


STUDIES = {
    "learning-routing": Study(
        "learn_routing", "docs/benchmarks.md", "learning_routing", learning_routing, learn_routing_figure.draw
    ),
    "learning-memory": Study(
        "learn_memory", "docs/benchmarks.md", "learning_memory", learning_memory, learn_memory_figure.draw
    ),
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


def draw_figure(path: Path, panels: Any, digest: str) -> None:
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


def digest_of(points: Any) -> str:
    """Stands in the figure's file: tells whether it is of these results, whichever matplotlib drew it."""
    return "benchmarks-" + hashlib.sha256(json.dumps(points).encode()).hexdigest()[:16]


# How a figure's file is called, what it shows of the results, and what draws it.
ALL_FIGURES: list[tuple[Callable[[str], str], Callable[[Results], Any], Callable[[Path, Any, str], None]]] = [
    (figure_name, points_of, draw_figure),
    (memory_figure.name_of, memory_figure.points_of, memory_figure.draw),
]


# Files -----------------------------------------------------------------------------------------------------------------------


def newest_first(machines: dict[str, Results]) -> dict[str, Results]:
    return dict(sorted(machines.items(), key=lambda item: max(row["date"] for row in item[1]["rows"]), reverse=True))


def fill(text: str, path: str, draws: dict[str, Draw], machines: dict[str, Results], program: str = "run") -> str:
    """The text with its tables: of all machines; in README.md, of the first that has results."""
    for name, draw in draws.items():
        found = re.compile(rf"(<!-- benchmark:{name} -->\n).*?(<!-- /benchmark -->)", re.DOTALL)
        if not found.search(text):
            sys.exit(f"{path} must have <!-- benchmark:{name} --> and <!-- /benchmark --> behind it, which were not found")
        drawn = [t for t in (draw(slug, machine) for slug, machine in machines.items()) if t != NO_RESULTS]
        body = "\n\n".join(drawn[:1] if path == "README.md" else drawn) or no_results(program)
        text = found.sub(lambda m: f"{m[1]}{body}\n{m[2]}", text)  # noqa: B023
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something is stale")
    check = parser.parse_args().check
    machines, studies, stale = newest_first(results.load_all()), results.load_studies(), []
    for name, draws in TABLES.items():
        path = ROOT / name
        if not path.exists():
            sys.exit(f"{name} must exist, with the markers {', '.join(f'<!-- benchmark:{n} -->' for n in draws)}")
        old = path.read_text()
        new = fill(old, name, draws, machines)
        for slug, study in STUDIES.items():
            if study.page == name:
                results_of = {slug: studies[slug]} if slug in studies else {}
                new = fill(new, name, {study.table: study.draw_table}, results_of, study.program)
        if new != old:
            stale.append(name)
            if not check:
                path.write_text(new)
    for slug, machine in machines.items():
        for name_of, points_from, draw in ALL_FIGURES:
            path, points = ROOT / FIGURES / name_of(slug), points_from(machine)
            digest = digest_of(points)
            if points and (not path.exists() or digest.encode() not in path.read_bytes()):
                stale.append(str(path.relative_to(ROOT)))
                if not check:
                    draw(path, points, digest)
    for slug, made in studies.items():
        path, digest = ROOT / FIGURES / f"{slug}.png", digest_of(made["rows"])
        if not path.exists() or digest.encode() not in path.read_bytes():
            stale.append(str(path.relative_to(ROOT)))
            if not check:
                STUDIES[slug].draw_figure(path, made, digest)
    if check and stale:
        sys.exit(f"not what benchmarks/results gives: {', '.join(stale)}; run python -m benchmarks.make_readme")
    print("\n".join(f"written: {name}" for name in stale) or "all up to date")


if __name__ == "__main__":
    main()
