"""Recurrent cells with routed weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from helpers import assert_identical, assert_same, generator, normal
from torch import Tensor, nn

from routing_ext.routing import (
    REINFORCE,
    WPL,
    CollaborationReward,
    Decision,
    GumbelSoftmax,
    Initialization,
    Loss,
    NegLossReward,
    PerTaskAssignment,
    QLearning,
    SampleMetaInformation,
    Trajectory,
    replay,
)
from routing_ext.routing.recurrent import RoutingGRUCell, RoutingLSTMCell, RoutingRNNCellBase

B, D, H, K = 6, 4, 3, 3
CELLS = [RoutingLSTMCell, RoutingGRUCell]
ROUTES = [(True, False), (False, True), (True, True)]


def make(cell_class: type[Any], depth: int = 1, width: int = K, agent: type[Decision] = REINFORCE, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return cell_class(D, H, width, depth, agent, **kwargs).double()


def start(batch: int = B, tasks: Sequence[int] = ()) -> Trajectory:
    return Initialization()(torch.zeros(batch, 1), tasks)[1]


def h_of(hidden: Any) -> Tensor:
    h: Tensor = hidden[0] if isinstance(hidden, tuple) else hidden
    return h


def hidden_of(cell: RoutingRNNCellBase, batch: int = B, grad: bool = False) -> Any:
    h, c = (normal(batch, H, seed=s, grad=grad) for s in (11, 12))
    return (h, c) if isinstance(cell, RoutingLSTMCell) else h


# ---- the gates ------------------------------------------------------------------------------------------------------------


def test_is_an_lstm_cell_where_there_is_one_module() -> None:
    """torch has the output gate last, the reference the candidate."""
    cell, plain = make(RoutingLSTMCell, width=1), nn.LSTMCell(D, H).double()
    order = torch.cat([torch.arange(2 * H), torch.arange(3 * H, 4 * H), torch.arange(2 * H, 3 * H)])
    module = cell.selection_h2h[0]._submodules[0]
    with torch.no_grad():
        plain.weight_ih.copy_(cell.linear_i2h.weight[order])
        plain.bias_ih.copy_(cell.linear_i2h.bias[order])
        plain.weight_hh.copy_(module.weight[order])
        plain.bias_hh.copy_(module.bias[order])
    hidden: Any = None
    expected: Any = None
    for step in range(3):
        x = normal(B, D, seed=step)
        hidden, _ = cell(x, hidden, start())
        expected = plain(x, expected)
        assert_same(hidden[0], expected[0])
        assert_same(hidden[1], expected[1])


@pytest.mark.parametrize(("route_i2h", "route_h2h"), ROUTES)
def test_is_a_gru_cell_where_there_is_one_module(route_i2h: bool, route_h2h: bool) -> None:
    cell, plain = make(RoutingGRUCell, width=1, route_i2h=route_i2h, route_h2h=route_h2h), nn.GRUCell(D, H).double()
    i2h = cell.selection_i2h[0]._submodules[0] if route_i2h else cell.linear_i2h
    h2h = cell.selection_h2h[0]._submodules[0] if route_h2h else cell.linear_h2h
    plain.load_state_dict({"weight_ih": i2h.weight, "weight_hh": h2h.weight, "bias_ih": i2h.bias, "bias_hh": h2h.bias})
    hidden = expected = None
    for step in range(3):
        x = normal(B, D, seed=step)
        hidden, _ = cell(x, hidden, start())
        expected = plain(x, expected)
        assert_same(hidden, expected)


@pytest.mark.parametrize("cell_class", CELLS)
def test_each_sample_has_the_weights_it_chose(cell_class: type[Any]) -> None:
    """As a cell with one module, its own, would treat it."""
    cell = make(cell_class, route_i2h=True)
    x, hidden = normal(B, D, seed=1), hidden_of(cell)
    actions = [torch.tensor([0, 1, 2, 2, 1, 0]), torch.tensor([2, 1, 0, 2, 0, 1])]
    with replay(actions):
        got, _ = cell(x, hidden, start())
    for i in range(B):
        alone = make(cell_class, width=1, route_i2h=True)
        for side, a in zip(("i2h", "h2h"), actions, strict=True):
            chosen = cell.get_submodule(f"selection_{side}.0._submodules.{a[i]}")
            alone.get_submodule(f"selection_{side}.0._submodules.0").load_state_dict(chosen.state_dict())
        own = tuple(t[i : i + 1] for t in hidden) if isinstance(hidden, tuple) else hidden[i : i + 1]
        expected, _ = alone(x[i : i + 1], own, start(1))
        assert_same(h_of(got)[i : i + 1], h_of(expected))


@pytest.mark.parametrize("cell_class", CELLS)
def test_nonlin_is_between_the_steps_only(cell_class: type[Any]) -> None:
    cell = make(cell_class, 3, nonlin=torch.tanh)
    ways = torch.tensor([[0, 1, 2], [1, 1, 1], [2, 0, 1], [0, 0, 0], [1, 2, 0], [2, 2, 2]])
    hidden = hidden_of(cell)
    with replay(list(ways.T)):
        got = cell._inputs("h2h", h_of(hidden), start(), None, None)
    for i, way in enumerate(ways.tolist()):
        row = h_of(hidden)[i]
        for depth, a in enumerate(way):
            row = cell.get_submodule(f"selection_h2h.{depth}._submodules.{a}")(row)
            row = row.tanh() if depth < 2 else row
        assert_same(got[i], row)


# ---- structure ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell_class", CELLS)
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(("route_i2h", "route_h2h"), ROUTES)
def test_shapes_and_steps(cell_class: type[Any], recurrent: bool, depth: int, route_i2h: bool, route_h2h: bool) -> None:
    cell = make(cell_class, depth, recurrent=recurrent, route_i2h=route_i2h, route_h2h=route_h2h)
    metas, hidden = start(), None
    go_on = [torch.full((B,), 1)] * (2 * depth * (route_i2h + route_h2h))
    with replay(go_on):
        for step in range(2):
            hidden, same = cell(normal(B, D, seed=step), hidden, metas)
            assert same is metas
    assert [t.shape for t in (hidden if isinstance(hidden, tuple) else (hidden,))] == [(B, H)] * (
        2 if cell_class is RoutingLSTMCell else 1
    )
    assert len(metas[0].steps) == len(go_on)
    assert {s["states"].shape[1] for s in metas[0].steps} == {K + recurrent}


def test_parameter_names_are_those_of_the_reference() -> None:
    assert [n for n, _ in make(RoutingLSTMCell, 2, width=2).named_parameters()] == [
        *(f"linear_i2h.{p}" for p in ("weight", "bias")),
        *(f"router_h2h.{i}._policy.0._approx._layers.0.{p}" for i in (0, 1) for p in ("weight", "bias")),
        *(f"selection_h2h.{i}._submodules.{k}.{p}" for i in (0, 1) for k in (0, 1) for p in ("weight", "bias")),
    ]


def test_recurrent_routing_has_the_modules_of_one_step() -> None:
    names = dict(make(RoutingLSTMCell, 5, width=2, recurrent=True).named_parameters())
    assert {n: tuple(p.shape) for n, p in names.items() if n.endswith("weight")} == {
        "linear_i2h.weight": (4 * H, D),
        "router_h2h.0._policy.0._approx._layers.0.weight": (3, H),
        "selection_h2h.0._submodules.0.weight": (H, H),
        "selection_h2h.0._submodules.1.weight": (H, H),
        "projection_h2h.weight": (4 * H, H),
    }


def test_all_parameters_are_drawn_anew() -> None:
    cell = RoutingGRUCell(D, 400, K, 1, REINFORCE, policy_storage_type="tabular")
    assert all(p.abs().max() <= 0.05 and p.unique().numel() > 1 for p in cell.parameters())


# ---- stop and masks -------------------------------------------------------------------------------------------------------


def by_hand(cell: RoutingRNNCellBase, h: Tensor, ways: Sequence[Sequence[int]], depth: int) -> Tensor:
    """What each sample's hidden state becomes on the way of its actions, up to the first stop."""
    rows = []
    for row, way in zip(h, ways, strict=True):
        for i, a in enumerate(way):
            if a == 0:
                break
            row = cell.get_submodule(f"selection_h2h.0._submodules.{a - 1}")(row)
            row = row if i == depth - 1 else cell.nonlin(row)
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("cell_class", CELLS)
def test_action_0_of_a_recurrent_cell_means_stop(cell_class: type[Any], width: int) -> None:
    depth = 3
    cell = make(cell_class, depth, width, recurrent=True)
    seen: list[Tensor] = []
    cell.projection_h2h.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    ways = [[0, 1, 1], [1, 0, 1], [width, 1, 0], [1, width, width], [0, 0, 0], [width, 0, 0]]
    hidden, metas = hidden_of(cell), start()
    with replay(list(torch.tensor(ways).T)):
        cell(normal(B, D, seed=1), hidden, metas)
    assert_same(seen[0], by_hand(cell, h_of(hidden), ways, depth))
    # Those that stop at once are unchanged to the bit; and who has stopped decides no more.
    assert_identical(seen[0][[0, 4]], h_of(hidden)[[0, 4]])
    assert [len(m.steps) for m in metas] == [1, 2, 3, 3, 1, 2]


