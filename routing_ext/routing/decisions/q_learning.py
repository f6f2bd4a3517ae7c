"""Action values (Watkins and Dayan, 1992; Rummery and Niranjan, 1994), with the reference's targets."""

from __future__ import annotations

import torch
from torch import Tensor

from ..decision import Agents, Choice, Decision, Experience, row_by_row
from .common import explored_or_greedy, squared


class QLearning(Decision):
    """Takes the best action, or with probability `exploration` any."""

    def _decide(self, agents: Agents) -> Choice:
        (values,) = agents.rows(self._policy)
        actions, explore = explored_or_greedy(self, agents, values)
        return Choice(agents.ys, actions, explore, values)

    @row_by_row
    def _losses(self, made: Experience) -> Tensor:
        target = torch.where(made.is_terminal, made.final_reward, made.best_next(0) - made.reward).detach()
        return squared(made.taken(0) - target)


class SARSA(QLearning):
    """The target is the value of the next action, at this state (sic, as in the reference)."""

    @row_by_row
    def _losses(self, made: Experience) -> Tensor:
        target = torch.where(made.is_terminal, made.final_reward, made.taken_next(0)).detach()
        return squared(made.taken(0) - target)
