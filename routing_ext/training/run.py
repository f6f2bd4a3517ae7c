"""A run is a folder: configuration, environment, log, metrics, checkpoints, figures."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from .._extension import build_info
from .._version import __version__
from .checkpoints import Checkpoints, load_checkpoint
from .config import TrainConfig
from .config_file import read_config, write_config
from .errors import CheckpointError, RunError
from .problems import Problem


class Run:
    """The folder of a run.

    ======================= ==================================================================================
    ``config.yaml``          all options; ``routing-ext train --config`` reads it
    ``environment.json``     versions, build and machine
    ``log.txt``              what happened, line by line
    ``metrics.jsonl``        a line for each report and each evaluation
    ``tensorboard/``         the same for TensorBoard
    ``checkpoints/``         the last few, and the best
    ``figures/``             made by ``routing-ext test`` and ``plot``
    ======================= ==================================================================================

    :meth:`create` and :meth:`open` make one.

    Attributes:
        path: of the folder.
        problem: what is trained.
        config: how.
        checkpoints: its checkpoints.
    """

    def __init__(self, path: Path, problem: Problem, config: TrainConfig) -> None:
        self.path = path
        self.problem = problem
        self.config = config
        self.checkpoints = Checkpoints(path / "checkpoints", config.keep_checkpoints)
        self._lock: int | None = None

    @classmethod
    def create(cls, path: str | Path, problem: Problem, config: TrainConfig) -> Run:
        """A new one, with its configuration and environment.

        Args:
            path: of a folder that does not exist, or is empty.
            problem: one of ours.
            config: how it is trained.

        Raises:
            RunError: the folder is not empty, or cannot be written.
        """
        run = cls(Path(path), problem, config)
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            if any(path.name != "environment.json" for path in run.path.iterdir()):  # which alone is of one that failed here
                raise RunError(f"{path} is not empty: give another folder, or go on with a run by --resume {path}")
            (run.path / "environment.json").write_text(json.dumps(describe_environment(), indent=2) + "\n")
            write_config(run.path / "config.yaml", problem, config)
        except OSError as error:
            raise RunError(f"cannot write to {path}: {error.strerror}; give another folder with --out") from None
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """One that is there.

        Args:
            path: of its folder.

        Raises:
            RunError: it is no run.
            ConfigError: its configuration cannot be read.
        """
        path = Path(path)
        if not (path / "config.yaml").is_file():
            raise RunError(f"{path} is no run: it must have a file config.yaml, as `routing-ext train` writes it")
        return cls(path, *read_config(path / "config.yaml"))

    def lock(self) -> None:
        """Keeps other processes from training it, until :meth:`unlock` or the end of this process, whatever ends it.

        Raises:
            RunError: another process trains it.
        """
        folder = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(folder)
            raise RunError(f"{self.path} is being trained by another process: wait for its end, or stop it") from None
        except OSError:  # a file system without locks
            os.close(folder)
            return
        self._lock = folder

    def unlock(self) -> None:
        """Lets others train it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.resolve().name

    @property
    def log(self) -> Path:
        """The file."""
        return self.path / "log.txt"

    @property
    def metrics_file(self) -> Path:
        """The file."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """The folder."""
        return self.path / "tensorboard"

    @property
    def figures(self) -> Path:
        """The folder, which may not be there."""
        return self.path / "figures"

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a last one that was cut off is left out."""
        lines = self.metrics_file.read_text().splitlines() if self.metrics_file.is_file() else []
        rows = []
        for number, line in enumerate(lines, 1):
            try:
                rows.append(json.loads(line))
            except ValueError:
                if number < len(lines):
                    raise RunError(f"{self.metrics_file}:{number} is no JSON") from None
        return rows

    def load_network(self, which: Literal["best", "last"] = "best") -> nn.Module:
        """The trained network, on the CPU, in evaluation mode.

        Args:
            which: the checkpoint; if there is no best one yet, the last one is taken.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        if which == "best" and self.checkpoints.best.is_file():
            state: dict[str, Any] | None = load_checkpoint(self.checkpoints.best)
        else:
            state = self.checkpoints.load_last()
        if state is None:
            raise CheckpointError(
                f"{self.path} has no checkpoint yet: train it first (routing-ext train --resume {self.path})"
            )
        network = self.problem.network().to(self.config.torch_dtype)
        network.load_state_dict(state["model"])
        return network.eval()


def next_run(parent: str | Path, stem: str) -> Path:
    """A folder that is not there yet: ``parent/stem-1``, or with the next number.

    Args:
        parent: of the runs.
        stem: of its name.
    """
    number = 1
    while (path := Path(parent, f"{stem}-{number}")).exists():
        number += 1
    return path


def describe_environment() -> dict[str, Any]:
    """Versions, build, and machine."""
    return {
        "routing_ext": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "build": build_info(),
        "command": sys.argv,
    }
