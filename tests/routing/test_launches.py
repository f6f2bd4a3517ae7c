"""How many kernels a training step launches on a GPU, as docs/gpu.md states it: the number depends on no size of the batch.

The steps run on the meta device, where each operator that would launch something is counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ALGORITHMS, POLICIES
from test_host_synchronisation import Waits
from torch import Tensor, nn

from routing_ext import routing
from routing_ext.routing import (
    CollaborationReward,
    CorrectClassifiedReward,
    Decision,
    Initialization,
    Loss,
    NegLossReward,
    PerTaskAssignment,
    RunningAverageCollaborationReward,
    Selection,
    fast_sampling,
)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gpu.md"
WIDTH = 6

# What only makes room, or another view of it.
WITHOUT_A_KERNEL = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "_local_scalar_dense",
    "lift_fresh",
    "promote_types",
}
# Of our operators, where it is not one: at most so many for up to 32 decisions of a call, 128 tables, 1024 modules.
OWN = {"dispatch_plan": 2, "grouped_linear_backward": 3, "collaboration_rewards": 2}


class Launches(Waits):
    """Counts launches, by operator.

    Attributes:
        launched: how many each operator has made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if not func.is_view and name not in WITHOUT_A_KERNEL:
            self.launched[name] += OWN.get(name, 1)
        if name == "sample_categorical":  # the reference's stream: each agent draws by itself
            self.launched[name] += len(args[3])
        if name == "sample_by_inversion":
            self.launched[name] += 1
        return super().__torch_dispatch__(func, types, args, kwargs)


class Network(nn.Module):
    """Three decisions, each followed by a selection of linear modules."""

    def __init__(self, decision: Callable[[], Decision], modules: int) -> None:
        super().__init__()
        self.decisions = nn.ModuleList(decision() for _ in range(3))
        self.selections = nn.ModuleList(Selection(*[nn.Linear(WIDTH, WIDTH) for _ in range(modules)]) for _ in range(3))

    def forward(self, x: Tensor, tasks: Tensor, masks: list[Tensor] | None) -> tuple[Tensor, Any]:
        ys, mxs, _ = Initialization()(x, tasks)
        ys, mxs, agents = PerTaskAssignment()(ys, mxs)
        for i, (decision, selection) in enumerate(zip(self.decisions, self.selections, strict=True)):
            mask = None if masks is None else masks[i]
            ys, mxs, actions = decision(ys, mxs, agents, mask=mask)
            ys, mxs, _ = selection(ys, mxs, actions, mask=mask)
        return ys, mxs


def launches(
    algorithm: str,
    batch: int = 12,
    modules: int = 4,
    agents: int = 3,
    masked: bool = False,
    fast: bool = False,
    **kwargs: Any,
) -> Counter[str]:
    """Of a step of a network, its second one: forward pass, loss and backward pass."""
    network = Network(lambda: getattr(routing, algorithm)(modules, WIDTH, num_agents=agents, **kwargs), modules).to("meta")
    loss = Loss(nn.CrossEntropyLoss(), CorrectClassifiedReward() if masked else NegLossReward())
    x = torch.empty((batch, WIDTH), device="meta")
    tasks = torch.empty(batch, dtype=torch.int64, device="meta")
    masks = [torch.empty(batch, dtype=torch.bool, device="meta") for _ in range(3)] if masked else None
    counted = Launches()
    for _ in range(2):
        network.zero_grad()
        with counted:
            counted.launched.clear()
            if fast:
                with fast_sampling():
                    ys, mxs = network(x, tasks, masks)
                    total = sum(loss(ys, mxs, tasks))
            else:
                ys, mxs = network(x, tasks, masks)
                total = sum(loss(ys, mxs, tasks))
            total.backward()  # type: ignore[union-attr]
    return counted.launched.copy()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("storage", ["approx", "tabular"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_do_not_depend_on_the_batch_and_the_modules(algorithm: str, storage: str, masked: bool) -> None:
    if algorithm == "RELAX" and storage == "tabular":
        pytest.skip("its control variate is a network")
    options = {"masked": masked, "policy_storage_type": storage}
    assert launches(algorithm, **options) == launches(algorithm, batch=900, modules=40, **options)


@pytest.mark.parametrize("reward", [CollaborationReward, RunningAverageCollaborationReward])
def test_with_rewards_for_each_choice(reward: type[Any]) -> None:
    def counted(**sizes: int) -> Counter[str]:
        return launches("WPL", policy_storage_type="tabular", additional_reward_func=reward(0.1), **sizes)

    assert counted() == counted(batch=900, modules=40)


def test_each_agent_draws_by_itself_unless_asked_not_to() -> None:
    """That is the reference's stream of random numbers; and all that grows with the agents."""
    few, many = (launches("WPL", batch=60, agents=a, policy_storage_type="tabular") for a in (3, 20))
    assert (many - few) == Counter(sample_categorical=3 * 17)
    few, many = (launches("WPL", batch=60, agents=a, policy_storage_type="tabular", fast=True) for a in (3, 20))
    assert few == many


def stated() -> dict[str, tuple[int, int]]:
    """The rows of the page's table."""
    section = PAGE.read_text().partition("\n## Launches of a routing step\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)`, (approx|tabular) \| (\d+) \| (\d+) \|$", section, re.MULTILINE)
    return {f"{name} {storage}": (int(exact), int(fast)) for name, storage, exact, fast in rows}


@pytest.mark.parametrize("name", stated())
def test_numbers_of_the_page(name: str) -> None:
    algorithm, storage = name.split()
    own = [launches(algorithm, batch=60, agents=20, policy_storage_type=storage, fast=f).total() for f in (False, True)]
    assert tuple(own) == stated()[name]


def test_the_page_has_the_common_ones() -> None:
    assert {name.split()[0] for name in stated()} >= {"WPL", "REINFORCE", "QLearning", "GumbelSoftmax"}
    assert all(name.split()[0] in POLICIES + ALGORITHMS for name in stated())
