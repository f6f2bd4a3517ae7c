"""Routed networks that the tests share, and the reference's loss written out sample by sample."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import routing_ext.routing as routing
from routing_ext.routing import Decision, Initialization, PerActionBaseReward, PerTaskAssignment, Selection

SIZES = (4, 4, 4)  # modules of each layer

POLICIES = [
    "REINFORCE",
    "REINFORCEBl1",
    "REINFORCEBl2",
    "EGreedyREINFORCE",
    "AAC",
    "BootstrapAAC",
    "EGreedyAAC",
    "ActorCritic",
]
POLICIES += ["WPL"]
VALUES = ["QLearning", "SARSA", "AdvantageLearning", "BootstrapAdvantageLearning", "SurpriseLearning"]
RELAXED = ["GumbelSoftmax", "RELAX"]
ALGORITHMS = POLICIES + VALUES + RELAXED


class Routed(nn.Module):
    """Decisions by the agent of the sample's task, and linear modules with tanh between them.

    Args:
        algorithm: a decision class or its name.
        sizes: how many modules each layer has.
        dims: the width of the input and of each layer's output.
        agents: how many each decision layer has.
        reward: makes a per-action reward for so many actions.
        repeated: the first decision and selection are used for every layer.
        kwargs: of the decisions.
    """

    def __init__(
        self,
        algorithm: str | type[Decision],
        sizes: Sequence[int] = SIZES,
        dims: Sequence[int] = (6, 6, 6, 6),
        agents: int = 1,
        reward: Callable[[int], PerActionBaseReward] | None = None,
        repeated: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        make = getattr(routing, algorithm) if isinstance(algorithm, str) else algorithm
        self.agents = agents
        self.decisions, self.selections = nn.ModuleList(), nn.ModuleList()
        for size, d, o in zip(sizes, dims, dims[1:], strict=False):
            if repeated and len(self.decisions):
                self.decisions.append(self.decisions[0])
                self.selections.append(self.selections[0])
                continue
            own = {} if reward is None else {"additional_reward_func": reward(size)}
            self.decisions.append(make(size, d, num_agents=agents, **own, **kwargs))
            self.selections.append(Selection(*[nn.Linear(d, o) for _ in range(size)]))

    def forward(
        self, x: Tensor, tasks: Any = (), masks: Sequence[Tensor] | None = None, mxs: Any = None
    ) -> tuple[Tensor, Any, list[Tensor]]:
        """``(ys, mxs, actions of each layer)``. Masked samples keep what they have."""
        ys = x
        if mxs is None:
            ys, mxs, _ = Initialization()(ys, tasks)
        agents, taken = None, []
        if self.agents > 1:
            ys, mxs, agents = PerTaskAssignment()(ys, mxs, None)
        for i, (decision, selection) in enumerate(zip(self.decisions, self.selections, strict=True)):
            mask = None if masks is None else masks[i]
            ys, mxs, actions = decision(ys, mxs, agents, mask=mask)
            new, mxs, actions = selection(ys, mxs, actions, mask=mask)
            ys = new if mask is None else torch.where(mask.unsqueeze(1), new, ys)
            taken.append(actions)
            if i < len(self.decisions) - 1:
                ys = torch.tanh(ys)
        return ys, mxs, taken


class PlainReinforce(Decision):
    """REINFORCE, as a user of the reference would write it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agents_asked: list[tuple[int, int]] = []
        self.loss_calls: list[torch.Size] = []

    def _forward(self, xs: Tensor, agent: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self.agents_asked.append((int(agent), len(xs)))
        distribution = torch.distributions.Categorical(logits=self._policy[agent](xs))
        actions = distribution.sample() if self.training else distribution.logits.max(1)[1]
        return xs, actions, self._eval_stochastic_are_exp(actions, distribution.logits), distribution.logits

    def _loss(
        self,
        is_terminal: Tensor,
        state: Tensor,
        next_state: Tensor,
        action: Tensor,
        next_action: Tensor,
        reward: Tensor,
        cum_return: Tensor,
        final_reward: Tensor,
    ) -> Tensor:
        self.loss_calls.append(state.shape)
        return -state[:, :, 0].gather(1, action.unsqueeze(1)).view(-1) * cum_return.detach()


def by_hand(mxs: Sequence[Any], final: Tensor, normalize: bool = True, discounting: float = 1.0) -> Tensor:
    """The routing loss ``[B]``, from each sample's steps and its final reward ``final [B]``."""
    decided: dict[Any, list[tuple[Any, ...]]] = defaultdict(list)
    for i, mx in enumerate(mxs):
        rewards = []
        for step in mx.steps:
            own = step["reward_func"].get_reward(step["states"], step["actions"]).reshape(())
            own = (own + (step.get("add_rewards") or 0.0)) / len(mx.steps)
            rewards.append(own * final[i].abs() if normalize else own)
        if rewards:
            rewards[-1] = rewards[-1] + final[i]
        for j, step in enumerate(mx.steps):
            later = mx.steps[j + 1] if j + 1 < len(mx.steps) else None
            is_terminal = later is None or later["states"].shape != step["states"].shape
            next_state, next_action = (
                (step["states"], step["actions"] * 0) if is_terminal else (later["states"], later["actions"])
            )
            values = (
                step["actions"],
                next_action,
                rewards[j],
                sum(discounting**n * r for n, r in enumerate(rewards[j:])),
                final[i],
            )
            row = torch.tensor([is_terminal]), step["states"], next_state, *(v.reshape(1) for v in values)
            decided[step["loss_funcs"]].append((i, *row))
    total = torch.zeros(len(mxs), dtype=final.dtype)
    for loss_func, rows in decided.items():
        index, *columns = zip(*rows, strict=True)
        total = total.index_add(0, torch.tensor(index), loss_func(*(torch.cat(column) for column in columns)))
    return total


def parameter_gradients(module: nn.Module) -> dict[str, Tensor | None]:
    """And forgets them."""
    gradients = {name: p.grad for name, p in module.named_parameters()}
    module.zero_grad()
    return gradients


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Relative to the largest element."""
    assert actual.shape == expected.shape
    scale = max(1e-3, expected.detach().abs().max().item()) if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


def assert_gradients_close(
    actual: dict[str, Tensor | None], expected: dict[str, Tensor | None], tolerance: float = 1e-5
) -> None:
    """The same ones are None."""
    assert {name for name, g in actual.items() if g is None} == {name for name, g in expected.items() if g is None}
    for name, g in expected.items():
        if g is not None:
            mine = actual[name]
            assert mine is not None
            assert_close(mine, g, tolerance)
