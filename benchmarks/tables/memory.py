"""Tables of memory networks."""

from __future__ import annotations

from benchmarks.figures import memory as memory_figure
from benchmarks.results import Results, Row
from benchmarks.tables.cells import (
    NO_RESULTS,
    block,
    compared,
    conditions,
    flags,
    median_of,
    notes,
    number,
    of_floor,
    ours,
    passes,
    rows_of,
    side_of,
    size,
    table,
    threads_of,
    time,
    timed,
    times_faster,
    titled,
)


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


def memory_ops(slug: str, machine: Results) -> str:
    def draw(rows: list[Row]) -> str:
        head = ["", "B", "N", "ours", "plain PyTorch", "whole call, of the floor", "kernels alone"]
        return table(
            head,
            [
                [
                    f"{r['case']['op']}, {passes(r)}",
                    str(r["case"]["B"]),
                    str(r["case"]["N"]),
                    ours(r),
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
