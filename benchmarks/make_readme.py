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
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import results
from benchmarks.figures import dispatch as dispatch_figure
from benchmarks.figures import learning_memory, learning_routing
from benchmarks.figures import memory as memory_figure
from benchmarks.results import Results
from benchmarks.tables import dispatch, learning, memory, routing
from benchmarks.tables.cells import NO_RESULTS, no_results

ROOT = Path(__file__).parent.parent
FIGURES = Path("docs/assets")

Draw = Callable[[str, Results], str]
TABLES: dict[str, dict[str, Draw]] = {
    "README.md": {"summary": dispatch.summary, "routing": routing.routing, "memory": memory.memory},
    "docs/benchmarks.md": {
        "grouped_linear": dispatch.grouped_linear,
        "linear_bank": dispatch.linear_bank,
        "dispatch_plan": dispatch.dispatch_plan,
        "move_rows": dispatch.move_rows,
        "combine_rows": dispatch.combine_rows,
        "selection_generic": dispatch.selection_generic,
        "routing_step": routing.routing_step,
        "routing_modules": routing.routing_modules,
        "memory_sequence": memory.memory_sequence,
        "memory_scaling": memory.memory_scaling,
        "memory_layers": memory.memory_layers,
        "memory_ops": memory.memory_ops,
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
        "learn_routing", "docs/benchmarks.md", "learning_routing", learning.learning_routing, learning_routing.draw
    ),
    "learning-memory": Study(
        "learn_memory", "docs/benchmarks.md", "learning_memory", learning.learning_memory, learning_memory.draw
    ),
}


# Figures ---------------------------------------------------------------------------------------------------------------------


def digest_of(points: Any) -> str:
    """Stands in the figure's file: tells whether it is of these results, whichever matplotlib drew it."""
    return "benchmarks-" + hashlib.sha256(json.dumps(points).encode()).hexdigest()[:16]


# How a figure's file is called, what it shows of the results, and what draws it.
ALL_FIGURES: list[tuple[Callable[[str], str], Callable[[Results], Any], Callable[[Path, Any, str], None]]] = [
    (dispatch_figure.name_of, dispatch_figure.points_of, dispatch_figure.draw),
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
