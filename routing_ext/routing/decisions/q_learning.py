"""Action values (Watkins and Dayan, 1992; Rummery and Niranjan, 1994), with the reference's targets."""

from __future__ import annotations

import torch

from ..decision import Agents, Choice, Decision, as_stored
from .common import explored_or_greedy, squared, taken


class QLearning(Decision):
    """Takes the best action, or with probability `exploration` any."""

    def _decide(self, agents: Agents) -> Choice:
        values = agents.evaluate(self._policy)
        actions, explore = explored_or_greedy(self, agents, values)
        return Choice(agents.ys, actions, explore, as_stored(values))

    def _loss(self, is_terminal, state, next_state, action, next_action, reward, cum_return, final_reward):  # type: ignore[no-untyped-def]
        target = torch.where(is_terminal, final_reward, next_state[:, :, 0].max(1)[0] - reward).detach()
        return squared(taken(state[:, :, 0], action) - target)


class SARSA(QLearning):
    """The target is the value of the next action, at this state (sic, as in the reference)."""

    def _loss(self, is_terminal, state, next_state, action, next_action, reward, cum_return, final_reward):  # type: ignore[no-untyped-def]
        target = torch.where(is_terminal, final_reward, taken(state[:, :, 0], next_action)).detach()
        return squared(taken(state[:, :, 0], action) - target)
