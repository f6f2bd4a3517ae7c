"""metrics.jsonl: one report a line."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .sink import Kind, Sink


class JsonLines(Sink):
    """Appends a JSON object for each report: kind, step, seconds (of training), sequences, and the report's values.

    A run that goes on from a checkpoint has reported some steps beyond it, and may have been stopped within a line. These
    lines are cut, and the seconds count on from the last one that stays. Numbers that JSON does not have are null.

    Args:
        path: of the file.
        start_step: of the checkpoint; 0 begins anew.
        batch_size: sequences a step.
    """

    def __init__(self, path: Path, start_step: int, batch_size: int) -> None:
        self._batch_size = batch_size
        self._file = path.open("ab")
        kept, seconds = _kept(path, start_step)
        self._file.truncate(kept)
        self._start = time.perf_counter() - seconds

    def report(self, kind: Kind, step: int, values: Mapping[str, float]) -> None:
        seconds = round(time.perf_counter() - self._start, 3)
        line: dict[str, Any] = {"kind": kind, "step": step, "seconds": seconds, "sequences": step * self._batch_size}
        line |= {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()

    def saved(self, step: int, path: Path) -> None:
        os.fsync(self._file.fileno())  # what is before a checkpoint must last as long as that

    def close(self) -> None:
        self._file.close()


def _kept(path: Path, start_step: int) -> tuple[int, float]:
    """How many bytes of the file to keep, and the seconds of the last line in them."""
    kept, seconds = 0, 0.0
    with path.open("rb") as file:
        for line in file:
            try:
                report = json.loads(line)
                if not line.endswith(b"\n") or not 0 < report["step"] <= start_step:
                    break
            except (ValueError, KeyError, TypeError):
                break
            kept, seconds = kept + len(line), report["seconds"]
    return kept, seconds
