"""Layers in a row."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from networks import assert_close
from torch import Tensor, nn

from routing_ext.routing import (
    REINFORCE,
    WPL,
    Initialization,
    Loss,
    NegLossReward,
    PerTaskAssignment,
    Selection,
    Sequential,
    Trajectory,
)

X = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
TASKS = [0, 1, 2, 2, 1, 0, 1]


def selection(d: int, o: int) -> Selection:
    return Selection(*[nn.Linear(d, o) for _ in range(3)])


def layers() -> OrderedDict[str, nn.Module]:
    torch.manual_seed(0)
    named = [
        ("task", PerTaskAssignment()),
        ("decision", WPL(3, 5, num_agents=3)),
        ("first", selection(5, 4)),
        ("act", nn.Tanh()),
    ]
    return OrderedDict(
        [*named, ("again", REINFORCE(3, 4, num_agents=3)), ("second", selection(4, 6)), ("scale", nn.Linear(6, 2))]
    )


def step_by_step(named: dict[str, nn.Module]) -> Tensor:
    ys, mxs, actions = Initialization()(X, TASKS)
    for layer in named.values():
        if isinstance(layer, (nn.Tanh, nn.Linear)):
            ys = layer(ys)
        else:
            ys, mxs, actions = layer(ys, mxs, actions)
    return ys


@pytest.mark.parametrize("named", [True, False])
def test_runs_its_layers(named: bool) -> None:
    own = layers()
    network = Sequential(own) if named else Sequential(*own.values())
    torch.manual_seed(1)
    ys, mxs = network(X, TASKS)
    torch.manual_seed(1)
    assert_close(ys, step_by_step(own))
    assert isinstance(mxs, Trajectory)
    assert [mx.task for mx in mxs] == TASKS
    assert [len(mx.steps) for mx in mxs] == [2] * 7
    module_loss, routing_loss = Loss(nn.MSELoss(), NegLossReward())(ys, mxs, torch.ones(7, 2))
    (module_loss + routing_loss).backward()
    assert own["scale"].weight.grad is not None


def test_names() -> None:
    assert list(dict(Sequential(layers()).named_children())) == ["initialization", *layers()]
    assert list(dict(Sequential(*layers().values()).named_children())) == [str(i) for i in range(8)]
    assert "decision._policy.0._approx._layers.0.weight" in Sequential(layers()).state_dict()
    assert "2._policy.0._approx._layers.0.weight" in Sequential(*layers().values()).state_dict()


def test_without_tasks() -> None:
    ys, mxs = Sequential(WPL(3, 5), selection(5, 4))(X)
    assert ys.shape == (7, 4)
    assert mxs[0].task is None


def test_is_an_nn_sequential() -> None:
    network = Sequential(layers())
    assert len(network) == 8
    assert isinstance(network[0], Initialization)
    assert isinstance(network.second, Selection)
    assert not network.eval().decision.training


def test_wrong_layers() -> None:
    not_a_module: Any = "tanh"
    with pytest.raises(TypeError):
        Sequential(not_a_module)
