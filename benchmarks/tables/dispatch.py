"""Tables of per-sample dispatch."""

from __future__ import annotations

from benchmarks.figures import dispatch as dispatch_figure
from benchmarks.results import Results, Row
from benchmarks.tables.cells import (
    NO_RESULTS,
    best_torch,
    block,
    compared,
    conditions,
    flags,
    median_of,
    notes,
    of_floor,
    ours,
    passes,
    rows_of,
    shape,
    side_of,
    table,
    time,
    timed,
    times_faster,
    titled,
)


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
            cells = [f"{shape(case)}{dtype}, {passes(r)}", str(case["K"]), str(case["B"])]
            cells += [ours(r), compared(r, "reference")]
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
    figure = f"![Speed-up of Selection over the plain-Python loop, by batch size](assets/{dispatch_figure.name_of(slug)})"
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
            cells += [ours(r)]
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
                    ours(r),
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
                    f"{case['op']}_rows, {passes(r)}",
                    f"{case['rows']} x {case['width']}",
                    ours(r),
                    f"{timed(best[1])} = {times_faster(best[1])}",
                    best[0],
                    of_floor(r, "ours"),
                    of_floor(r, "kernels"),
                ]
            )
        return table(head, body)

    return block(machine, "move_rows", draw)


def combine_rows(slug: str, machine: Results) -> str:
    def draw(rows: list[Row]) -> str:
        head = ["", "B", "choices", "width", "ours", "best of torch", "", "whole call, of the floor", "kernels alone"]
        body = []
        for r in rows:
            case, best = r["case"], side_of(r, "torch")
            assert best is not None
            cells = [passes(r), *(str(case[n]) for n in ("B", "choices", "width"))]
            cells += [ours(r), f"{timed(best[1])} = {times_faster(best[1])}", best[0]]
            body.append([*cells, of_floor(r, "ours"), of_floor(r, "kernels")])
        return table(head, body)

    return block(machine, "combine_rows", draw)


def selection_generic(slug: str, machine: Results) -> str:
    def draw(rows: list[Row]) -> str:
        head = ["", "K", "B", "Selection", "plain-Python loop", "sort and split", "modules alone"]
        return table(
            head,
            [
                [
                    f"{r['case']['module']}, {passes(r)}",
                    str(r["case"]["K"]),
                    str(r["case"]["B"]),
                    ours(r),
                    compared(r, "reference"),
                    compared(r, "torch"),
                    time(median_of(r, "bound")),
                ]
                for r in rows
            ],
        )

    return block(machine, "selection_generic", draw)
