"""What several decisions share: the rows of tables, the plan of the agents, a call of the losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import ALGORITHMS, Routed, assert_close
from torch import Tensor, nn

from routing_ext import routing
from routing_ext.routing import WPL, Initialization, Loss, NegLossReward, QLearning
from routing_ext.routing.decision import Experience
from routing_ext.routing.trajectory import States

B, K, AGENTS = 7, 4, 3
X = torch.randn(B, 6, generator=torch.Generator().manual_seed(0))
TASKS = torch.tensor([0, 2, 2, 0, 0, 2, 0])  # nobody asks agent 1


def tabular(algorithm: Any, agents: int = AGENTS) -> Routed:
    torch.manual_seed(0)
    network = Routed(algorithm, agents=agents, policy_storage_type="tabular")
    for parameter in network.decisions.parameters():
        nn.init.uniform_(parameter, 0.1, 1.0)
    return network


class TestStates:
    @pytest.mark.parametrize("channels", [None, 2])
    @pytest.mark.parametrize("shared", [False, True])
    def test_agree_with_the_whole(self, channels: int | None, shared: bool) -> None:
        row_of = TASKS if shared else None
        states = States(torch.randn(AGENTS if shared else B, K, *([] if channels is None else [channels])), row_of)
        actions, whole, each = torch.arange(B) % K, states.whole(), torch.arange(B)
        assert whole.shape == (B, K, channels or min(K, 5))
        assert states.num_selections == K
        assert torch.equal(states.taken(actions), whole[each, actions][:, : channels or 1])
        assert torch.equal(states.best(0), whole[:, :, 0].max(1)[0])
        assert torch.equal(states.mode(), whole[:, :, 0].max(1)[1])
        assert torch.equal(states.first(0), whole[:, 0, 0])
        index = torch.tensor([5, 0, 1])
        assert torch.equal(states.select(index).whole(), whole[index])


@pytest.mark.parametrize("algorithm", sorted(set(ALGORITHMS) - {"RELAX"}))
def test_tables_decide_as_their_rows_for_each_sample(algorithm: str) -> None:
    network = tabular(algorithm).eval()
    _, mxs, actions = network(X, TASKS)
    for i, task in enumerate(TASKS.tolist()):
        alone = tabular(algorithm, agents=1).eval()
        for mine, theirs in zip(alone.decisions, network.decisions, strict=True):
            mine.load_state_dict(
                {name.replace(f".{task}.", ".0."): v for name, v in theirs.state_dict().items() if f".{task}." in name}
            )
        _, own, own_actions = alone(X[i : i + 1])
        for step, own_step, a, own_a in zip(mxs.batch_steps, own.batch_steps, actions, own_actions, strict=True):
            assert a[i] == own_a[0]
            assert_close(step.states[i], own_step.states[0])


def test_gradients_of_frozen_preferences() -> None:
    network = tabular("WPL")
    for decision in network.decisions:
        decision._policy.requires_grad_(False)
    _, mxs, _ = network(X, TASKS)
    mxs.batch_steps[0].states.sum().backward()
    grads = [storage._approx.grad for storage in network.decisions[0]._qvalue_mem]
    assert [g is None for g in grads] == [False, True, False]


class TestPlan:
    def test_is_made_once(self) -> None:
        network = tabular("WPL")
        _, mxs, _ = network(X, TASKS)
        plan = mxs.agents_plan
        network.decisions[0](X, mxs, plan[0])
        assert mxs.agents_plan is plan

    def test_is_made_again_for_changed_prior_actions(self) -> None:
        decision = tabular("WPL").decisions[0].eval()
        xs, mxs, _ = Initialization()(X, TASKS)
        prior = TASKS.clone()
        decision(xs, mxs, prior)
        before = mxs.batch_steps[0].states
        prior.fill_(1)
        decision(xs, mxs, prior)
        assert torch.equal(mxs.batch_steps[0].states, before)
        assert torch.equal(mxs.batch_steps[1].states[0], mxs.batch_steps[1].states[1])
        assert not torch.equal(mxs.batch_steps[1].states, before)


class TestLosses:
    def calls(self, algorithm: type[routing.Decision], monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], Tensor]:
        made, losses = [], algorithm._losses

        def counted(self: Any, experience: Experience) -> Tensor:
            made.append(experience.action.numel())
            return losses(self, experience)

        if getattr(losses, "is_row_by_row", False):
            counted.is_row_by_row = True  # type: ignore[attr-defined]
        monkeypatch.setattr(algorithm, "_losses", counted)
        torch.manual_seed(1)
        ys, mxs, _ = tabular(algorithm)(X, TASKS)
        _, routing_loss = Loss(nn.MSELoss(), NegLossReward())(ys, mxs, X, reduce=False)
        return made, routing_loss

    def test_layers_alike_come_in_one_call(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.calls(WPL, monkeypatch)[0] == [3 * B]

    def test_a_mean_is_of_one_layer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert self.calls(routing.AAC, monkeypatch)[0] == [B] * 3

    def test_users_losses_come_layer_by_layer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Own(QLearning):
            def _losses(self, made: Experience) -> Tensor:
                return super()._losses(made)

        made, routing_loss = self.calls(Own, monkeypatch)
        assert made == [B] * 3
        monkeypatch.undo()
        torch.manual_seed(1)
        ys, mxs, _ = tabular(QLearning)(X, TASKS)
        assert_close(routing_loss, Loss(nn.MSELoss(), NegLossReward())(ys, mxs, X, reduce=False)[1])
