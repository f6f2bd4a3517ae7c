"""A bar on the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping

from ..errors import require
from .sink import Kind, Sink

_TEXTS = {
    "loss": "loss {:.5f}",
    "bits": "{:.2f} bits",
    "wrong": "{:.0%} wrong",
    "accuracy": "{:.1%} right",
    "lesson": "lesson {:.0f}",
}


class ProgressBar(Sink):
    """Sequences done, a second, and still to come, time left, and the last report, on stderr; messages above it.

    If stderr is gone, such as a terminal that was closed, there is nothing to be seen, and the training goes on.

    Args:
        total_steps: at which the training ends.
        start_step: at which it begins.
        batch_size: sequences a step.
        name: in front of the bar.
        shown: whether there is a bar; messages are shown in any case.
    """

    def __init__(self, total_steps: int, start_step: int, batch_size: int, name: str = "", shown: bool = True) -> None:
        self._bar = require("tqdm", "tqdm").tqdm(
            desc=name or None,
            total=total_steps * batch_size,
            initial=start_step * batch_size,
            unit=" sequences",
            unit_scale=True,
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 10.0,
            smoothing=0.05,
            disable=not shown,
        )
        self._step, self._batch_size = start_step, batch_size

    def advance(self, step: int) -> None:
        with contextlib.suppress(OSError):
            self._bar.update((step - self._step) * self._batch_size)
        self._step = step

    def report(self, kind: Kind, step: int, values: Mapping[str, float]) -> None:
        if kind == "train":
            texts = (text.format(values[name]) for name, text in _TEXTS.items() if name in values)
            self._bar.set_postfix_str(", ".join(texts), refresh=False)

    def message(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._bar.close()
