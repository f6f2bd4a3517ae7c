"""Decisions with a gradient through the sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import grad

from ..decision import Agents, Choice, Decision, Experience, row_by_row
from .common import normalised


class GumbelSoftmaxSampling(nn.Module):
    """Samples from a categorical distribution, with the gradient of relaxed ones.

    Args:
        temperature_init: of the relaxed samples.
        hard: whether a call returns one-hot samples.
        hook: of the gradient of the relaxed samples, as for :meth:`torch.Tensor.register_hook`.
    """

    def __init__(self, temperature_init: float = 1.0, hard: bool = True, hook: Any = None) -> None:
        super().__init__()
        self._temperature = temperature_init
        self._hard = hard
        self._hook = hook

    def set_temperature(self, temperature: float) -> None:
        self._temperature = temperature

    def relaxed(self, logits: Tensor, uniform: Tensor | None = None) -> Tensor:
        """``[n, K]``, rows that sum to 1, of ``logits [n, K]`` and as many numbers from U(0, 1), by default drawn here."""
        uniform = torch.rand(logits.shape, device=logits.device) if uniform is None else uniform
        gumbel = -torch.log(-torch.log(uniform + 1e-20) + 1e-20)
        relaxed = ((logits + gumbel) / self._temperature).softmax(1)
        if self._hook is not None and relaxed.requires_grad:
            relaxed.register_hook(self._hook)
        return relaxed

    def sample(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """``(actions [n, 1], factors [n, 1])`` of ``logits [n, K]``; the factors are 1, with the relaxed samples' gradient."""
        relaxed = self.relaxed(logits)
        actions = relaxed.max(1, keepdim=True)[1]
        return actions, straight_through(relaxed, actions)

    def forward(self, logits: Tensor) -> Tensor:
        """Samples ``[n, K]`` of ``logits [n, K]``."""
        relaxed = self.relaxed(logits)
        if not self._hard:
            return relaxed
        one_hot = torch.zeros_like(relaxed).scatter(1, relaxed.max(1, keepdim=True)[1], 1.0)
        return one_hot - relaxed.detach() + relaxed


def straight_through(relaxed: Tensor, actions: Tensor) -> Tensor:
    """``[n, 1]``: 1, with the gradient of ``relaxed [n, K]`` at ``actions [n, 1]``."""
    return 1 + (relaxed - relaxed.detach()).gather(1, actions)


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
            relaxed = self._gumbel_softmax.relaxed(logits, *agents.draws.uniform(logits.size(1)))
            actions = relaxed.max(1)[1] if agents.replayed is None else agents.replayed
            factor = straight_through(relaxed, actions.unsqueeze(1))
            ys = (ys * factor.view(-1, *[1] * (ys.dim() - 1))).to(ys.dtype)
        else:
            actions = logits.max(1)[1] if agents.replayed is None else agents.replayed
        return Choice(ys, actions, None, logits)

    @row_by_row
    def _losses(self, made: Experience) -> Tensor:
        return torch.zeros_like(made.reward)


def entropy(probs: Tensor) -> Tensor:
    """``[n]`` of ``probs [n, K]``."""
    return -(probs.log() * probs).sum(1)


def relaxed_pair(
    log_probs: Tensor, temperature: float, uniform: Sequence[Tensor] | Tensor, actions: Tensor | None = None, eps: float = 1e-8
) -> tuple[Tensor, Tensor, Tensor]:
    """``(actions [n], relaxations [n, K], relaxations given the actions [n, K])``.

    Args:
        log_probs: ``[n, K]``, of the distributions.
        temperature: of the relaxations.
        uniform: two tensors ``[n, K]`` from U(0, 1).
        actions: int64 ``[n]``, in place of those that the first of these samples.
        eps: keeps logarithms finite.
    """
    first, second = uniform
    scores = log_probs - torch.log(-torch.log(first + eps) + eps)
    actions = scores.argmax(1) if actions is None else actions
    chosen = torch.zeros_like(scores).scatter(1, actions.unsqueeze(1), 1.0)
    top = log_probs - torch.log(-torch.log(second + eps) + eps)
    others = log_probs - torch.log(-torch.log(second) + torch.exp(log_probs - top * chosen))
    conditional = chosen * top + (1 - chosen) * others
    return actions, (scores / temperature).softmax(1), (conditional / temperature).softmax(1)


def make_samples(logits: Tensor, temp: float, eps: float = 1e-8) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`relaxed_pair` of ``logits [n, K]`` and numbers drawn here."""
    return relaxed_pair(normalised(logits), temp, torch.rand((2, *logits.shape), device=logits.device), eps=eps)


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
        uniform = agents.draws.uniform(logits.size(1), 2)
        sampled, relaxed, conditional = relaxed_pair(normalised(logits), self._temperature, uniform, agents.replayed)
        if agents.replayed is not None:
            actions = agents.replayed
        else:
            actions = sampled if self.training else logits.max(1)[1]
        xs = agents.xs
        both = (agents.evaluate(self._value_mem, torch.cat((xs, z.to(xs.dtype)), 1)) for z in (relaxed, conditional))
        state = torch.stack((logits, *(values.expand_as(logits) for values in both)), 2)
        return Choice(agents.ys, actions, None, state)

    def _losses(self, made: Experience) -> Tensor:
        zero = torch.zeros_like(made.reward)
        if not self.training or not torch.is_grad_enabled():
            return zero
        chosen = torch.zeros_like(made.state[:, :, 0]).scatter(1, made.action.unsqueeze(1), 1.0)
        policy, values, conditional = made.state[:, :, 0].softmax(1), made.state[:, :, 1], made.state[:, :, 2]
        of_policies = entropy(policy).sum()
        parameters = list(self._policy.parameters())
        of_entropy = grad(of_policies, parameters, retain_graph=True, allow_unused=True)
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
