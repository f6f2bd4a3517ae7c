"""For TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import require
from .sink import Kind, Sink

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class TensorBoard(Sink):
    """Writes each report's values as scalars train/NAME and evaluation/NAME, messages as text, and figures as images.

    Args:
        folder: of the event files.
        start_step: of the checkpoint that the training goes on from: what an earlier process wrote beyond it is hidden.
    """

    def __init__(self, folder: Path, start_step: int = 0) -> None:
        require("tensorboard", "tensorboard")
        SummaryWriter = require("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._writer = SummaryWriter(str(folder), purge_step=start_step + 1)

    def report(self, kind: Kind, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)
        self._writer.flush()

    def figure(self, name: str, step: int, figure: Figure) -> None:
        self._writer.add_figure(name, figure, step, close=False)

    def close(self) -> None:
        self._writer.close()