def test_all_stop_at_once() -> None:
    cell, metas = make(RoutingLSTMCell, 4, recurrent=True), start()
    hidden = hidden_of(cell)
    seen: list[Tensor] = []
    cell.projection_h2h.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with replay([torch.zeros(B, dtype=torch.int64)]):  # another decision would ask for more
        cell(normal(B, D, seed=1), hidden, metas)
    assert_identical(seen[0], hidden[0])
    assert [len(m.steps) for m in metas] == [1] * B


def test_action_0_of_another_cell_is_a_module() -> None:
    cell = make(RoutingLSTMCell)
    with replay([torch.zeros(B, dtype=torch.int64)]):
        (h, _), _ = cell(normal(B, D, seed=1), hidden_of(cell), start())
    grads = torch.autograd.grad(h.sum(), list(cell.selection_h2h.parameters()), allow_unused=True)
    assert [g is None for g in grads] == [False] * 2 + [True] * 4


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("cell_class", CELLS)
def test_masked_samples_keep_their_state(cell_class: type[Any], recurrent: bool, dtype: torch.dtype) -> None:
    cell = make(cell_class, 2, recurrent=recurrent, route_i2h=True)
    mask = torch.tensor([1, 0, 1, 1, 0, 1], dtype=dtype)
    on, before = mask.bool(), mask.clone()
    x, hidden, metas = normal(B, D, seed=1), hidden_of(cell), start()
    actions = [torch.randint(K, (B,), generator=generator(i)) for i in range(4)]
    with replay([a + 1 if recurrent else a for a in actions]):
        new, _ = cell(x, hidden, metas, mask=mask)
    assert torch.equal(mask, before)
    part = tuple(t[on] for t in hidden) if isinstance(hidden, tuple) else hidden[on]
    with replay([(a + 1 if recurrent else a)[on] for a in actions]):
        alone, _ = cell(x[on], part, start(int(on.sum())))
    pairs = zip(new, hidden, alone, strict=True) if isinstance(hidden, tuple) else [(new, hidden, alone)]
    for after, was, expected in pairs:
        assert_identical(after[~on], was[~on])
        assert_same(after[on], expected)
    assert [len(m.steps) for m in metas] == (4 * on).tolist()


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("cell_class", CELLS)
def test_all_masked(cell_class: type[Any], recurrent: bool) -> None:
    cell, metas = make(cell_class, recurrent=recurrent), start()
    hidden = hidden_of(cell)
    after, _ = cell(normal(B, D, seed=1), hidden, metas, mask=torch.zeros(B, dtype=torch.bool))
    assert_identical(h_of(after), h_of(hidden))
    assert all(m.steps == [] for m in metas)


