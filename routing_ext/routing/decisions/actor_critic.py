"""A policy and a critic."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ..decision import Agents, Choice, Experience
from .common import ValueDecision, normalised, squared, taken
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
        logits = normalised(agents.evaluate(self._policy) / self._pg_temperature)
        actions = self._sample(agents, logits)
        state = torch.stack((logits, agents.evaluate(self._qvalue_mem)), 2)
        return Choice(agents.ys, actions, self._eval_stochastic_are_exp(actions, state), state)

    def _losses(self, made: Experience) -> Tensor:
        value = taken(made.state[:, :, 1], made.action)
        target = torch.where(made.is_terminal, made.final_reward, made.next_state[:, :, 1].max(1)[0] - made.reward).detach()
        return -taken(made.state[:, :, 0], made.action) * (made.cum_return - value).detach() + squared(value - target)


class WPL(ActorCritic):
    """The weighted policy learner (Abdallah and Lesser, 2006), which takes the other agents' learning into account."""

    def _decide(self, agents: Agents) -> Choice:
        preferences = agents.evaluate(self._policy)
        preferences = preferences - preferences.min(1, keepdim=True)[0] + 1e-6
        probs = preferences / preferences.sum(1, keepdim=True)
        eps = torch.finfo(probs.dtype).eps
        logits = probs.clamp(eps, 1 - eps).log()
        actions = self._sample(agents, logits, probs)
        state = torch.stack((logits, agents.evaluate(self._qvalue_mem)), 2)
        return Choice(agents.ys, actions, self._eval_stochastic_are_exp(actions, state), state)

    def _losses(self, made: Experience) -> Tensor:
        policy, value = taken(made.state[:, :, 0], made.action), taken(made.state[:, :, 1], made.action)
        gradient = made.cum_return - value
        projected = torch.where(gradient < 0, 1 + gradient, 2 - gradient)
        return squared(policy - (policy * projected).detach()) + squared(value - made.cum_return.detach())


class AAC(ValueDecision):
    """Advantage actor-critic. The critic has one value a sample; its loss is the mean over all decisions of the layer."""

    def _losses(self, made: Experience) -> Tensor:
        advantage = made.cum_return - made.state[:, 0, 1]
        return _actor(made, advantage) + squared(advantage).mean()


class BootstrapAAC(AAC):
    """Like :class:`AAC`, with the reward and the next value in place of the return."""

    def _losses(self, made: Experience) -> Tensor:
        next_value = torch.where(made.is_terminal, 0, made.next_state[:, 0, 1])
        advantage = next_value + made.reward - made.state[:, 0, 1]
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
        logits = normalised(agents.evaluate(self._policy))
        values = agents.evaluate(self._value_mem).expand_as(logits)
        actions, probs, sampling = self._explored(agents, logits)
        state = torch.stack((logits, probs, sampling, values), 2)
        return Choice(agents.ys, actions, self._eval_stochastic_are_exp(actions, state), state)

    def _losses(self, made: Experience) -> Tensor:
        importance = taken(made.state[:, :, 1] / made.state[:, :, 2], made.action).detach()
        advantage = made.cum_return.detach() - made.state[:, 0, 3]
        losses = _actor(made, advantage)
        if self._reference_broadcast:
            return importance * losses.sum() + squared(advantage).sum()
        return importance * losses + squared(advantage).mean()


def _actor(made: Experience, advantage: Tensor) -> Tensor:
    return -taken(made.state[:, :, 0], made.action) * advantage.detach()
