"""A policy and a critic."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ...ops.policy_gradients import handles, preference_states, wpl_losses
from ..decision import Agents, Choice, Experience, row_by_row
from .common import ValueDecision, normalised, squared
from .reinforce import REINFORCE


class ActorCritic(REINFORCE):
    """The critic has a value for each action."""

    def __init__(self, *args: Any, qvalue_net: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if qvalue_net is None:
            qvalue_net = copy.deepcopy(kwargs.get("policy_net", kwargs.get("approx_module")))
        self._qvalue_mem = self._construct_policy_storage(
            self._num_selections, self._pol_type, qvalue_net, self._pol_hidden_dims
        )

    def _decide(self, agents: Agents) -> Choice:
        logits, values = agents.rows(self._policy, self._qvalue_mem)
        logits = normalised(logits / self._pg_temperature)
        actions = self._sample(agents, logits)
        return Choice(agents.ys, actions, None, torch.stack((logits, values), 2))

    @row_by_row
    def _losses(self, made: Experience) -> Tensor:
        value = made.taken(1)
        target = torch.where(made.is_terminal, made.final_reward, made.best_next(1) - made.reward).detach()
        return -made.taken(0) * (made.cum_return - value).detach() + squared(value - target)


class WPL(ActorCritic):
    """The weighted policy learner (Abdallah and Lesser, 2006), which takes the other agents' learning into account."""

    def _decide(self, agents: Agents) -> Choice:
        policies, values = agents.parts(self._policy, self._qvalue_mem)
        if handles((policies[0], values[0])):  # the agents' are alike
            states, probs = preference_states(policies, values)
        else:
            states, probs = _states_of(policies, values)
        # To sample, the probabilities are enough.
        logits = probs if self.training else states[:, :, 0]
        return Choice(agents.ys, self._sample(agents, logits, probs), None, states)

    @row_by_row
    def _losses(self, made: Experience) -> Tensor:
        arguments, returns = made.for_operators(), made.cum_returns
        if arguments is not None and handles((arguments[0][0], *returns)) and not any(t.requires_grad for t in returns):
            return wpl_losses(*arguments, returns)
        policy, value = made.taken(0), made.taken(1)
        gradient = made.cum_return - value
        projected = torch.where(gradient < 0, 1 + gradient, 2 - gradient)
        return squared(policy - (policy * projected).detach()) + squared(value - made.cum_return.detach())


def _states_of(policies: list[Tensor], values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """:func:`~routing_ext.ops.policy_gradients.preference_states`, of any device and dtype."""
    preferences = torch.cat(policies)
    shifted = preferences - preferences.min(1, keepdim=True)[0] + 1e-6
    probs = shifted / shifted.sum(1, keepdim=True)
    eps = torch.finfo(probs.dtype).eps
    return torch.stack((probs.clamp(eps, 1 - eps).log(), torch.cat(values)), 2), probs


class AAC(ValueDecision):
    """Advantage actor-critic. The critic has one value a sample; its loss is the mean over all decisions of the layer."""

    def _losses(self, made: Experience) -> Tensor:
        advantage = made.cum_return - made.first(1)
        return _actor(made, advantage) + squared(advantage).mean()


class BootstrapAAC(AAC):
    """Like :class:`AAC`, with the reward and the next value in place of the return."""

    def _losses(self, made: Experience) -> Tensor:
        next_value = torch.where(made.is_terminal, 0, made.first_next(1))
        advantage = next_value + made.reward - made.first(1)
        return _actor(made, advantage) + squared(advantage).mean()


class EGreedyAAC(AAC):
    """Like :class:`AAC`. Takes the mode, or with probability `exploration` a sample; advantages are weighted for importance.

    Args:
        reference_broadcast: as for :class:`EGreedyREINFORCE`; and the critic's loss counts once for each decision.
    """

    def __init__(self, *args: Any, reference_broadcast: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reference_broadcast = reference_broadcast

    def _decide(self, agents: Agents) -> Choice:
        logits, values = agents.rows(self._policy, self._value_mem)
        logits = normalised(logits)
        actions, probs, sampling = self._explored(agents, logits)
        return Choice(agents.ys, actions, None, torch.stack((logits, probs, sampling, values.expand_as(logits)), 2))

    def _losses(self, made: Experience) -> Tensor:
        importance = (made.taken(1) / made.taken(2)).detach()
        advantage = made.cum_return.detach() - made.first(3)
        losses = _actor(made, advantage)
        if self._reference_broadcast:
            return importance * losses.sum() + squared(advantage).sum()
        return importance * losses + squared(advantage).mean()


def _actor(made: Experience, advantage: Tensor) -> Tensor:
    return -made.taken(0) * advantage.detach()
