"""Action values (Watkins and Dayan, 1992; Rummery and Niranjan, 1994), with the reference's targets."""

from __future__ import annotations

import torch
from torch import Tensor

from ..decision import Agents, Choice, Decision, Experience, as_stored
from .common import explored_or_greedy, squared, taken


class QLearning(Decision):
    """Takes the best action, or with probability `exploration` any."""

    def _decide(self, agents: Agents) -> Choice:
        values = agents.evaluate(self._policy)
        actions, explore = explored_or_greedy(self, agents, values)
        return Choice(agents.ys, actions, explore, as_stored(values))

    def _losses(self, made: Experience) -> Tensor:
        target = torch.where(made.is_terminal, made.final_reward, made.next_state[:, :, 0].max(1)[0] - made.reward).detach()
        return squared(taken(made.state[:, :, 0], made.action) - target)


class SARSA(QLearning):
    """The target is the value of the next action, at this state (sic, as in the reference)."""

    def _losses(self, made: Experience) -> Tensor:
        target = torch.where(made.is_terminal, made.final_reward, taken(made.state[:, :, 0], made.next_action)).detach()
        return squared(taken(made.state[:, :, 0], made.action) - target)
