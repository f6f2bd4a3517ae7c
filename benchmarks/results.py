"""The committed results: one JSON for each machine, and one for each study of learning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"

Row = dict[str, Any]
Results = dict[str, Any]


def load_all() -> dict[str, Results]:
    """By machine."""
    return {name: made for name, made in _load("*").items() if name not in load_studies()}


def load_studies() -> dict[str, Results]:
    """Of learning: each is of one machine, which it names."""
    return _load("learning-*")


def _load(pattern: str) -> dict[str, Results]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob(f"{pattern}.json"))}


def key(row: Row) -> tuple[str, str, int]:
    return row["bench"], row["id"], row["threads"]


def merge(slug: str, machine: dict[str, Any], rates: dict[str, Any], rows: list[Row]) -> Path:
    """Puts rows in the machine's file, in place of those of the same benchmark, case and number of threads."""
    path = FOLDER / f"{slug}.json"
    results: Results = json.loads(path.read_text()) if path.exists() else {"rates": {}, "rows": []}
    new = {key(row): row for row in rows}
    kept = [new.pop(key(row), row) for row in results["rows"]]
    known = results["rates"].get(str(rates["threads"]), {"gflops": {}, "bandwidth": {}})
    merged = {name: {**known[name], **rates[name]} for name in known}
    results = {
        "machine": machine,
        "rates": {**results["rates"], str(rates["threads"]): merged},
        "rows": sorted([*kept, *new.values()], key=lambda row: (row["bench"], row["threads"], row["position"])),
    }
    FOLDER.mkdir(exist_ok=True)
    path.write_text(_dump(results) + "\n")
    return path


def _dump(results: Results) -> str:
    """One line a row, so that a diff shows which rows changed."""
    rows = ",\n".join("  " + json.dumps(row) for row in results["rows"])
    head = json.dumps({"machine": results["machine"], "rates": results["rates"]}, indent=1)
    return head.removesuffix("\n}") + f',\n "rows": [\n{rows}\n ]\n}}'
