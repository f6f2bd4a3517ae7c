"""routing-ext train: trains a network on a task, into the folder of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import threading
import uuid
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from ..training import PRESETS, Run, TrainConfig, Trainer, default_setup, join_replicas, read_config, write_config
from ..training.errors import RunError
from ..training.presets import TASKS, problem_name
from ..training.problems import RoutingProblem, SequenceProblem
from ..training.replicas import Replicas
from ..training.run import next_run
from ..training.trainer import usable_device
from ..training.watch import open_sinks
from ..training.watch.visdom import PORT
from . import parsing
from .errors import UserError
from .parsing import PROGRAM

# What another value of would make another training of.
FIXED = ("seed", "batch_size", "dtype", "optimizer", "init")


@dataclasses.dataclass(frozen=True)
class Options:
    """routing-ext train TASK trains a network; --resume RUN goes on with a run, which ends as if it had never been stopped.

    Attributes:
        problem: the task
        train: the training
        preset: numbers to begin with, those of pytorch-dnc: ntm-copy or dnc-repeat-copy
        config: a file of options, YAML or JSON, such as a run's config.yaml; options given besides come first
        resume: the folder of a run to go on with; options of the training may be changed then
        out: the folder of the run, new or empty; by default runs/TASK-1, or with the next number
        devices: how many processes train together, each with its part of every batch
        write_config: a file, .yaml or .json, that gets all options, and nothing is trained
        visdom: draw curves on the Visdom server of this machine
        visdom_port: of that server
        progress: show a progress bar
    """

    problem: SequenceProblem | RoutingProblem
    train: TrainConfig
    preset: Literal["ntm-copy", "dnc-repeat-copy"] | None = None
    config: Path | None = None
    resume: Path | None = None
    out: Path | None = None
    devices: int = 1
    write_config: Path | None = None
    visdom: bool = False
    visdom_port: int = PORT
    progress: bool = True


def parse(arguments: Sequence[str]) -> Options:
    """The options of a command line; what is not given is as in the file, the preset, the run, or the task's defaults."""
    rest = list(arguments)
    task = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if task is None and any(option in rest for option in ("-h", "--help")):
        task = TASKS[0]  # whose options are shown
        print(f"usage: {PROGRAM} train TASK [OPTIONS]\n       {PROGRAM} train --resume RUN [OPTIONS]\n")
        print(f"TASK: {', '.join(TASKS)}\n")
    sources = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("--preset", "--config", "--resume"):
        sources.add_argument(name, nargs="?")
    found, _ = sources.parse_known_args(rest)
    chosen = [name for name in ("preset", "config", "resume") if getattr(found, name)]
    if len(chosen) > 1:
        raise UserError(f"give one of --{' and --'.join(chosen)}", exit_code=2)
    if found.resume:
        run = Run.open(found.resume)
        problem, train = run.problem, run.config
    elif found.config:
        problem, train = read_config(found.config)
    elif found.preset:
        if found.preset not in PRESETS:
            raise UserError(f"unknown preset {found.preset}: use {' or '.join(PRESETS)}", exit_code=2)
        problem, train = PRESETS[found.preset]
    elif task in TASKS:
        problem, train = default_setup(task)
    else:
        what = "no task is given" if task is None else f"unknown task {task}"
        raise UserError(f"{what}: use {PROGRAM} train TASK, with {', '.join(TASKS[:-1])} or {TASKS[-1]}", exit_code=2)
    name = problem_name(problem)
    if task not in (None, name):
        raise UserError(f"the task is {name} in --{chosen[0]} and {task} before it: leave out one of both", exit_code=2)
    defaults = Options(problem, train)  # type: ignore[arg-type]
    return parsing.parse(Options, rest, "train" if found.resume else f"train {name}", defaults)


def run(options: Options) -> int:
    """Trains, in as many processes as are asked for."""
    if options.devices < 1:
        raise UserError(f"devices must be at least 1, got {options.devices}", exit_code=2)
    usable_device(options.train.device)
    if options.write_config is not None:
        return _write_config(options.write_config, options)
    started_by_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if options.devices > 1 and not started_by_torchrun:
        return _launch(_open_run(options), options)
    replicas = join_replicas(options.train.device)
    with _of_torchrun(replicas):
        run = _first_opens(options, replicas)
        try:
            _train(run, options, replicas)
        finally:
            run.unlock()
    if started_by_torchrun:  # at the interpreter's shutdown, threads of torch.distributed now and then abort the process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def _write_config(path: Path, options: Options) -> int:
    try:
        write_config(path, options.problem, options.train)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another file with --write-config") from None
    print(f"{path}: all options; {PROGRAM} train --config {path} trains with them")
    return 0


