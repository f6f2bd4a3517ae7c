"""The sinks of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .json_lines import JsonLines
from .log_file import LogFile
from .progress_bar import ProgressBar
from .sink import Sink
from .tensorboard import TensorBoard
from .visdom import PORT, Visdom, VisdomServer

if TYPE_CHECKING:
    from ..run import Run


def open_sinks(
    run: Run,
    total_steps: int,
    start_step: int,
    batch_size: int,
    *,
    visdom: bool = False,
    visdom_port: int = PORT,
    progress: bool = True,
) -> list[Sink]:
    """A progress bar, and what keeps the reports in the folder of a run.

    Args:
        run: whose folder it is.
        total_steps: at which the training ends.
        start_step: of the checkpoint that it goes on from; 0: it begins anew.
        batch_size: sequences a step, those of all processes.
        visdom: draw curves on the Visdom server of this machine, in the environment of the run's name.
        visdom_port: of that server.
        progress: show the bar; messages are shown in any case.

    Raises:
        MissingPackage: a package is missing.
    """
    sinks: list[Sink] = [
        ProgressBar(total_steps, start_step, batch_size, run.name, shown=progress),
        LogFile(run.log),
        JsonLines(run.metrics_file, start_step, batch_size),
        TensorBoard(run.tensorboard, start_step),
    ]
    if visdom:
        server = VisdomServer(run.name, visdom_port)

        def say(text: str) -> None:
            for sink in sinks:
                sink.message(text)

        sinks.append(Visdom(server, batch_size, say, run.metrics()))
        say(f"Visdom: {server.page}")
    return sinks
