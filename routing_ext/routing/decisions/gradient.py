"""Decisions with a gradient through the sample."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import grad

from ..decision import Agents, Choice, Decision, Experience, row_by_row
from .common import normalised


class GumbelSoftmaxSampling(nn.Module):
    """The temperature of the relaxed samples."""

    def __init__(self, temperature_init: float = 1.0) -> None:
        super().__init__()
        self._temperature = temperature_init

    def set_temperature(self, temperature: float) -> None:
        self._temperature = temperature


class GumbelSoftmax(Decision):
    """The straight-through Gumbel-softmax estimator (Jang et al., 2017; Maddison et al., 2017).

    It has no loss: the batch is multiplied with 1, whose gradient is that of the relaxed sample.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gumbel_softmax = GumbelSoftmaxSampling()
        self.set_exploration(self._exploration)

    def set_exploration(self, exploration: float) -> None:
        """Sets the temperature to ``0.1 + 9.9 * exploration``."""
        self._gumbel_softmax.set_temperature(0.1 + 9.9 * exploration)

    def _decide(self, agents: Agents) -> Choice:
        logits = agents.evaluate(self._policy)
        ys = agents.ys
        if self.training:
            (uniform,) = agents.draws.uniform(logits.size(1))
            gumbel = -torch.log(-torch.log(uniform + 1e-20) + 1e-20)
            relaxed = ((logits + gumbel) / self._gumbel_softmax._temperature).softmax(1)
            actions = relaxed.max(1)[1] if agents.replayed is None else agents.replayed
            factor = 1 + (relaxed - relaxed.detach()).gather(1, actions.unsqueeze(1))
            ys = ys * factor.view(-1, *[1] * (ys.dim() - 1))
        else:
            actions = logits.max(1)[1] if agents.replayed is None else agents.replayed
        return Choice(ys, actions, None, logits)

    @row_by_row
    def _losses(self, made: Experience) -> Tensor:
        return torch.zeros_like(made.reward)


class RELAX(Decision):
    """The RELAX estimator (Grathwohl et al., 2018), with a learned control variate.

    Its loss is zero: when it is computed, the gradients of its own parameters are added to their ``.grad`` directly.
    """

    def __init__(self, *args: Any, value_net: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        features = self._in_features
        if features is not None:  # else there are given networks
            features = (features if isinstance(features, int) else math.prod(features)) + self._num_selections
        self._value_mem = self._construct_policy_storage(1, self._pol_type, value_net, self._pol_hidden_dims, in_dim=features)
        self._temperature = 0.5
        self._value_coefficient = 0.5
        self._entropy_coefficient = 0.01

    def set_exploration(self, exploration: float) -> None:
        """Sets the temperature to ``0.1 + 9.9 * exploration``."""
        self._temperature = 0.1 + 9.9 * exploration

    def _decide(self, agents: Agents) -> Choice:
        logits = agents.evaluate(self._policy)
        sampled, relaxed, conditional = self._sample(agents, normalised(logits))
        if agents.replayed is not None:
            actions = agents.replayed
        else:
            actions = sampled if self.training else logits.max(1)[1]
        both = (agents.evaluate(self._value_mem, torch.cat((agents.xs, z), 1)) for z in (relaxed, conditional))
        state = torch.stack((logits, *(values.expand_as(logits) for values in both)), 2)
        return Choice(agents.ys, actions, None, state)

    def _sample(self, agents: Agents, log_probs: Tensor, eps: float = 1e-8) -> tuple[Tensor, Tensor, Tensor]:
        """An action, its relaxation, and a relaxation given the action."""
        first, second = agents.draws.uniform(log_probs.size(1), 2)
        scores = log_probs - torch.log(-torch.log(first + eps) + eps)
        sampled = scores.argmax(1) if agents.replayed is None else agents.replayed
        chosen = torch.zeros_like(scores).scatter(1, sampled.unsqueeze(1), 1.0)
        top = log_probs - torch.log(-torch.log(second + eps) + eps)
        others = log_probs - torch.log(-torch.log(second) + torch.exp(log_probs - top * chosen))
        conditional = chosen * top + (1 - chosen) * others
        return sampled, (scores / self._temperature).softmax(1), (conditional / self._temperature).softmax(1)

    def _losses(self, made: Experience) -> Tensor:
        zero = torch.zeros_like(made.reward)
        if not self.training or not torch.is_grad_enabled():
            return zero
        chosen = torch.zeros_like(made.state[:, :, 0]).scatter(1, made.action.unsqueeze(1), 1.0)
        policy, values, conditional = made.state[:, :, 0].softmax(1), made.state[:, :, 1], made.state[:, :, 2]
        entropy = -(policy.log() * policy).sum()
        parameters = list(self._policy.parameters())
        of_entropy = grad(entropy, parameters, retain_graph=True, allow_unused=True)
        of_variate = grad((values - conditional).sum(), parameters, retain_graph=True, create_graph=True, allow_unused=True)
        of_policy = grad(
            policy,
            parameters,
            grad_outputs=-(made.cum_return.unsqueeze(1) - conditional) * (chosen - policy),
            retain_graph=True,
            create_graph=True,
            allow_unused=True,
        )
        estimates = [p if p is None or v is None else p - v for p, v in zip(of_policy, of_variate, strict=True)]
        variance = sum(e.square().sum() for e in estimates if e is not None)
        for parameter, estimate, e in zip(parameters, estimates, of_entropy, strict=True):
            if estimate is None:
                continue
            gradient = (estimate if e is None else estimate - self._entropy_coefficient * e).detach()
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        if isinstance(variance, Tensor) and variance.requires_grad:
            (variance * self._value_coefficient).backward(retain_graph=True)
        return zero