# ---- decisions ------------------------------------------------------------------------------------------------------------


def test_tasks_choose_the_agent() -> None:
    cell = make(RoutingGRUCell, policy_storage_type="tabular", num_agents=2).eval()
    with torch.no_grad():
        for agent, best in enumerate((2, 1)):
            cell.router_h2h[0]._policy[agent]._approx.copy_(torch.eye(K)[best : best + 1])
    metas = start(3)
    cell(normal(3, D, seed=1), None, metas, task_actions=torch.tensor([1, 0, 1]))
    assert [int(m.steps[0]["actions"]) for m in metas] == [1, 2, 1]
    with pytest.raises(ValueError, match="prior_actions must say which of the 2 agents"):
        cell(normal(3, D, seed=1), None, metas)


def test_arguments_reach_the_decisions() -> None:
    reward, net = CollaborationReward(0.3, K), nn.Linear(H, K)
    cell = make(RoutingGRUCell, 2, additional_reward_func=reward, policy_net=net, exploration=0.4, detach=False)
    for router in cell.router_h2h:
        assert router.additional_reward_func is reward
        assert isinstance(router._policy[0]._approx, nn.Linear)
        assert router._exploration == 0.4
        assert not router._detach
    own = make(RoutingGRUCell, 2, additional_reward_class=CollaborationReward, additional_reward_args={"num_actions": K})
    assert len({id(router.additional_reward_func) for router in own.router_h2h}) == 2


