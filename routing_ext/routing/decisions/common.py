"""What several algorithms share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..decision import Agents, Choice, Decision


def squared(difference: Tensor) -> Tensor:
    return difference * difference


class PolicyDecision(Decision):
    """Samples from a categorical distribution; in evaluation, takes its mode."""

    def _sample(self, agents: Agents, logits: Tensor, probs: Tensor | None = None) -> Tensor:
        """``actions [B]`` of rows of values. `logits` are normalised; `probs`: where they are not the softmax of these."""
        if agents.replayed is not None:
            return agents.replayed
        if not self.training:
            return agents.of_samples(logits.max(1)[1])
        probs = logits.detach().softmax(1) if probs is None else probs.detach()
        return agents.draws.categorical(probs, agents.row_of)

    def _explored(self, agents: Agents, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``(actions [B], probs [n, K], sampling probs [n, K])``.

        A sample follows the policy with probability `exploration`, else it takes the mode. The sampling probabilities are the
        reference's importance weights' denominators.
        """
        probs, greedy = logits.softmax(1), logits.max(1)[1]
        if not self.training or logits.size(1) == 1:
            return agents.of_samples(greedy) if agents.replayed is None else agents.replayed, probs, probs
        if agents.replayed is not None:
            actions = agents.replayed
        else:
            explore, on_policy = agents.draws.explore_and_categorical(self._exploration, probs.detach(), agents.row_of)
            actions = torch.where(explore, on_policy, agents.of_samples(greedy))
        largest = logits.max(1, keepdim=True)[0]
        sampling = probs.detach() * (1 / (1 - largest)) * (self._exploration / (logits.size(1) - 1))
        return actions, probs, sampling.scatter(1, greedy.unsqueeze(1), 1 - self._exploration)


class ValueDecision(PolicyDecision):
    """Keeps a second storage, ``_value_mem``, for the value of a sample."""

    _values_per_action = False

    def __init__(self, *args: Any, value_net: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        width = self._num_selections if self._values_per_action else 1
        self._value_mem = self._construct_policy_storage(width, self._pol_type, value_net, self._pol_hidden_dims)

    def _decide(self, agents: Agents) -> Choice:
        logits, values = agents.rows(self._policy, self._value_mem)
        logits = normalised(logits)
        actions = self._sample(agents, logits)
        return Choice(agents.ys, actions, None, torch.stack((logits, values.expand_as(logits)), 2))


def normalised(logits: Tensor) -> Tensor:
    return logits - logits.logsumexp(1, keepdim=True)


def explored_or_greedy(decision: Decision, agents: Agents, values: Tensor) -> tuple[Tensor, Tensor]:
    """``(actions [B], explored [B])`` of rows of values.

    The best action, or with probability `exploration`, when training, any. In evaluation, whether to explore is drawn all the
    same, as in the reference.
    """
    greedy = agents.of_samples(values.max(1)[1])
    if agents.replayed is not None:
        return agents.replayed, agents.replayed != greedy
    if not decision.training:
        return greedy, agents.draws.explore(decision._exploration)
    explore, other = agents.draws.explore_and_any(decision._exploration, values.size(1))
    return torch.where(explore, other, greedy), explore
