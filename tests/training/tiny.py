"""Problems that train within a second."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from routing_ext.tasks import RepeatCopy
from routing_ext.training import CircuitConfig, SequenceProblem, TrainConfig

PROBLEM = SequenceProblem(RepeatCopy(), CircuitConfig("dnc", hidden_dim=8, num_read_heads=1, mem_hei=4, mem_wid=4))
CONFIG = TrainConfig(
    steps=40,
    batch_size=4,
    lr=1e-2,
    schedule="linear",
    threads=1,
    report_every=7,
    evaluate_every=10,
    evaluation_batches=2,
    checkpoint_every=5,
)
# On a command line.
OPTIONS = "--hidden-dim 8 --num-read-heads 1 --mem-hei 4 --mem-wid 4 --batch-size 4 --threads 1 --evaluation-batches 2".split()


def config(**changes: Any) -> TrainConfig:
    return dataclasses.replace(CONFIG, **changes)


def weights(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
