"""Numbers to begin with: for each task those that solve it here, and the references' own."""

from __future__ import annotations

import dataclasses

from .. import tasks
from .circuits import CircuitConfig
from .config import TrainConfig
from .problems import Problem, RoutingProblem, SequenceProblem

Setup = tuple[Problem, TrainConfig]

MULTITASK = "multitask"
TASKS = (*tasks.SEQUENCE_TASKS, MULTITASK)

# The sizes of pytorch-dnc.
_NTM = CircuitConfig("ntm", hidden_dim=100, num_write_heads=1, num_read_heads=1, mem_hei=128, mem_wid=20)
_DNC = CircuitConfig("dnc", hidden_dim=64, num_write_heads=1, num_read_heads=4, mem_hei=16, mem_wid=16)

# pytorch-dnc's numbers. It evaluates every 500 steps, on 50 batches, and saves then. It does not apply its clip_grad.
_PYTORCH_DNC = TrainConfig(
    steps=100_000,
    batch_size=16,
    optimizer="rmsprop",
    lr=1e-4,
    alpha=0.9,
    eps=1e-10,
    clip_grad_value=50.0,
    report_every=500,
    evaluate_every=500,
    evaluation_batches=50,
    checkpoint_every=500,
    threads=1,
)

PRESETS: dict[str, Setup] = {
    "ntm-copy": (SequenceProblem(tasks.Copy(), _NTM), _PYTORCH_DNC),
    "dnc-repeat-copy": (SequenceProblem(tasks.RepeatCopy(), _DNC), _PYTORCH_DNC),
}
"""What pytorch-dnc trains, and how, by the names that the command line gives it."""


def default_setup(task: str) -> Setup:
    """What is trained, and how, if nothing else is asked for.

    Args:
        task: its name.

    Raises:
        ValueError: an unknown task.
    """
    if task == MULTITASK:
        return RoutingProblem(), _MULTITASK_CONFIG
    if task not in tasks.SEQUENCE_TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
    circuit, config = _SEQUENCE_DEFAULTS.get(task, (_LARGE_DNC, TrainConfig()))
    return SequenceProblem(tasks.SEQUENCE_TASKS[task](), circuit), config


def problem_name(problem: Problem) -> str:
    """The name of its task.

    Raises:
        ValueError: it has none.
    """
    if isinstance(problem, RoutingProblem):
        return MULTITASK
    if isinstance(problem, SequenceProblem):
        for name, made in tasks.SEQUENCE_TASKS.items():
            if type(problem.task) is made:
                return name
    raise ValueError(f"only the tasks of routing_ext.tasks have names, got {problem}")


_LARGE_DNC = CircuitConfig("dnc", hidden_dim=128, num_write_heads=1, num_read_heads=4, mem_hei=64, mem_wid=32)
_MULTITASK_CONFIG = TrainConfig(
    steps=2000,
    batch_size=64,
    optimizer="adam",
    lr=2e-3,
    eps=1e-8,
    schedule="drops",
    lr_drops=(1000, 1500),
    clip_grad_norm=40.0,
    evaluate_every=250,
)
_SEQUENCE_DEFAULTS = {
    # At an eps of 1e-10, RMSprop goes on with full steps when nothing is left to be learned, until something is lost.
    "copy": (_NTM, dataclasses.replace(_PYTORCH_DNC, steps=4000, lr=2e-3, eps=1e-7, schedule="linear", report_every=100)),
    "repeat-copy": (_DNC, TrainConfig(steps=2500, lr=5e-3, schedule="linear", report_every=50, evaluate_every=250, threads=1)),
}