def test_tasks_can_be_the_modules() -> None:
    cell = make(RoutingGRUCell, agent=PerTaskAssignment)
    h, _ = cell(normal(2, D, seed=1), None, start(2, tasks=[2, 0]))
    grads = torch.autograd.grad(h.sum(), list(cell.selection_h2h.parameters()), allow_unused=True)
    assert [g is not None for g in grads] == [True] * 2 + [False] * 2 + [True] * 2


# ---- gradients and losses -------------------------------------------------------------------------------------------------


def unrolled(cell: RoutingRNNCellBase, steps: int, actions: Sequence[Tensor], mask: Tensor) -> Callable[..., Tensor]:
    def run(x: Tensor, *hidden_and_parameters: Tensor) -> Tensor:
        is_lstm = isinstance(cell, RoutingLSTMCell)
        hidden: Any = hidden_and_parameters[:2] if is_lstm else hidden_and_parameters[0]
        metas = start(x.size(0))
        with replay(actions):
            for step in range(steps):
                hidden, _ = cell(x[:, step], hidden, metas, mask=mask if step == 1 else None)
        return torch.cat(hidden, 1) if is_lstm else hidden

    return run


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("cell_class", CELLS)
def test_gradcheck(cell_class: type[Any], recurrent: bool) -> None:
    cell = make(cell_class, 2, 2, recurrent=recurrent, route_i2h=True, nonlin=torch.tanh)
    x, hidden = normal(3, 2, D, seed=1), hidden_of(cell, 3, grad=True)
    ways = [[1, 2, 1], [2, 1, 1], [1, 0, 2], [2, 1, 0], [0, 2, 1], [1, 1, 1], [2, 2, 1], [1, 2, 0]]
    actions = [torch.tensor(w) if recurrent else torch.tensor(w) % 2 for w in ways]
    run = unrolled(cell, 2, actions, torch.tensor([True, False, True]))
    weights = [p for n, p in cell.named_parameters() if "selection" in n or "linear" in n or "projection" in n]
    states = hidden if isinstance(hidden, tuple) else (hidden,)
    assert torch.autograd.gradcheck(run, (x, *states, *weights))


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("agent", [REINFORCE, WPL, QLearning])
def test_losses_over_several_steps(agent: type[Decision], recurrent: bool) -> None:
    """The sequence is one trajectory. As tensors and as a list of single samples, it has the same losses and gradients."""
    torch.manual_seed(1)
    cell = RoutingLSTMCell(D, H, K, 2, agent, recurrent=recurrent, additional_reward_func=CollaborationReward(0.3))
    x, y = (normal(*shape, seed=s, dtype=torch.float32, grad=False) for s, shape in enumerate([(B, 4, D), (B, H)]))
    metas, hidden = start(), (torch.zeros(B, H), torch.zeros(B, H))
    for step in range(4):
        hidden, _ = cell(x[:, step], hidden, metas)
    loss, h = Loss(nn.MSELoss(), NegLossReward()), hidden[0]
    if not recurrent:
        assert {len(m.steps) for m in metas} == {8}
    parameters = list(cell.parameters())
    module_loss, routing_loss = loss(h, metas, y)
    grads = torch.autograd.grad(module_loss + routing_loss, parameters, allow_unused=True, retain_graph=True)
    assert all(bool(g.isfinite().all()) for g in grads if g is not None)
    assert all(g is not None for (n, _), g in zip(cell.named_parameters(), grads, strict=True) if "_policy" in n)
    singles = []
    for m in metas:
        single = SampleMetaInformation(m.task)
        single.steps = list(m.steps)
        singles.append(single)
    module_loss, routing_loss_2 = loss(h, singles, y)
    assert_same(routing_loss_2, routing_loss, 1e-5)
    again = torch.autograd.grad(module_loss + routing_loss_2, parameters, allow_unused=True)
    for a, b in zip(again, grads, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert_same(a, b, 1e-5)


def test_gumbel_softmax_learns_by_the_batch() -> None:
    cell = make(RoutingGRUCell, 2, agent=GumbelSoftmax, recurrent=True)
    h, _ = cell(normal(B, D, seed=1), hidden_of(cell), start())
    assert all(p.grad is None for p in cell.parameters())
    h.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in cell.router_h2h.parameters())


