"""log.txt, in the words of pytorch-dnc."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from .sink import Kind, Sink

_NOT_SHOWN = ("loss", "took")  # they have a place of their own


class LogFile(Sink):
    """Appends lines of text with the time of day; what scripts look for in logs of pytorch-dnc is in them.

    Its average loss is that since the last report, where pytorch-dnc's is that since the beginning.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")
        self._start = time.perf_counter()

    def report(self, kind: Kind, step: int, values: Mapping[str, float]) -> None:
        others = "".join(f"; {name}: {value:.6g}" for name, value in values.items() if name not in _NOT_SHOWN)
        loss = values.get("loss", float("nan"))
        if kind == "train":
            self.message(f"Reporting       @ Step: {step} | Elapsed Time: {time.perf_counter() - self._start:.3f}")
            self.message(f"Training Stats:   avg_loss:         {loss:.9g}{others}")
            return
        self.message(f"Evaluating      @ Step: {step}")
        if "took" in values:
            self.message(f"Evaluation        Took: {values['took']:.3f}")
        self.message(f"Iteration: {step}; loss_avg: {loss:.9g}{others}")

    def saved(self, step: int, path: Path) -> None:
        self.message(f"Saved  Model    @ Step: {step}: {path}.")

    def message(self, text: str) -> None:
        self._file.write(f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] {text}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
