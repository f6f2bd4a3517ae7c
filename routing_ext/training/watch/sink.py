"""Who is told how a training goes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Kind = Literal["train", "evaluation"]


class Sink:
    """Does nothing with what it is told; a subclass overrides what it is interested in."""

    def advance(self, step: int) -> None:
        """A training step is done; `step` is the number of them until now."""

    def report(self, kind: Kind, step: int, values: Mapping[str, float]) -> None:
        """Means over the training steps since the last report, or over an evaluation.

        Args:
            kind: which of both.
            step: training steps done.
            values: by name: loss, bits (a sequence), wrong (share of the sequences with an error), accuracy, lr,
                sequences_per_second, lesson; of an evaluation, also took (seconds).
        """

    def saved(self, step: int, path: Path) -> None:
        """A checkpoint is written."""

    def message(self, text: str) -> None:
        """Something that a person should read."""

    def close(self) -> None:
        """The training ends."""
