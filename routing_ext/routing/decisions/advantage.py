"""A value of the sample, and an advantage of each action over it (Baird, 1993)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..decision import Agents, Choice, Decision, Experience, row_by_row
from .common import explored_or_greedy, squared


class AdvantageLearning(Decision):
    """Both learn from the return."""

    def __init__(self, *args: Any, value_net: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._value_mem = self._construct_policy_storage(1, self._pol_type, value_net, self._pol_hidden_dims)

    def _decide(self, agents: Agents) -> Choice:
        advantages, values = agents.rows(self._policy, self._value_mem)
        actions, explore = explored_or_greedy(self, agents, advantages)
        return Choice(agents.ys, actions, explore, torch.stack((advantages, values.expand_as(advantages)), 2))

    @row_by_row
    def _losses(self, made: Experience) -> Tensor:
        value, advantage = made.first(1), made.taken(0)
        return squared(value - made.cum_return) + squared(advantage - (made.cum_return - value.detach()))


class BootstrapAdvantageLearning(AdvantageLearning):
    """Both learn from the reward and the next value."""

    @row_by_row
    def _losses(self, made: Experience) -> Tensor:
        target = torch.where(made.is_terminal, made.final_reward, made.first_next(1) + made.reward).detach()
        value, advantage = made.first(1), made.taken(0)
        return squared(value - target) + squared(advantage - (target - value).detach())


class SurpriseLearning(AdvantageLearning):
    """Both learn from the next value, less the reward."""

    @row_by_row
    def _losses(self, made: Experience) -> Tensor:
        target = torch.where(made.is_terminal, made.final_reward, made.first_next(1) - made.reward).detach()
        value, advantage = made.first(1), made.taken(0)
        return squared(value - target) + squared(advantage - (target - value.detach()))
