"""Tables of Routing Networks."""

from __future__ import annotations

from benchmarks.results import Results, Row
from benchmarks.tables.cells import (
    NO_RESULTS,
    block,
    conditions,
    flags,
    median_of,
    notes,
    rows_of,
    side_of,
    table,
    time,
    timed,
    times_faster,
)


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
