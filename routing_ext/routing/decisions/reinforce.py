"""Likelihood-ratio policy gradients (Williams, 1992)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..decision import Agents, Choice, Experience, row_by_row
from .common import PolicyDecision, ValueDecision, normalised, squared


class REINFORCE(PolicyDecision):
    """The log-probability of the action, weighted with the return."""

    def set_exploration(self, exploration: float) -> None:
        """With ``set_pg_temp``, sets the softmax temperature to ``0.1 + 9.9 * exploration``; else does nothing."""
        if self._set_pg_temp:
            self._pg_temperature = 0.1 + 9.9 * exploration

    def _decide(self, agents: Agents) -> Choice:
        (logits,) = agents.rows(self._policy)
        logits = normalised(logits / self._pg_temperature)
        return Choice(agents.ys, self._sample(agents, logits), None, logits)

    @row_by_row
    def _losses(self, made: Experience) -> Tensor:
        return -made.taken(0) * made.cum_return.detach()


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
        (logits,) = agents.rows(self._policy)
        logits = normalised(logits)
        actions, probs, sampling = self._explored(agents, logits)
        return Choice(agents.ys, actions, None, torch.stack((logits, probs, sampling), 2))

    def _losses(self, made: Experience) -> Tensor:
        importance = (made.taken(1) / made.taken(2)).detach()
        losses = -made.taken(0) * made.cum_return.detach()
        return importance * (losses.sum() if self._reference_broadcast else losses)


class REINFORCEBl1(ValueDecision):
    """With a learned baseline, that of the first action."""

    _values_per_action = True

    def _weighted_return(self, made: Experience) -> Tensor:
        return made.cum_return

    def _losses(self, made: Experience) -> Tensor:
        advantage = (self._weighted_return(made) - made.first(1)).detach()
        target = torch.where(made.is_terminal, made.final_reward, made.best_next(1) - made.reward).detach()
        return -made.taken(0) * advantage + squared(made.taken(1) - target)


class REINFORCEBl2(REINFORCEBl1):
    """Like :class:`REINFORCEBl1`, with the return weighted against the uniform policy."""

    def _weighted_return(self, made: Experience) -> Tensor:
        # The log-probabilities are normalised.
        return made.cum_return / (self._num_selections * made.taken(0).exp())
