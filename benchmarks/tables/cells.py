"""What tables are made of: rows of results, cells, and blocks of tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.results import Results, Row

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


def ours(row: Row) -> str:
    found = side_of(row, "ours")
    assert found is not None, f"{row['id']} has none of ours"
    return timed(found[1])


def passes(row: Row) -> str:
    """Forward, or forward and backward."""
    return f"{'f+b' if row['case']['backward'] else 'f'}{flags(row)}"


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