def _open_run(options: Options) -> Run:
    """The run to go on with, or a new one."""
    if options.resume is None:
        Trainer(options.problem, options.train)  # raises what is wrong with them before there is a folder
        folder = options.out or next_run("runs", problem_name(options.problem))
        threads = options.train.threads or max(1, torch.get_num_threads() // options.devices)
        run = Run.create(folder, options.problem, dataclasses.replace(options.train, threads=threads))
        run.lock()
        return run
    if options.out is not None:
        raise UserError("--out cannot be given with --resume, which goes on in the folder of the run", exit_code=2)
    before = Run.open(options.resume)
    if options.problem != before.problem:
        raise UserError("--resume cannot change the task or the network: train a new run, perhaps with --init", exit_code=2)
    for name in FIXED:
        if getattr(options.train, name) != getattr(before.config, name):
            raise UserError(f"--resume cannot change {name}: train a new run, perhaps with --init", exit_code=2)
    run = Run(before.path, options.problem, options.train)
    run.lock()
    if options.train != before.config:
        try:
            write_config(run.path / "config.yaml", options.problem, options.train)
        except OSError as error:
            run.unlock()
            raise RunError(f"cannot write to {run.path}: {error.strerror}; it stays as it was") from None
    return run


def _train(run: Run, options: Options, replicas: Replicas) -> None:
    trainer = Trainer(run.problem, run.config, run, replicas=replicas)
    if replicas.rank:
        trainer.fit()
        return
    total, batch_size, began = run.config.steps, run.config.batch_size, trainer.step
    shown = {"visdom": options.visdom, "visdom_port": options.visdom_port, "progress": options.progress}
    try:
        trainer.sinks = open_sinks(run, total, trainer.step, batch_size, **shown)  # type: ignore[arg-type]
    except OSError as error:
        raise RunError(f"cannot write to {run.path}: {error.strerror}; it stays as it was") from None
    threading.excepthook = _in_thread
    try:
        for sink in trainer.sinks:
            where = "Run" if trainer.step == 0 else f"Going on after step {trainer.step}"
            sink.message(f"{where}: {run.path} (TensorBoard: tensorboard --logdir {run.path.parent})")
        values = trainer.fit()
    finally:
        threading.excepthook = threading.__excepthook__
        for sink in trainer.sinks:
            with contextlib.suppress(OSError):  # it was told of already
                sink.close()
    if trainer.step == began:
        print(f"{run.path} had all its {began} steps before; a larger --steps trains on")
    results = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    print(f"{run.path}: {trainer.step} steps; evaluation: {results}")
    print(f"Next: {PROGRAM} test {run.path}")


def _in_thread(error: threading.ExceptHookArgs) -> None:
    """Of a file that TensorBoard's thread cannot write, the training hears by itself."""
    if not isinstance(error.exc_value, OSError):
        threading.__excepthook__(error)


# ---- several processes ---------------------------------------------------------------------------------------------------


def _launch(run: Run, options: Options) -> int:
    """Has torchrun start the processes, each of which resumes the run."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what fails says so itself
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=options.devices,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    run.unlock()  # for the first process
    more = ["--visdom", "--visdom-port", str(options.visdom_port)] if options.visdom else []
    more += ["--no-progress"] * (not options.progress)
    arguments = ["-m", "routing_ext", "train", "--resume", str(run.path), "--devices", str(options.devices), *more]
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        code = int(error.get_first_failure()[1].exitcode)
        return code if code > 0 else 128 - code
    except SignalException as stop:
        return 128 + stop.sigval
    return 0


def _first_opens(options: Options, replicas: Replicas) -> Run:
    """The run, which the first process makes, if it is new."""
    if replicas.size == 1:
        return _open_run(options)
    path: list[Any] = [_open_run(options).path if replicas.rank == 0 else None]
    torch.distributed.broadcast_object_list(path)
    return Run.open(path[0])


@contextlib.contextmanager
def _of_torchrun(replicas: Replicas) -> Any:
    try:
        yield
    finally:
        if replicas.size > 1:
            torch.distributed.destroy_process_group()
