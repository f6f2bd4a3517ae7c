"""The training program of pytorch-dnc: its agent, environment and circuit, run as it runs them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.memory_peers import import_reference, reference_arguments
from routing_ext.training import SequenceProblem, TrainConfig

SIZES = ("hidden_dim", "num_write_heads", "num_read_heads", "mem_hei", "mem_wid", "clip_value")


class Training(NamedTuple):
    """What comes out of it: the loss of each step and of the evaluation at the end, and seconds of training and evaluation."""

    losses: list[float]
    evaluation_loss: float
    seconds: float
    evaluation_seconds: float


def train_reference(folder: Path, problem: SequenceProblem, config: TrainConfig) -> Training:
    """Trains the reference's DNC on its repeat-copy, up to an evaluation at the last step.

    Its agent does all of it, but for the one step that a current torch refuses: it takes a loss apart as an array.

    Args:
        folder: a checkout of pytorch-dnc.
        problem: repeat-copy, and the sizes of a DNC.
        config: numbers of the training.

    Raises:
        FileNotFoundError: there is no checkout.
    """
    agent_type = import_reference(folder, "core.agents.sl_agent").SLAgent
    environment = import_reference(folder, "core.envs.repeat_copy_env").RepeatCopyEnv
    circuit = import_reference(folder, "core.circuits.dnc_circuit").DNCCircuit

    class Agent(agent_type):  # type: ignore[misc, valid-type]
        def _backward(self) -> float:
            if self.training:
                self.optimizer.zero_grad()
            loss = F.binary_cross_entropy(self.output_vb, self.target_vb, weight=self.mask_ts) / self.batch_size
            if self.training:
                loss.backward()
                self.optimizer.step()
            return loss.item()

    words = _Words()
    np.random.seed(config.seed)
    torch.manual_seed(config.seed)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        agent = Agent(_arguments(problem, config, words, Path(scratch, "model.pth")), environment, circuit)
        agent.fit_model()
    (_, evaluation_loss), losses = agent.loss_avg_log[-1], [loss for (loss,) in agent.training_loss_avg_log]
    return Training(losses, float(evaluation_loss), words.number("Elapsed Time"), words.number("Took"))


class _Words:
    """In place of its logger: keeps what it says."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def warning(self, line: str, *values: Any) -> None:
        self.lines.append(line % values if values else line)

    def number(self, name: str) -> float:
        """The last one behind this name."""
        return next(float(line.rpartition(": ")[2]) for line in reversed(self.lines) if name in line)


def _arguments(problem: SequenceProblem, config: TrainConfig, logger: _Words, model: Path) -> SimpleNamespace:
    """Its options, from ours."""
    shared = {"logger": logger, "mode": 1, "visualize": False, "seed": config.seed}
    environment = SimpleNamespace(**shared, env_type="repeat-copy", game="", **dataclasses.asdict(problem.task))
    sizes = {name: value for name, value in dataclasses.asdict(problem.circuit).items() if name in SIZES}
    return SimpleNamespace(
        **shared,
        env_params=environment,
        circuit_params=reference_arguments({**sizes, "batch_size": config.batch_size}),
        model_name=str(model),
        model_file=None,
        render=False,
        save_best=False,
        use_cuda=False,
        dtype=torch.FloatTensor,
        criteria=None,
        optim=torch.optim.RMSprop,
        lr=config.lr,
        optim_eps=config.eps,
        optim_alpha=config.alpha,
        steps=config.steps,
        batch_size=config.batch_size,
        early_stop=None,
        clip_grad=config.clip_grad_value,
        prog_freq=config.steps,
        eval_freq=config.steps,
        eval_steps=config.evaluation_batches,
        test_nepisodes=0,
    )
