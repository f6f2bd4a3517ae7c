"""routing-ext test: what a trained network can do, and how it does it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from tyro.conf import Positional

from ..tasks.digit_batch import BASE, DigitBatch
from ..training.errors import RunError, require
from ..training.presets import problem_name
from ..training.problems import RoutingProblem, SequenceProblem
from ..training.run import Run
from ..training.watch import TensorBoard
from ..training.watch.visdom import PORT, VisdomServer, no_server, play
from .errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH_SIZE = 32
PLAY_SECONDS, PLAY_SECONDS_A_STEP = 15.0, 0.5  # at most


@dataclasses.dataclass(frozen=True)
class Options:
    """routing-ext test RUN tests the network of a run, also on larger problems than it was trained on, and draws what it does.

    Tables and figures are kept in the folder figures of the run, and are images of its TensorBoard.

    Attributes:
        run: the folder of a run
        checkpoint: the best one, or the last one
        sequences: of each problem
        seed: of the problems
        visdom: show heads and memory, step by step, on the Visdom server of this machine, in the environment RUN_test
        visdom_port: of that server
    """

    run: Positional[Path]
    checkpoint: Literal["best", "last"] = "best"
    sequences: int = 512
    seed: int = 0
    visdom: bool = False
    visdom_port: int = PORT


def run(options: Options) -> None:
    """Prints a table, and says where the figures are."""
    if options.sequences < 1:
        raise UserError(f"sequences must be at least 1, got {options.sequences}", exit_code=2)
    require("matplotlib", "matplotlib")
    opened = Run.open(options.run)
    network = opened.load_network(options.checkpoint)
    try:
        opened.figures.mkdir(exist_ok=True)
        if isinstance(opened.problem, SequenceProblem):
            _test_sequences(opened, opened.problem, network, options)
        elif isinstance(opened.problem, RoutingProblem):
            _test_routes(opened, opened.problem, network)
    except OSError as error:
        raise RunError(f"cannot write to {opened.figures}: {error.strerror or error}") from None
    print(f"Figures: {opened.figures}")


def _keep(opened: Run, table: Any, name: str, figures: dict[str, Figure]) -> None:
    """Writes a table and figures, the latter for TensorBoard, too."""
    (opened.figures / f"{name}.json").write_text(json.dumps(table, indent=2) + "\n")
    last_step = max((line["step"] for line in opened.metrics()), default=0)
    board = TensorBoard(opened.tensorboard, last_step)
    for file, figure in figures.items():
        figure.savefig(opened.figures / f"{file}.png")
        board.figure(file, last_step, figure)
    board.close()


# ---- sequences -----------------------------------------------------------------------------------------------------------


def _test_sequences(opened: Run, problem: SequenceProblem, network: nn.Module, options: Options) -> None:
    from ..training.figures import Trace, animate_trace, draw_trace, trace

    name, circuit = problem_name(problem), problem.circuit.circuit.upper()
    tasks = {"as trained": problem.task, **problem.task.harder()}
    generator = torch.Generator().manual_seed(options.seed)
    batches = -(-options.sequences // BATCH_SIZE)
    table: dict[str, dict[str, float]] = {}
    traces: dict[str, Trace] = {}
    width = max(map(len, tasks)) + 2
    is_digits = isinstance(problem.batch(1, torch.Generator().manual_seed(0)), DigitBatch)
    unit, guess = ("digit", f"{math.log2(BASE):.2f} bits") if is_digits else ("bit", "1 bit")
    print(f"{name}, {circuit}, {batches * BATCH_SIZE:,} new sequences a row; whoever guesses pays {guess} a {unit}")
    print(f"{'':{width}}{'steps':>6}{'bits a sequence':>17}{f'bits a {unit}':>14}{'without an error':>18}")
    for label, task in tasks.items():
        tested = dataclasses.replace(problem, task=task)
        values = tested.evaluate(network, BATCH_SIZE, generator, batches)
        batch = tested.batch(BATCH_SIZE, generator).to(next(network.parameters()).dtype)
        longest = int((batch.mask[..., 0] > 0).sum(0).argmax())
        traces[label] = trace(network, batch, longest)
        table[label] = {"steps": traces[label].num_steps, **values, "right": 1 - values["wrong"]}
        bits = f"{values['bits']:>17.4g}{values['bits_per_bit']:>14.2g}"
        print(f"{label:{width}}{traces[label].num_steps:>6}{bits}{1 - values['wrong']:>17.1%}", flush=True)
    figures = {}
    for label, one in traces.items():
        about = f"{circuit}, {options.checkpoint} checkpoint of {opened.name}. Each column shows what is there after a step"
        figures[f"sequence-{_slug(label)}"] = draw_trace(one, f"One sequence of {name}, {label}", about)
    _keep(opened, table, "generalisation", figures)
    first = traces["as trained"]
    animate_trace(first, opened.figures / "sequence-as-trained.gif", f"{name}, {circuit}")
    if options.visdom:
        _play(VisdomServer(f"{opened.name}_test", options.visdom_port), first)


def _play(server: VisdomServer, trace: Any) -> None:
    print(f"Visdom: {server.page}", flush=True)
    try:
        play(server, trace, min(PLAY_SECONDS_A_STEP, PLAY_SECONDS / trace.num_steps))
    except OSError as error:
        print(no_server(server, error))


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


# ---- routed networks -----------------------------------------------------------------------------------------------------


def _test_routes(opened: Run, problem: RoutingProblem, network: nn.Module) -> None:
    from ..training.figures import draw_routes, follow_routes

    _, images = problem.images
    routes = follow_routes(network, images)
    accuracies = dict(zip(routes.names, routes.accuracies.tolist(), strict=True))
    mean = sum(accuracies.values()) / len(accuracies)
    print(f"{problem.data}, {problem.algorithm}, {problem.architecture}: accuracy on {len(images):,} test images, in %")
    for name, accuracy in {**accuracies, "mean of the tasks": mean}.items():
        print(f"{name:32}{100 * accuracy:6.1f}")
    about = (
        f"{problem.data}, {problem.algorithm}, {problem.architecture}. The darker a cell, the more of a task's images go there"
    )
    figure = draw_routes(routes, f"Tasks and their modules: {100 * mean:.1f} % right", about)
    _keep(opened, {"mean": mean, "tasks": accuracies, "shares": routes.shares.tolist()}, "accuracies", {"routes": figure})
