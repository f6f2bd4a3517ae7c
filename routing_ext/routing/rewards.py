"""Rewards of a routing: for the result, and for each choice on the way.

Each method exists for one sample, as in the reference, and with ``_batch`` for all samples of a batch. A class, or a user's
subclass, overrides one of the two; what it overrides is what is called.
"""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.policy_gradients import collaboration_rewards, latest_actions
from .trajectory import padded


def _is_batched(reward: Any, name: str) -> bool:
    """Whether the class says what `name` does for a batch, later than it says what it does for a sample."""
    for cls in type(reward).__mro__:
        if f"{name}_batch" in vars(cls):
            return True
        if name in vars(cls):
            return False
    return False


# ---- for the result ----------------------------------------------------------------------------------------------------


class BaseReward(nn.Module, metaclass=abc.ABCMeta):
    """A reward for the result of a sample: ``forward(loss [1], yest [1, ...], ytrue [1, ...])``, a scalar."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self._scale = scale

    def forward(self, loss: Tensor, yest: Tensor, ytrue: Tensor) -> Tensor:
        return self.forward_batch(loss, yest, ytrue).squeeze()

    def forward_batch(self, loss: Tensor, yest: Tensor, ytrue: Tensor) -> Tensor:
        """``[B]`` for ``loss [B]``, ``yest [B, ...]``, ``ytrue [B, ...]``."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")


class NegLossReward(BaseReward):
    """The negative loss."""

    def forward_batch(self, loss: Tensor, yest: Tensor, ytrue: Tensor) -> Tensor:
        return -loss.detach()


class CorrectClassifiedReward(BaseReward):
    """1 where the class is right, else -1. Estimates and targets are class indices, or a value for each class."""

    def forward_batch(self, loss: Tensor, yest: Tensor, ytrue: Tensor) -> Tensor:
        return 2.0 * (_class_of(yest) == _class_of(ytrue)).float() - 1.0


def _class_of(values: Tensor) -> Tensor:
    batch = values.size(0)
    return values.reshape(batch) if values.numel() == batch else values.argmax(1).reshape(batch)


def final_rewards(reward: Any, loss: Tensor, yest: Tensor, ytrue: Tensor) -> Tensor:
    """``[B]``, by any callable of the form of :class:`BaseReward`."""
    if _is_batched(reward, "forward"):
        return reward.forward_batch(loss, yest, ytrue)  # type: ignore[no-any-return]
    samples = zip(loss.split(1), yest.split(1), ytrue.split(1), strict=True)
    return _stacked((reward(*sample) for sample in samples), loss.device, f"{_name_of(reward)} of a sample")


# ---- for each choice ---------------------------------------------------------------------------------------------------


class PerActionBaseReward:
    """No reward; the base of the per-action rewards, which remember the last actions.

    A class of the user's finds the last choices where the reference has them: in the deques ``_actions``, of tensors ``[]``,
    and ``_dists``, of their states ``[1, K, 5]``. The classes here keep the actions alone, in one tensor.

    Args:
        history_window: how many actions are remembered.
    """

    _actions: Any
    _dists: Any
    _latest: Tensor | None  # int64, the last one last
    _precomp: Tensor | None

    def __init__(self, history_window: int = 256, *args: Any, **kwargs: Any) -> None:
        self._hist_len = history_window
        PerActionBaseReward.clear(self)

    def register(self, dist: Tensor, action: Tensor) -> None:
        """Remembers the choice of a sample. ``dist [1, K, C]``: its state; ``action []``."""
        self.register_batch(dist, action.reshape(1))

    def register_batch(self, states: Tensor, actions: Tensor) -> None:
        """Remembers the choices ``actions [n]`` at ``states [n, K, C]``, in this order."""
        known, new, kept = self._latest, actions.detach(), self._hist_len
        if is_users(self):
            self._actions.extend(new)
            self._dists.extend(padded(states.detach()).split(1))
        else:
            self._latest = latest_actions(None if known is None else known.to(new.device), new.reshape(-1), kept)

    def _remembered(self) -> Tensor:
        """int64 ``[.]``: the last actions, the last one last."""
        latest = self._latest
        if is_users(self) and self._actions:
            latest = torch.stack(list(self._actions))
        if latest is None:
            raise ValueError(f"{type(self).__name__}.get_reward: no action was registered yet")
        return latest

    def get_reward(self, dist: Tensor, action: Tensor) -> Tensor:
        """The reward for the choice of a sample."""
        return self.get_reward_batch(dist, action.reshape(1))

    def get_reward_batch(self, states: Tensor, actions: Tensor) -> Tensor:
        """``[n]`` for the choices ``actions [n]`` at ``states [n, K, C]``."""
        return actions.new_zeros(actions.shape, dtype=torch.float32)

    def clear(self) -> None:
        """Forgets."""
        self._actions, self._dists = deque(maxlen=self._hist_len), deque(maxlen=self._hist_len)
        self._latest = self._precomp = None


