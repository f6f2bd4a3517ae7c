"""Decisions, selections, losses and rewards on each device: what they compute is what the CPU computes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import ALGORITHMS, VALUES, Routed
from torch import Tensor, nn

from routing_ext.routing import (
    WPL,
    BaseReward,
    CollaborationReward,
    CorrectClassifiedReward,
    Initialization,
    Loss,
    ManualReward,
    NegLossReward,
    PerActionBaseReward,
    PerTaskAssignment,
    RoutingGRUCell,
    RoutingLSTMCell,
    RunningAverageCollaborationReward,
    Selection,
    Sequential,
    fast_sampling,
    replay,
)

B, D = 33, 6


def batch(seed: int = 0) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """``(x [B,D], tasks, masks, actions)``, of three decisions."""
    g = torch.Generator().manual_seed(seed)
    masks = [torch.rand(B, generator=g) < 0.7 for _ in range(3)]
    actions = [torch.randint(4, (B,), generator=g) for _ in range(3)]
    return torch.randn(B, D, generator=g), torch.randint(3, (B,), generator=g), masks, actions


def step(network: nn.Module, loss: Loss, device: str, masked: bool) -> dict[str, Tensor]:
    """Losses, actions and gradients of a step with given actions, on the CPU."""
    x, tasks, masks, actions = batch()
    x, tasks = x.to(device).requires_grad_(), tasks.to(device)
    torch.manual_seed(0)
    with replay(actions):
        ys, mxs, taken = network(x, tasks, [m.to(device) for m in masks] if masked else None)
        module_loss, routing_loss = loss(ys, mxs, tasks)
        (module_loss + routing_loss).backward()
    found = {"ys": ys, "module loss": module_loss, "routing loss": routing_loss, "x": x.grad}
    found |= {f"actions {i}": t for i, t in enumerate(taken)}
    found |= {f"explored {i}": s.is_exploratory for i, s in enumerate(mxs.batch_steps)}
    found |= {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert all(t.device.type == device for t in found.values())
    return {name: t.detach().cpu() for name, t in found.items()}


def assert_alike(mine: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert mine.keys() == expected.keys()
    for name, t in expected.items():
        torch.testing.assert_close(mine[name], t, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("storage", ["approx", "tabular"])
@pytest.mark.parametrize("algorithm", [a for a in ALGORITHMS if a not in ("GumbelSoftmax", "RELAX")])
def test_a_step_is_that_of_the_cpu(algorithm: str, storage: str, masked: bool, device: str) -> None:
    torch.manual_seed(1)
    network = Routed(algorithm, agents=3, policy_storage_type=storage)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    twin = copy.deepcopy(network).to(device)
    for reward in (NegLossReward(), CorrectClassifiedReward()):
        network.zero_grad()
        twin.zero_grad()
        loss = Loss(nn.CrossEntropyLoss(), reward, discounting=0.9)
        assert_alike(step(twin, loss, device, masked), step(network, loss, "cpu", masked))


@pytest.mark.parametrize(
    "reward",
    [CollaborationReward, RunningAverageCollaborationReward, lambda: ManualReward([0.1, 0.2, 0.3, 0.4]), PerActionBaseReward],
    ids=["collaboration", "running average", "manual", "none"],
)
@pytest.mark.parametrize("masked", [False, True])
def test_rewards_are_those_of_the_cpu(reward: Callable[[], PerActionBaseReward], masked: bool, device: str) -> None:
    torch.manual_seed(1)
    networks = [Routed("WPL", agents=3, reward=lambda _: reward(), policy_storage_type="tabular") for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    loss = Loss(nn.CrossEntropyLoss(), NegLossReward())
    for _ in range(2):  # with what the first step has registered, too
        for network in networks:
            network.zero_grad()
        assert_alike(step(networks[1].to(device), loss, device, masked), step(networks[0], loss, "cpu", masked))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("storage", ["approx", "tabular"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_draws(algorithm: str, storage: str, training: bool, fast: bool, device: str) -> None:
    """Without given actions: all are in range, and there are gradients."""
    if (algorithm, storage) == ("RELAX", "tabular"):
        pytest.skip("its control variate is a network")
    torch.manual_seed(1)
    options = {"detach": False} if algorithm == "RELAX" else {}
    network = Routed(
        algorithm, agents=3, sizes=(4,) if algorithm == "RELAX" else (4, 4, 4), policy_storage_type=storage, **options
    )
    network.to(device).train(training)
    x, tasks, masks, _ = batch()
    x, tasks = x.to(device), tasks.to(device)
    loss = Loss(nn.CrossEntropyLoss(), NegLossReward())
    for mask in (None, [m.to(device) for m in masks]):
        with fast_sampling() if fast else torch.enable_grad():
            ys, mxs, taken = network(x, tasks, mask)
        assert ys.device.type == device
        for i, actions in enumerate(taken):
            assert actions.min() >= 0
            assert actions.max() < 4
            assert mask is None or not actions[~mask[i]].any()
        sum(loss(ys, mxs, tasks)).backward()  # type: ignore[union-attr]
        assert all(mx.steps[0]["actions"].device.type == device for mx in [mxs[0]] if mx.steps)
        assert any(p.grad is not None for p in network.parameters())


def test_the_distribution_is_right(device: str) -> None:
    layer = WPL(3, D, policy_storage_type="tabular")
    layer._policy[0]._approx.data[0] = torch.tensor([0.0, 1.0, 3.0])
    layer.to(device)
    x = torch.zeros(20000, D, device=device)
    for context in (fast_sampling(), torch.enable_grad()):
        torch.manual_seed(0)
        with context:
            _, _, actions = layer(x, Initialization()(x)[1])
        found = torch.bincount(actions, minlength=3).cpu() / 20000
        torch.testing.assert_close(found, torch.tensor([0.0, 0.25, 0.75]), rtol=0, atol=0.02)


class _EachSample(BaseReward):
    """As a user of the reference writes it."""

    def forward(self, loss: Tensor, yest: Tensor, ytrue: Tensor) -> Tensor:
        return -loss.squeeze() + (yest.argmax() == ytrue).float()


class _EachAction(PerActionBaseReward):
    def get_reward(self, dist: Tensor, action: Tensor) -> Tensor:
        return 0.1 * dist[0, action, 0]


def test_rewards_of_users(device: str) -> None:
    torch.manual_seed(1)
    networks = [Routed("WPL", agents=3, reward=lambda _: _EachAction()) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    loss = Loss(nn.CrossEntropyLoss(), _EachSample())
    mine, expected = step(networks[1].to(device), loss, device, True), step(networks[0], loss, "cpu", True)
    assert_alike(mine, expected)


@pytest.mark.parametrize("double", [False, True])
def test_selections(double: bool, device: str) -> None:
    """Linear modules, and others; in float64 as well."""
    x, _, masks, actions = batch()
    for make in (lambda: nn.Linear(D, 5), lambda: nn.Sequential(nn.Linear(D, 5), nn.Tanh())):
        torch.manual_seed(0)
        layer = Selection(*[make() for _ in range(4)])
        layer = layer.double() if double else layer
        twin = copy.deepcopy(layer).to(device)
        results = []
        for selection, place in ((layer, "cpu"), (twin, device)):
            xs = x.to(place, torch.float64 if double else torch.float32, copy=True).requires_grad_()
            ys, _, _ = selection(xs, [None] * B, actions[0].to(place), masks[0].to(place))
            ys.square().sum().backward()
            results.append(
                {"ys": ys, "x": xs.grad, **{n: p.grad for n, p in selection.named_parameters() if p.grad is not None}}
            )
        assert_alike({n: t.detach().cpu() for n, t in results[1].items()}, {n: t.detach() for n, t in results[0].items()})


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("cell_class", [RoutingLSTMCell, RoutingGRUCell])
def test_recurrent_cells(cell_class: type[Any], recurrent: bool, device: str) -> None:
    torch.manual_seed(0)
    cell = cell_class(D, D, 3, 2, WPL, recurrent=recurrent)
    twin = copy.deepcopy(cell).to(device)
    x, _, masks, _ = batch()
    results = []
    for layer, place in ((cell, "cpu"), (twin, device)):
        _, mxs, _ = Initialization()(x.to(place))
        with replay([torch.arange(B) % 3] * 2):
            hidden, _ = layer(x.to(place), None, mxs, mask=masks[0].to(place))
        h = hidden[0] if isinstance(hidden, tuple) else hidden
        h.square().sum().backward()
        results.append({"h": h, **{n: p.grad for n, p in layer.named_parameters() if p.grad is not None}})
    assert_alike({n: t.detach().cpu() for n, t in results[1].items()}, {n: t.detach() for n, t in results[0].items()})


def test_sequential_and_assignments(device: str) -> None:
    torch.manual_seed(0)
    x, tasks, _, _ = batch()
    network = Sequential(PerTaskAssignment(), Selection(*[nn.Linear(D, D) for _ in range(3)]), nn.Tanh(), WPL(2, D))
    expected, _ = network(x, tasks)
    for given in (tasks.to(device), tasks.tolist()):
        ys, mxs = copy.deepcopy(network).to(device)(x.to(device), given)
        torch.testing.assert_close(ys.cpu(), expected)
        assert mxs.batch_steps[0].actions.device.type == device


@pytest.mark.parametrize("algorithm", VALUES)
def test_double_backward(algorithm: str, device: str) -> None:
    torch.manual_seed(0)
    network = Routed(algorithm, sizes=(4,), policy_storage_type="tabular").to(device)
    x, _, _, actions = batch()
    with replay(actions):
        ys, mxs, _ = network(x.to(device))
    _, routing_loss = Loss(nn.MSELoss(), NegLossReward())(ys, mxs, torch.zeros_like(ys))
    table = next(p for p in network.decisions.parameters() if p.numel() == 4)
    (grad,) = torch.autograd.grad(routing_loss, table, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), table)
    assert second.isfinite().all()
    assert second.any()
