"""Likelihood-ratio policy gradients (Williams, 1992)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..decision import Agents, Choice, Experience, as_stored
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

    def _losses(self, made: Experience) -> Tensor:
        return -taken(made.state[:, :, 0], made.action) * made.cum_return.detach()


class EGreedyREINFORCE(REINFORCE):
    """Takes the mode, or with probability `exploration` a sample; the return is weighted for importance.

    Args:
        reference_broadcast: weight each decision's importance with the losses of all decisions of the layer, as the reference
            does by an accident of broadcasting, not with its own.
    """

    def __init__(self, *args: Any, reference_broadcast: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reference_broadcast = reference_broadcast

    def set_exploration(self, exploration: float) -> None:
        """Sets it to ``min(1, 3 * exploration)``."""
        self._exploration = min(1.0, 3.0 * exploration)

    def _decide(self, agents: Agents) -> Choice:
        logits = normalised(agents.evaluate(self._policy))
        actions, probs, sampling = self._explored(agents, logits)
        state = torch.stack((logits, probs, sampling), 2)
        return Choice(agents.ys, actions, self._eval_stochastic_are_exp(actions, logits), state)

    def _losses(self, made: Experience) -> Tensor:
        importance = taken(made.state[:, :, 1] / made.state[:, :, 2], made.action).detach()
        losses = -taken(made.state[:, :, 0], made.action) * made.cum_return.detach()
        return importance * (losses.sum() if self._reference_broadcast else losses)


class REINFORCEBl1(ValueDecision):
    """With a learned baseline, that of the first action."""

    _values_per_action = True

    def _weighted_return(self, state: Tensor, action: Tensor, cum_return: Tensor) -> Tensor:
        return cum_return

    def _losses(self, made: Experience) -> Tensor:
        advantage = (self._weighted_return(made.state, made.action, made.cum_return) - made.state[:, 0, 1]).detach()
        target = torch.where(made.is_terminal, made.final_reward, made.next_state[:, :, 1].max(1)[0] - made.reward).detach()
        return -taken(made.state[:, :, 0], made.action) * advantage + squared(taken(made.state[:, :, 1], made.action) - target)


class REINFORCEBl2(REINFORCEBl1):
    """Like :class:`REINFORCEBl1`, with the return weighted against the uniform policy."""

    def _weighted_return(self, state: Tensor, action: Tensor, cum_return: Tensor) -> Tensor:
        return cum_return / (self._num_selections * taken(state[:, :, 0].softmax(1), action))
