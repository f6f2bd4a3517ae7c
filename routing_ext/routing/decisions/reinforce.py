"""Likelihood-ratio policy gradients (Williams, 1992)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..decision import Agents, Choice, as_stored
from .common import PolicyDecision, ValueDecision, normalised, squared, taken


class REINFORCE(PolicyDecision):
    """The log-probability of the action, weighted with the return."""

    def set_exploration(self, exploration: float) -> None:
        """With ``set_pg_temp``, sets the softmax temperature to ``0.1 + 9.9 * exploration``; else does nothing."""
        if self._set_pg_temp:
            self._pg_temperature = 0.1 + 9.9 * exploration

    def _decide(self, agents: Agents) -> Choice:
        logits = normalised(agents.evaluate(self._policy) / self._pg_temperature)
        actions = self._sample(agents, logits)
        return Choice(agents.ys, actions, self._eval_stochastic_are_exp(actions, logits), as_stored(logits))

    def _loss(self, is_terminal, state, next_state, action, next_action, reward, cum_return, final_reward):  # type: ignore[no-untyped-def]
        return -taken(state[:, :, 0], action) * cum_return.detach()


class EGreedyREINFORCE(REINFORCE):
    """Takes the mode, or with probability `exploration` a sample; the return is weighted for importance."""

    def set_exploration(self, exploration: float) -> None:
        """Sets it to ``min(1, 3 * exploration)``."""
        self._exploration = min(1.0, 3.0 * exploration)

    def _decide(self, agents: Agents) -> Choice:
        logits = normalised(agents.evaluate(self._policy))
        actions, probs, sampling = self._explored(agents, logits)
        state = torch.stack((logits, probs, sampling), 2)
        return Choice(agents.ys, actions, self._eval_stochastic_are_exp(actions, logits), state)

    def _loss(self, is_terminal, state, next_state, action, next_action, reward, cum_return, final_reward):  # type: ignore[no-untyped-def]
        weighted = (taken(state[:, :, 1] / state[:, :, 2], action) * cum_return).detach()
        return -taken(state[:, :, 0], action) * weighted


class REINFORCEBl1(ValueDecision):
    """With a learned baseline, that of the first action."""

    _values_per_action = True

    def _decide(self, agents: Agents) -> Choice:
        logits = normalised(agents.evaluate(self._policy))
        values = agents.evaluate(self._value_mem).expand_as(logits)
        actions = self._sample(agents, logits)
        state = torch.stack((logits, values), 2)
        return Choice(agents.ys, actions, self._eval_stochastic_are_exp(actions, state), state)

    def _weighted_return(self, state: Tensor, action: Tensor, cum_return: Tensor) -> Tensor:
        return cum_return

    def _loss(self, is_terminal, state, next_state, action, next_action, reward, cum_return, final_reward):  # type: ignore[no-untyped-def]
        advantage = (self._weighted_return(state, action, cum_return) - state[:, 0, 1]).detach()
        target = torch.where(is_terminal, final_reward, next_state[:, :, 1].max(1)[0] - reward).detach()
        return -taken(state[:, :, 0], action) * advantage + squared(taken(state[:, :, 1], action) - target)


class REINFORCEBl2(REINFORCEBl1):
    """Like :class:`REINFORCEBl1`, with the return weighted against the uniform policy."""

    def _weighted_return(self, state: Tensor, action: Tensor, cum_return: Tensor) -> Tensor:
        return cum_return / (self._num_selections * taken(state[:, :, 0].softmax(1), action))