def test_learns_a_sequence() -> None:
    torch.manual_seed(0)
    cell, head = RoutingGRUCell(2, 8, 2, 1, WPL), nn.Linear(8, 1)
    optimizer = torch.optim.Adam([*cell.parameters(), *head.parameters()], lr=0.02)
    loss = Loss(nn.MSELoss(), NegLossReward())
    x = torch.randn(64, 3, 2, generator=generator(0))
    y = x[:, 0, :1].tanh()  # what came first
    first = last = torch.zeros(())
    for epoch in range(60):
        metas, hidden = start(64), None
        for step in range(3):
            hidden, _ = cell(x[:, step], hidden, metas)
        module_loss, routing_loss = loss(head(hidden), metas, y)
        optimizer.zero_grad()
        (module_loss + routing_loss).backward()
        optimizer.step()
        first, last = (module_loss.detach(), last) if epoch == 0 else (first, module_loss.detach())
    assert last < 0.3 * first


@pytest.mark.parametrize("cell_class", CELLS)
@pytest.mark.parametrize("recurrent", [False, True])
def test_autocast(cell_class: type[Any], recurrent: bool) -> None:
    cell = make(cell_class, 2, recurrent=recurrent).float()
    with torch.autocast("cpu", torch.bfloat16):
        hidden, _ = cell(torch.randn(B, D), None, start())
    h_of(hidden).float().sum().backward()


# ---- errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "match", "kwargs"),
    [
        (ValueError, "RoutingLSTMCell: route_i2h or route_h2h must be true, got neither", {"route_h2h": False}),
        (TypeError, "RoutingLSTMCell: routing_agent must be a subclass of Decision, got <class", {"agent": nn.Linear}),
        (ValueError, "RoutingLSTMCell: num_selections and depth_routing must be at least 1, got 3 and 0", {"depth": 0}),
    ],
)
def test_wrong_constructor_arguments(error: type[Exception], match: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(error, match=match):
        make(RoutingLSTMCell, **kwargs)


def test_wrong_inputs() -> None:
    cell, x = make(RoutingGRUCell), normal(B, D, seed=1)
    with pytest.raises(ValueError, match=r"RoutingGRUCell: x must be \[B, 4\], got \[6, 3\]"):
        cell(x[:, 1:], None, start())
    with pytest.raises(ValueError, match=r"RoutingGRUCell: hidden must be \[6, 3\], got \[6, 4\]"):
        cell(x, x, start())
    with pytest.raises(ValueError, match="RoutingGRUCell: mask must have 6 elements, one a sample, got 5"):
        cell(x, None, start(), mask=torch.ones(5))
    with pytest.raises(ValueError, match="mxs must have one element for each of 6 samples, got 5"):
        cell(x, None, start(5))
