"""A value of the sample, and an advantage of each action over it (Baird, 1993)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..decision import Agents, Choice, Decision, Experience
from .common import explored_or_greedy, squared, taken


class AdvantageLearning(Decision):
    """Both learn from the return."""

    def __init__(self, *args: Any, value_net: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._value_mem = self._construct_policy_storage(1, self._pol_type, value_net, self._pol_hidden_dims)

    def _decide(self, agents: Agents) -> Choice:
        advantages = agents.evaluate(self._policy)
        values = agents.evaluate(self._value_mem).expand_as(advantages)
        actions, explore = explored_or_greedy(self, agents, advantages)
        return Choice(agents.ys, actions, explore, torch.stack((advantages, values), 2))

    def _losses(self, made: Experience) -> Tensor:
        value, advantage = made.state[:, 0, 1], taken(made.state[:, :, 0], made.action)
        return squared(value - made.cum_return) + squared(advantage - (made.cum_return - value.detach()))


class BootstrapAdvantageLearning(AdvantageLearning):
    """Both learn from the reward and the next value."""

    def _losses(self, made: Experience) -> Tensor:
        target = torch.where(made.is_terminal, made.final_reward, made.next_state[:, 0, 1] + made.reward).detach()
        value, advantage = made.state[:, 0, 1], taken(made.state[:, :, 0], made.action)
        return squared(value - target) + squared(advantage - (target - value).detach())


class SurpriseLearning(AdvantageLearning):
    """Both learn from the next value, less the reward."""

    def _losses(self, made: Experience) -> Tensor:
        target = torch.where(made.is_terminal, made.final_reward, made.next_state[:, 0, 1] - made.reward).detach()
        value, advantage = made.state[:, 0, 1], taken(made.state[:, :, 0], made.action)
        return squared(value - target) + squared(advantage - (target - value.detach()))
