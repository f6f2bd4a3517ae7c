"""Tables of the studies of learning."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable

from benchmarks.figures.learning_routing import curves
from benchmarks.results import Results, Row
from benchmarks.tables.cells import NOISY, conditions, number, table, time


def learning_routing(slug: str, study: Results) -> str:
    def to_reach(row: Row, target: float) -> float:
        return next(s for s, a in zip(row["seconds"], row["accuracy"], strict=True) if a >= target)

    methods = list(dict.fromkeys(row["method"] for row in study["rows"]))
    seeds = sorted({row["seed"] for row in study["rows"]})
    body = []
    for method in methods:
        ours, theirs = (curves(study, method, side) for side in ("ours", "reference"))
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