class CollaborationReward(PerActionBaseReward):
    """In proportion to how often the action was taken among the last ones: agents that agree are rewarded.

    ``reward_ratio ** 2`` times the action's frequency (the reference applies the ratio twice).
    """

    def __init__(self, reward_ratio: float = 0.1, num_actions: int | None = None, history_len: int = 256) -> None:
        super().__init__(history_len)
        self._reward_ratio = reward_ratio
        self._num_actions = num_actions

    def get_reward_batch(self, states: Tensor, actions: Tensor) -> Tensor:
        history = self._remembered().to(actions.device)
        num_actions = states.size(1) if self._num_actions is None else self._num_actions
        self._precomp, rewards = collaboration_rewards(history, actions.reshape(-1), num_actions, self._reward_ratio)
        return rewards.view(actions.shape)


class RunningAverageCollaborationReward(PerActionBaseReward):
    """Like :class:`CollaborationReward`, with an exponential average in place of the history.

    At each registered action, the average decays by ``10 ** (-1 / history_len)``; the reward is ``reward_ratio`` times it.
    """

    def __init__(self, reward_ratio: float = 0.1, num_actions: int | None = None, history_len: int = 256) -> None:
        super().__init__(history_len)
        self._reward_ratio = reward_ratio
        self._num_actions = num_actions
        self._adaptation_rate = 10 ** (-1.0 / history_len)
        self._actions = None  # then the average [K]

    def clear(self) -> None:
        super().clear()
        self._actions = None

    def register_batch(self, states: Tensor, actions: Tensor) -> None:
        # The average [K] of one action after the other, in closed form: the i-th of n has the weight r^(n - 1 - i) (1 - r),
        # the very first one, whose average is it alone, r^(n - 1). They add up to 1, as after the reference's division.
        count = actions.numel()
        if count == 0:
            return
        rate, num_actions = self._adaptation_rate, states.size(1) if self._num_actions is None else self._num_actions
        ages = torch.arange(count - 1, -1, -1, device=actions.device, dtype=torch.float32)
        weights = rate**ages * (1 - rate)
        if self._actions is None:
            average = torch.zeros(num_actions, device=actions.device)
            weights[0] = rate ** (count - 1)
        else:
            average = self._actions.to(actions.device) * rate**count
        self._actions = average.index_add(0, actions.detach(), weights)

    def get_reward_batch(self, states: Tensor, actions: Tensor) -> Tensor:
        if self._actions is None:
            raise ValueError(f"{type(self).__name__}.get_reward: no action was registered yet")
        average: Tensor = self._actions.to(actions.device)
        return average[actions] * self._reward_ratio


class ManualReward(PerActionBaseReward):
    """A fixed reward for each action.

    Args:
        rewards: of the actions.
        num_actions: how many there are, to check.
    """

    def __init__(self, rewards: Sequence[float], num_actions: int | None = None) -> None:
        super().__init__()
        if num_actions is not None and len(rewards) != num_actions:
            raise ValueError(f"ManualReward: rewards must have {num_actions} values, one an action, got {len(rewards)}")
        self._rewards = torch.tensor(rewards, dtype=torch.float32).reshape(-1)
        self._num_actions = num_actions

    def get_reward_batch(self, states: Tensor, actions: Tensor) -> Tensor:
        self._rewards = self._rewards.to(actions.device)
        return self._rewards[actions]


def is_users(reward: Any) -> bool:
    """Whether it is none of the classes here: then more than the number of actions may matter of the states."""
    return type(reward).__module__ != __name__


def register_all(reward: Any, states: Tensor, actions: Tensor) -> None:
    """The choices ``actions [n]`` at ``states [n, K, C]``, by any object of the form of :class:`PerActionBaseReward`."""
    if _is_batched(reward, "register"):
        return reward.register_batch(states, actions)  # type: ignore[no-any-return]
    states = padded(states)
    for i, action in enumerate(actions):
        reward.register(states[i : i + 1], action)


def rewards_of(reward: Any, states: Tensor, actions: Tensor, mask: Tensor | None = None) -> Tensor:
    """``[n]`` likewise; undefined where the mask (bool ``[n]``) is false."""
    if _is_batched(reward, "get_reward"):
        return reward.get_reward_batch(states, actions)  # type: ignore[no-any-return]
    states, nothing = padded(states), actions.new_zeros((), dtype=torch.float32)
    asked = [True] * actions.numel() if mask is None else mask.tolist()
    rewards = (reward.get_reward(states[i : i + 1], a) if asked[i] else nothing for i, a in enumerate(actions))
    return _stacked(rewards, actions.device, f"{_name_of(reward)}.get_reward")


def _name_of(reward: Any) -> str:
    return getattr(reward, "__name__", type(reward).__name__)


def _stacked(rewards: Iterable[Any], device: torch.device, source: str) -> Tensor:
    """``[n]`` of what the source returned."""
    values = [torch.as_tensor(reward, device=device) for reward in rewards]
    for value in values:
        if value.numel() != 1:
            raise ValueError(f"{source}: must be one number, got {list(value.shape)}")
    return torch.stack([value.reshape(()) for value in values]) if values else torch.zeros(0, device=device)
