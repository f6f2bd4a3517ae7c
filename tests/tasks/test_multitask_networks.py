"""The routed networks for several tasks: who decides in which architecture, and that each learns."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from helpers import generator
from torch import Tensor, nn

from routing_ext import routing
from routing_ext.routing import CorrectClassifiedReward, Decision, Loss, PassThrough, PerTaskAssignment
from routing_ext.tasks import MultiTaskNetwork
from routing_ext.tasks.multitask_networks import Architecture, convolutional_trunk

TASKS = 3
SHAPE = (1, 8, 8)
ARCHITECTURES = get_args(Architecture)
ALGORITHMS = sorted(
    name
    for name, made in vars(routing).items()
    if isinstance(made, type) and issubclass(made, Decision) and made is not Decision
)


def network(architecture: Architecture, decision: Any = routing.REINFORCE, seed: int = 0, **kwargs: Any) -> MultiTaskNetwork:
    torch.manual_seed(seed)
    return MultiTaskNetwork(SHAPE, 2, TASKS, decision, architecture, **kwargs)


def questions(count: int, visible: bool, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """``(images, labels, tasks)``: is the bright half the left one; task 1 asks for the opposite.

    If it is visible, two bright rows tell the task.
    """
    draw = generator(seed)
    tasks, side = (torch.randint(n, (count,), generator=draw) for n in (TASKS, 2))
    images = torch.rand(count, 1, 8, 8, generator=draw) * 0.2
    halves = images.view(count, 8, 2, 4)  # a view, of the same numbers
    halves[torch.arange(count), :, side] += 1
    if visible:
        rows = images.view(count, 4, 2, 8)
        rows[torch.arange(count), tasks] += 2
    return images.contiguous(memory_format=torch.channels_last), side ^ (tasks == 1).long(), tasks


def accuracy(net: MultiTaskNetwork, visible: bool) -> float:
    images, labels, tasks = questions(300, visible, seed=1)
    net.eval()
    with torch.no_grad():
        logits, _ = net(images, tasks)
    return (logits.argmax(1) == labels).float().mean().item()


def train(net: MultiTaskNetwork, visible: bool, steps: int = 150, decision_learning_rate: float = 0.1) -> float:
    """The accuracy on new images after it."""
    images, labels, tasks = questions(64 * steps, visible)
    optimizer = torch.optim.Adam(net.parameter_groups(0.005, decision_learning_rate))
    loss = Loss(nn.CrossEntropyLoss(), CorrectClassifiedReward())
    net.train()
    for rows in torch.arange(len(labels)).split(64):
        logits, meta = net(images[rows], tasks[rows])
        optimizer.zero_grad()
        sum(loss(logits, meta, labels[rows])).backward()  # type: ignore[union-attr]
        optimizer.step()
    return accuracy(net, visible)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_architecture_learns(architecture: Architecture) -> None:
    assert train(network(architecture), visible=True) > 0.95


def test_routes_tell_modules_the_task() -> None:
    """Nothing else does, where the image does not: without routes of its own a task cannot be answered."""
    assert train(network("per-task"), visible=False) > 0.95
    assert train(network("per-task", PerTaskAssignment), visible=False) > 0.95
    assert train(network("per-task", PassThrough), visible=False) < 0.8


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_takes_a_step(algorithm: str, architecture: Architecture) -> None:
    net = network(architecture, getattr(routing, algorithm), num_modules=4)
    images, labels, tasks = questions(10, visible=True)
    logits, meta = net(images, tasks)
    assert logits.shape == (10, 2)
    module_loss, decision_loss = Loss(nn.CrossEntropyLoss(), CorrectClassifiedReward())(logits, meta, labels)
    (module_loss + decision_loss).backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    assert all(bool(g.isfinite().all()) for g in gradients.values())
    assert any(name.startswith("trunk") for name in gradients)
    no_choice = algorithm in ("PassThrough", "PerTaskAssignment")
    assert any(name.startswith("decisions") for name in gradients) is not no_choice


@pytest.mark.parametrize(
    ("architecture", "decisions", "agents"), [("per-task", 3, TASKS), ("dispatched", 4, TASKS), ("single", 3, 1)]
)
def test_who_decides(architecture: Architecture, decisions: int, agents: int) -> None:
    net = network(architecture, num_modules=5)
    images, labels, tasks = questions(6, visible=True)
    tasks.fill_(2)
    logits, meta = net(images, tasks)
    assert len(meta.batch_steps) == decisions
    sum(Loss(nn.CrossEntropyLoss(), CorrectClassifiedReward())(logits, meta, labels)).backward()  # type: ignore[union-attr]
    asked = {"per-task": {2}, "single": {0}, "dispatched": set(meta.batch_steps[0].actions.tolist())}[architecture]
    for decision in net.decisions:
        assert isinstance(decision, Decision)
        assert len(decision._policy) == agents
        assert {i for i, agent in enumerate(decision._policy) if any(p.grad is not None for p in agent.parameters())} == asked


def test_a_module_for_each_task_without_routing() -> None:
    net = network("per-task", PerTaskAssignment)
    images, _, _ = questions(6, visible=True)
    logits, _ = net(images, torch.full((6,), 1))
    logits.sum().backward()
    for selection in net.selections:
        modules = selection._submodules
        assert isinstance(modules, nn.ModuleList)
        assert [all(p.grad is not None for p in m.parameters()) for m in modules] == [False, True, False]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameter_groups_have_each_parameter_once(architecture: Architecture) -> None:
    net = network(architecture)
    modules, decisions = net.parameter_groups(0.01, 0.5)
    assert (modules["lr"], decisions["lr"]) == (0.01, 0.5)
    grouped = [id(p) for group in (modules, decisions) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in net.parameters())
    of_decisions = {id(p) for m in net.modules() if isinstance(m, Decision) for p in m.parameters()}
    assert {id(p) for p in decisions["params"]} == of_decisions


@pytest.mark.parametrize(("shape", "features"), [((3, 32, 32), 128), ((1, 28, 28), 288), ((1, 8, 8), 128), ((2, 4, 11), 320)])
def test_the_trunk_halves_until_two_pixels_remain(shape: tuple[int, int, int], features: int) -> None:
    trunk, promised = convolutional_trunk(shape)
    images = torch.rand(4, *shape).contiguous(memory_format=torch.channels_last)
    assert trunk(images).shape == (4, features)
    assert promised == features
    inside = trunk[:-1](images)
    assert inside.is_contiguous(memory_format=torch.channels_last)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"architecture must be one of \('per-task', 'dispatched', 'single'\), got 'shared'"):
        network("shared")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"image_shape must have at least 4 pixels a side, got \(1, 3, 9\)"):
        MultiTaskNetwork((1, 3, 9), 2, 2, routing.REINFORCE)
