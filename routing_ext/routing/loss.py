"""The joint loss of modules and decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .rewards import CorrectClassifiedReward, final_rewards, rewards_of
from .trajectory import Step, Trajectory, batch_of


class _Decisions(NamedTuple):
    """The decisions of one step, rows of samples without one undefined."""

    loss_func: Any
    reward_func: Any
    mask: Tensor | None  # bool [B]; None: all samples have one
    states: Tensor  # [B, K, C]
    actions: Tensor  # [B]
    rewards: Tensor  # [B], per-action
    add_rewards: Tensor | float  # [B], from users


class Loss(nn.Module):
    """The loss of the modules, and that of the decisions that led to them; a drop-in for ``PytorchRouting.CoreLayers.Loss``.

    A sample's final reward follows from its module loss, and is added to the reward of its last decision. Each decision gets
    its per-action reward, divided by the number of the sample's decisions, and (with `normalize_per_action_rewards`)
    multiplied by the size of the final reward. A return is a decision's reward plus `discounting` times the next one's return.

    Args:
        pytorch_loss_func: a loss of torch, whose ``reduction`` is set to ``"none"``, or any callable that returns one value
            (or one row of values) a sample.
        routing_reward_func: the final reward, a :class:`~routing_ext.routing.BaseReward`.
        discounting: of later rewards. The reference stores it and leaves it out.
        clear: forget the per-action rewards' histories after each call.
        normalize_per_action_rewards: see above.
    """

    def __init__(
        self,
        pytorch_loss_func: Any,
        routing_reward_func: Any,
        discounting: float = 1.0,
        clear: bool = False,
        normalize_per_action_rewards: bool = True,
    ) -> None:
        super().__init__()
        self._loss_func = pytorch_loss_func
        if hasattr(pytorch_loss_func, "reduction"):
            pytorch_loss_func.reduction = "none"
        self._reward_func = routing_reward_func
        self._discounting = discounting
        self._clear = clear
        self._npar = normalize_per_action_rewards

    def forward(
        self,
        ysest: Tensor,
        mys: Any,
        ystrue: Tensor | None = None,
        external_losses: Tensor | None = None,
        reduce: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """``(module_loss, routing_loss)``, each a mean, or ``[B]`` if not `reduce`.

        Args:
            ysest: ``[B, ...]``, the network's output.
            mys: the meta information of the batch, also reordered, or a part of it.
            ystrue: ``[B, ...]``, the targets.
            external_losses: ``[B, ...]``, in place of `pytorch_loss_func`; summed for each sample.

        Raises:
            ValueError: neither targets nor losses, or arguments of different lengths.
        """
        if ystrue is None and external_losses is None:
            raise ValueError("Loss: ystrue or external_losses must be given, got neither")
        if external_losses is not None:
            losses = external_losses.reshape(external_losses.size(0), -1).sum(1)
        else:
            losses = self._loss_func(ysest, ystrue)
            if losses.dim() > 1:
                losses = losses.sum(1).reshape(-1)
        if ystrue is None:
            if isinstance(self._reward_func, CorrectClassifiedReward):
                raise ValueError("Loss: ystrue must be given for CorrectClassifiedReward, got None")
            ystrue = ysest.new_zeros(ysest.size(0))
        lengths = {"losses": losses.size(0), "mys": len(mys), "ysest": ysest.size(0), "ystrue": ystrue.size(0)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"Loss: losses, mys, ysest and ystrue must have one element a sample, got {lengths}")
        final = final_rewards(self._reward_func, losses, ysest, ystrue)
        found = batch_of(mys)
        if found is None:
            decisions = _of_samples(list(mys), final)
        else:
            trajectory, index = found
            index = None if index is None else index.to(final.device)
            _keep(trajectory, index, final)
            decisions = [_of_batch(step, index) for step in trajectory.batch_steps]
        routing = self._routing_loss(decisions, final)
        return (losses.mean(), routing.mean()) if reduce else (losses, routing)

    def _routing_loss(self, steps: Sequence[_Decisions], final: Tensor) -> Tensor:
        batch = final.size(0)
        routing = torch.zeros(batch, dtype=torch.promote_types(final.dtype, torch.float32), device=final.device)
        if not steps:
            return routing
        count = torch.zeros(batch, dtype=torch.float32, device=final.device)
        for step in steps:
            count += 1 if step.mask is None else step.mask
        by_loss: dict[Any, list[tuple[Tensor | None, tuple[Tensor, ...]]]] = {}
        later = _Later(batch, final.device)
        for step in reversed(steps):
            terminal, next_states, next_actions = later.after(step)
            reward = (step.rewards + step.add_rewards) / count.clamp(min=1)
            if self._npar:
                reward = reward * final.abs()
            reward = torch.where(later.is_last, reward + final, reward)
            cum_return = reward + self._discounting * later.cum_return
            columns: tuple[Tensor, ...] = (
                terminal,
                step.states,
                next_states,
                step.actions,
                next_actions,
                reward,
                cum_return,
                final,
            )
            rows = None if step.mask is None else step.mask.nonzero().view(-1)
            by_loss.setdefault(step.loss_func, []).append((rows, columns if rows is None else tuple(c[rows] for c in columns)))
            later.push(step, cum_return)
        for loss_func, calls in by_loss.items():
            calls.reverse()
            joined = [c[0] if len(calls) == 1 else torch.cat(c) for c in zip(*(columns for _, columns in calls), strict=True)]
            losses = loss_func(*joined)
            if losses.dim() > 1:  # of a user's class
                losses = losses.flatten(1).sum(1)
            begin = 0
            for rows, columns in calls:
                part = losses[begin : begin + columns[3].size(0)]
                begin += columns[3].size(0)
                routing = routing + part if rows is None else routing.index_add(0, rows, part.to(routing.dtype))
        if self._clear:
            for reward_func in {id(s.reward_func): s.reward_func for s in steps if s.reward_func is not None}.values():
                reward_func.clear()
        return routing


class _Later:
    """What follows a step, while the steps are walked from the last to the first.

    Attributes:
        is_last: bool ``[B]``, whether a sample has no later decision.
        cum_return: ``[B]``, the return of its next decision, else 0.
    """

    def __init__(self, batch: int, device: torch.device) -> None:
        self.is_last = torch.ones(batch, dtype=torch.bool, device=device)
        self.cum_return = torch.zeros(batch, dtype=torch.float32, device=device)
        self._steps: list[_Decisions] = []  # the nearest one last

    def push(self, step: _Decisions, cum_return: Tensor) -> None:
        self._steps.append(step)
        if step.mask is None:
            self.is_last, self.cum_return = torch.zeros_like(self.is_last), cum_return
        else:
            self.is_last, self.cum_return = self.is_last & ~step.mask, torch.where(step.mask, cum_return, self.cum_return)

    def after(self, step: _Decisions) -> tuple[Tensor, Tensor, Tensor]:
        """``(is_terminal [B], next states [B, K, C], next actions [B])``."""
        terminal = torch.ones_like(self.is_last)
        states, actions = step.states, torch.zeros_like(step.actions)
        unknown: Tensor | None = None  # samples whose next decision was not met yet; None: all
        for later in reversed(self._steps):
            met = later.mask if unknown is None else unknown if later.mask is None else unknown & later.mask
            if later.states.size(1) == step.states.size(1):
                their_states = _with_channels(later.states, step.states.size(2))
                if met is None:
                    return torch.zeros_like(terminal), their_states, later.actions
                terminal = terminal & ~met
                states = torch.where(met.view(-1, 1, 1), their_states, states)
                actions = torch.where(met, later.actions, actions)
            if met is None or later.mask is None:
                break
            unknown = ~met if unknown is None else unknown & ~met
        return terminal, states, actions


def _with_channels(states: Tensor, channels: int) -> Tensor:
    missing = channels - states.size(2)
    return states[:, :, :channels] if missing <= 0 else torch.nn.functional.pad(states, (0, missing))


def _keep(trajectory: Trajectory, index: Tensor | None, final: Tensor) -> None:
    """Leaves the final rewards for the user to see."""
    if index is None:
        trajectory.final_rewards = final
        return
    known = trajectory.final_rewards
    if known is None:
        known = final.new_full((len(trajectory),), torch.nan)
    trajectory.final_rewards = known.index_copy(0, index, final)


def _of_batch(step: Step, index: Tensor | None) -> _Decisions:
    """A step of a trajectory, of its samples `index`."""
    ours = type(step.decision)._loss.__module__.partition(".")[0] == __name__.partition(".")[0]
    states, actions, mask = step.states if ours else step.padded_states(), step.actions, step.mask
    if index is not None:
        states, actions, mask = states[index], actions[index], None if mask is None else mask[index]
    rewards = rewards_of(step.reward_func, states, actions, mask)
    return _Decisions(step.decision._loss, step.reward_func, mask, states, actions, rewards, 0.0)


def _of_samples(samples: Sequence[Any], final: Tensor) -> list[_Decisions]:
    """The steps of objects like :class:`~.trajectory.SampleMetaInformation`: of all first steps, those alike together, etc."""
    decisions = []
    for sample, reward in zip(samples, final, strict=True):
        sample.final_reward = reward
        sample.finalize()
    for j in range(max((len(sample.steps) for sample in samples), default=0)):
        alike: dict[Any, list[int]] = {}
        for i, sample in enumerate(samples):
            if j < len(sample.steps):
                step = sample.steps[j]
                alike.setdefault((step["loss_funcs"], step["reward_func"], step["states"].shape[1:]), []).append(i)
        for (loss_func, reward_func, _), rows in alike.items():
            steps = [samples[i].steps[j] for i in rows]
            states = torch.cat([step["states"] for step in steps])
            actions = torch.stack([step["actions"].reshape(()) for step in steps])
            rewards = rewards_of(reward_func, states, actions)
            given = (step.get("add_rewards") for step in steps)
            added = torch.stack([torch.as_tensor(0.0 if a is None else a, device=final.device).reshape(()) for a in given])
            index = torch.tensor(rows, device=final.device)
            whole = [
                t.new_zeros((len(samples), *t.shape[1:])).index_copy(0, index, t) for t in (states, actions, rewards, added)
            ]
            mask = torch.zeros(len(samples), dtype=torch.bool, device=final.device).index_fill(0, index, True)
            decisions.append(_Decisions(loss_func, reward_func, mask, *whole))
    return decisions
