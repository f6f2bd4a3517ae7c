"""DistributedDataParallel: two processes with a part of the batch each train as one process with all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
from helpers import generator
from networks import ALGORITHMS, Routed, assert_close
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from two_processes import in_two_processes

from routing_ext.ops import DispatchPlan
from routing_ext.routing import Loss, ManualReward, NegLossReward, replay

WIDTH, LAYERS, STEPS = 6, 3, 3
PARTS = {"halves": [slice(0, 4), slice(4, 8)], "unequal parts": [slice(0, 5), slice(5, 8)]}

# Modules: 0 and 1 are used on both ranks, 2 on rank 0 alone, 3 on none. Agents likewise: 0 on both, 1 on rank 0, 2 on none.
ACTIONS = [torch.tensor(row) for row in ([0, 1, 2, 1, 0, 1, 1, 0], [2, 2, 0, 1, 1, 0, 1, 0], [1, 0, 0, 2, 1, 1, 0, 1])]
TASKS = torch.tensor([0, 1, 0, 1, 0, 0, 0, 0])
ENDING = [torch.tensor(row).bool() for row in ([1] * 8, [1, 1, 0, 1, 0, 1, 1, 1], [0, 1, 0, 1, 0, 0, 0, 1])]
ON_ONE_RANK = [*ENDING[:2], torch.arange(8) < 3]  # in the last layer nobody on rank 1 decides


class Case(NamedTuple):
    """One way of training.

    Attributes:
        idle_rank: no sample of rank 1 decides in the last layer.
        loss_inside: within the wrapped module.
        as_on_cuda: idle modules are in the graph, too.
    """

    algorithm: str
    parts: str = "halves"
    masked: bool = False
    idle_rank: bool = False
    loss_inside: bool = False
    as_on_cuda: bool = False


# RELAX writes gradients by itself, see docs/routing-in-ten-minutes.md.
CASES = [Case(name) for name in ALGORITHMS if name not in ("GumbelSoftmax", "RELAX")]
CASES += [Case("WPL", masked=True), Case("AAC", parts="unequal parts", masked=True), Case("QLearning", parts="unequal parts")]
CASES += [Case("WPL", masked=True, idle_rank=True), Case("QLearning", masked=True, idle_rank=True, loss_inside=True)]
CASES += [Case("WPL", loss_inside=True), Case("REINFORCE", as_on_cuda=True), Case("WPL", masked=True, as_on_cuda=True)]


class WithLoss(nn.Module):
    """``(module losses [B], routing losses [B])`` of a batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.loss = Loss(nn.CrossEntropyLoss(), NegLossReward())

    def forward(self, x: Tensor, tasks: Tensor, masks: Sequence[Tensor] | None, target: Tensor) -> tuple[Tensor, Tensor]:
        ys, mxs, _ = self.network(x, tasks, masks)
        return self.loss(ys, mxs, target, reduce=False)  # type: ignore[no-any-return]


def trained(case: Case, rank: int | None) -> dict[str, Tensor]:
    """The parameters and the last gradients after a few steps; rank None: of one process with the whole batch."""
    torch.manual_seed(0)
    network = Routed(case.algorithm, agents=3, exploration=0.4, reward=lambda size: ManualReward([0.1] * (size - 1) + [0.3]))
    optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    rows = slice(None) if rank is None else PARTS[case.parts][rank]
    step: Any = WithLoss(network)
    if rank is not None and case.loss_inside:
        step = DistributedDataParallel(step, find_unused_parameters=True)
    elif rank is not None:
        step.network = DistributedDataParallel(network, find_unused_parameters=True)
    masks = [mask[rows] for mask in (ON_ONE_RANK if case.idle_rank else ENDING)] if case.masked else None
    for number in range(STEPS):
        x, target = torch.randn(8, WIDTH, generator=generator(number))[rows], (torch.arange(8) % WIDTH)[rows]
        with replay([actions[rows] for actions in ACTIONS]):
            module_losses, routing_losses = step(x, TASKS[rows], masks, target)
        ranks = 1 if rank is None else 2
        total = (module_losses + routing_losses).sum() * ranks / 8  # DistributedDataParallel divides by the ranks
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
    gradients = {f"gradient of {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {name: p.detach() for name, p in network.named_parameters()} | gradients


def as_on_cuda(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DispatchPlan, "selected_early", lambda plan: range(plan.num_modules))


def trained_all(rank: int) -> list[tuple[tuple[Any, ...], dict[str, Tensor]]]:
    found = []
    for case in [*CASES, Case("GumbelSoftmax")]:
        with pytest.MonkeyPatch.context() as patch:
            if case.as_on_cuda:
                as_on_cuda(patch)
            found.append((tuple(case), trained(case, rank)))
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Case, dict[str, Tensor]]]:
    found = in_two_processes(trained_all, tmp_path_factory.mktemp("ddp"))
    return [{Case(*case): result for case, result in of_rank} for of_rank in found]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_trains_as_one_process(case: Case, ranks: list[dict[Case, dict[str, Tensor]]]) -> None:
    whole = trained(case, None)
    idle = {name for name in whole if ".3." in name or "_policy.2" in name}
    assert idle
    assert not any(f"gradient of {name}" in whole for name in idle)
    for rank in ranks:
        assert rank[case].keys() == whole.keys()  # the same gradients are None
        for name, value in whole.items():
            assert_close(rank[case][name], value)


def test_ranks_agree_where_they_draw_their_own_noise(ranks: list[dict[Case, dict[str, Tensor]]]) -> None:
    first, second = (rank[Case("GumbelSoftmax")] for rank in ranks)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
