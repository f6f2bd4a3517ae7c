"""Two processes train as one does on the joined batch."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CONFIG, PROBLEM, weights
from torch import nn
from two_processes import in_two_processes

from routing_ext.cli import main
from routing_ext.tasks import Copy
from routing_ext.training import CircuitConfig, Problem, Replicas, RoutingProblem, Run, SequenceProblem, TrainConfig, Trainer
from routing_ext.training.replicas import ALONE
from routing_ext.training.watch import Sink

HOW = dataclasses.replace(CONFIG, batch_size=5, dtype="float64", report_every=1, steps=12, clip_grad_norm=0.05)
EXACT: dict[str, Problem] = {
    "dnc": PROBLEM,
    "lstm": SequenceProblem(Copy(), CircuitConfig("lstm", hidden_dim=8)),
}
ROUTED = RoutingProblem("digits")


class Losses(Sink):
    def __init__(self) -> None:
        self.reports: list[tuple[str, int, float, float]] = []

    def report(self, kind: Any, step: int, values: Any) -> None:
        self.reports.append((kind, step, values["loss"], values.get("wrong", 0.0)))


def trained(problem: Problem, how: TrainConfig, run: Run | None = None, replicas: Replicas = ALONE) -> dict[str, Any]:
    losses = Losses()
    trainer = Trainer(problem, how, run, [losses], replicas)
    trainer.fit()
    return {"losses": losses.reports, "weights": weights(trainer.network)}


def add_up(replicas: Replicas) -> dict[str, Any]:
    """What becomes of a gradient of both processes, of one, and of none; and of a flag of one, and of none."""
    parameters = [nn.Parameter(torch.zeros(n)) for n in (2, 3, 4)]
    parameters[0].grad = torch.full((2,), 1.0 + replicas.rank)
    if replicas.rank == 1:
        parameters[1].grad = torch.ones(3)
    flag = replicas.add_up(parameters, replicas.rank == 0)
    gradients = [None if p.grad is None else p.grad.tolist() for p in parameters]
    return {"gradients": gradients, "flags": [flag, replicas.add_up(parameters, False)]}


def process(folder: Path, rank: int) -> dict[str, Any]:
    replicas = Replicas(rank, 2)
    found = {name: trained(problem, HOW, Run(folder / name, problem, HOW), replicas) for name, problem in EXACT.items()}
    found["routed"] = trained(ROUTED, dataclasses.replace(CONFIG, steps=5, batch_size=20), replicas=replicas)
    found["add up"] = add_up(replicas)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("replicas")
    return in_two_processes(functools.partial(process, folder), folder)


@pytest.mark.parametrize("name", EXACT)
def test_losses_and_weights_are_those_of_one_process(name: str, ranks: list[dict[str, Any]]) -> None:
    """The batch of 5 is not divisible by 2."""
    first, second = (rank[name] for rank in ranks)
    alone = trained(EXACT[name], HOW)
    assert len(first["losses"]) == 14  # 12 reports and 2 evaluations
    for got, expected in zip(first["losses"], alone["losses"], strict=True):
        assert got[:2] == expected[:2]
        assert got[2:] == pytest.approx(expected[2:], rel=1e-9)
    assert second["losses"] == [report for report in first["losses"] if report[0] == "train"]
    for key, value in alone["weights"].items():
        assert torch.equal(first["weights"][key], second["weights"][key])
        torch.testing.assert_close(first["weights"][key], value, rtol=1e-7, atol=1e-9)


def test_routed_networks_stay_the_same_in_all_processes(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["routed"]["weights"] for rank in ranks)
    assert all(torch.equal(first[name], second[name]) for name, _ in ROUTED.network().named_parameters())


def test_parameters_that_no_process_used_stay_without_gradient(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["add up"] == {"gradients": [[3.0, 3.0], [1.0, 1.0, 1.0], None], "flags": [True, False]}


def test_rows_are_divided() -> None:
    for batch_size in (1, 5, 16):
        for size in (1, 2, 3):
            parts = [Replicas(rank, size).rows(batch_size) for rank in range(size)]
            assert [row for part in parts for row in range(part.start, part.stop)] == list(range(batch_size))


@pytest.mark.slow
def test_the_program_starts_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And their run, resumed by one process, is one like any other."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    options = "--hidden-dim 8 --batch-size 6 --steps 10 --report-every 1 --evaluate-every 5 --threads 1".split()
    train = ["train", "copy", "--circuit", "lstm", *options, "--no-progress", "--out"]
    assert main([*train, str(tmp_path / "two"), "--devices", "2"]) == 0
    assert main([*train, str(tmp_path / "one")]) == 0
    two, one = (Run.open(tmp_path / name) for name in ("two", "one"))
    assert [line["loss"] for line in two.metrics()] == pytest.approx([line["loss"] for line in one.metrics()], rel=1e-4)
    assert main(["train", "--resume", str(two.path), "--steps", "12", "--no-progress"]) == 0
    assert two.metrics()[-1]["step"] == 12
