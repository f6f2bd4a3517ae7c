"""The joint loss of modules and decisions."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops.policy_gradients import discounted_returns, handles
from .decision import Decision, Experience, Followed
from .rewards import CorrectClassifiedReward, final_rewards, is_users, rewards_of
from .trajectory import States, Step, Trajectory, batch_of


class _Decisions(NamedTuple):
    """The decisions of one step, rows of samples without one undefined."""

    loss_func: Any
    reward_func: Any
    mask: Tensor | None  # bool [B]; None: all samples have one
    rows: Tensor | None  # int64 [n], where the mask is true, ascending; None: all
    states: States
    actions: Tensor  # [B]
    rewards: Tensor  # [B], per-action
    add_rewards: Tensor | None  # [B], from users


class Loss(nn.Module):
    """The loss of the modules, and that of the decisions that led to them; a drop-in for ``PytorchRouting.CoreLayers.Loss``.

    A sample's final reward follows from its module loss, and is added to the reward of its last decision. Each decision gets
    its per-action reward, divided by the number of the sample's decisions, and (with `normalize_per_action_rewards`)
    multiplied by the size of the final reward. A return is a decision's reward plus `discounting` times the next one's return.

    Args:
        pytorch_loss_func: a loss of torch, whose ``reduction`` is set to ``"none"``, or any callable that returns one value
            (or several, whose sum is taken) a sample.
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

        Also ``(ysest, ystrue, mys)``, the order of the reference's README.

        Args:
            ysest: ``[B, ...]``, the network's output.
            mys: the meta information of the batch, also reordered, or a part of it.
            ystrue: ``[B, ...]``, the targets.
            external_losses: ``[B, ...]``, in place of `pytorch_loss_func`; summed for each sample.

        Raises:
            ValueError: neither targets nor losses, one loss for the whole batch, or arguments of different lengths.
        """
        if isinstance(mys, Tensor) and ystrue is not None:
            mys, ystrue = ystrue, mys
        losses = self._module_losses(ysest, ystrue, external_losses)
        if ystrue is None:
            if isinstance(self._reward_func, CorrectClassifiedReward):
                raise ValueError("Loss: ystrue must be given for CorrectClassifiedReward, got None")
            ystrue = ysest.new_zeros(ysest.size(0))
        lengths = {"losses": losses.size(0), "mys": len(mys), "ysest": ysest.size(0), "ystrue": ystrue.size(0)}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"Loss: losses, mys, ysest and ystrue must have one element a sample, got {lengths}")
        final = final_rewards(self._reward_func, losses, ysest, ystrue)
        wide = torch.float64 if torch.float64 in (final.dtype, losses.dtype) else torch.float32
        final = final if final.dtype is wide else final.to(wide)
        of_batch = batch_of(mys)
        if of_batch is None:
            decisions = _of_samples(list(mys), final)
        else:
            trajectory, index = of_batch
            index = None if index is None else index.to(final.device)
            _keep(trajectory, index, final)
            found = (_of_batch(step, index) for step in trajectory.batch_steps)
            decisions = [step for step in found if step is not None]
        routing = self._routing_loss(decisions, final)
        return (losses.mean(), routing.mean()) if reduce else (losses, routing)

    def _module_losses(self, ysest: Tensor, ystrue: Tensor | None, external_losses: Tensor | None) -> Tensor:
        """``[B]``."""
        if external_losses is not None:
            return external_losses.reshape(external_losses.size(0), -1).sum(1)
        if ystrue is None:
            raise ValueError("Loss: ystrue or external_losses must be given, got neither")
        losses: Tensor = self._loss_func(ysest, ystrue)
        if losses.dim() == 0:
            raise ValueError("Loss: pytorch_loss_func must return a loss for each sample, got one number")
        return losses if losses.dim() == 1 else losses.flatten(1).sum(1)

    def _routing_loss(self, steps: Sequence[_Decisions], final: Tensor) -> Tensor:
        """``[B]``, of the dtype of the final rewards, or of a wider one that losses have."""
        if not steps:
            return torch.zeros_like(final)
        known = self._known_rewards(steps, final)
        count = 1 if known is not None else _count(steps, final)
        calls: dict[Hashable, list[tuple[_Decisions, Followed]]] = {}
        later = _Later()
        for j in reversed(range(len(steps))):
            step = steps[j]
            reward, cum_return = self._earned(step, later, final, count) if known is None else known[j]
            made = Followed(*later.after(step), reward, cum_return, final)
            calls.setdefault(_key(step), []).append((step, made))
            later.push(step, cum_return)
        found = [self._of_call(made_in_call[::-1], final) for made_in_call in calls.values()]
        if self._clear:
            for reward_func in {id(s.reward_func): s.reward_func for s in steps if s.reward_func is not None}.values():
                reward_func.clear()
        if len(found) == 1 and (found[0].dtype, found[0].shape) == (final.dtype, final.shape):
            return found[0]
        return sum(found, torch.zeros_like(final))

    def _known_rewards(self, steps: Sequence[_Decisions], final: Tensor) -> list[tuple[Tensor, Tensor]] | None:
        """Each step's :meth:`_earned`, where one call gives all of them: all samples made all decisions; no gradient."""
        own = [step.rewards for step in steps]
        if any(step.mask is not None or step.add_rewards is not None for step in steps):
            return None
        if not handles((final, *own)) or any(t.requires_grad or t.shape != final.shape for t in (final, *own)):
            return None
        rewards, returns = discounted_returns(own, final, self._npar, self._discounting)
        return list(zip(rewards, returns, strict=True))

    def _earned(self, step: _Decisions, later: _Later, final: Tensor, count: Tensor | int) -> tuple[Tensor, Tensor]:
        """The rewards and the returns ``[B]`` of a step."""
        reward = step.rewards if step.add_rewards is None else step.rewards + step.add_rewards
        reward = reward / count
        if self._npar:
            reward = reward * final.abs()
        if isinstance(later.is_last, Tensor):
            reward = torch.where(later.is_last, reward + final, reward)
        elif later.is_last:
            reward = reward + final
        return reward, reward if later.cum_return is None else reward.add(later.cum_return, alpha=self._discounting)

    @staticmethod
    def _of_call(made: Sequence[tuple[_Decisions, Followed]], like: Tensor) -> Tensor:
        """``[B]``, the losses of decisions that one function has, summed for each sample."""
        rows = [step.rows for step, _ in made]
        parts = [p if r is None else _select(p, r) for (_, p), r in zip(made, rows, strict=True)]
        experience, loss_func = Experience(parts), made[0][0].loss_func
        losses = loss_func.__self__._losses(experience) if _is_ours(loss_func) else loss_func(*experience.columns())
        if losses.dim() > 1:  # of a user's class
            losses = losses.flatten(1).sum(1)
        if all(r is None for r in rows):
            return losses.view(len(rows), -1).sum(0) if len(rows) > 1 else losses  # type: ignore[no-any-return]
        total = torch.zeros_like(like)
        for part, r in zip(losses.split([p.action.size(0) for p in parts]), rows, strict=True):
            total = total + part if r is None else total.index_add(0, r, part.to(total.dtype))
        return total


def _count(steps: Sequence[_Decisions], like: Tensor) -> Tensor | int:
    """How many decisions each sample made; at least 1."""
    if all(step.mask is None for step in steps):
        return len(steps)
    count = torch.zeros_like(like)
    for step in steps:
        count += 1 if step.mask is None else step.mask
    return count.clamp(min=1)


def _is_ours(loss_func: Any) -> bool:
    """Whether it only hands on to the ``_losses`` of its layer."""
    return getattr(loss_func, "__func__", None) is Decision._loss


def _key(step: _Decisions) -> Hashable:
    """The same for decisions whose losses may be computed in one call."""
    if _is_ours(step.loss_func):
        losses = type(step.loss_func.__self__)._losses
        if getattr(losses, "is_row_by_row", False):
            return losses, step.states.num_selections, step.states.rows.dim()
    return step.loss_func, step.states.num_selections  # a static method may serve layers of several sizes


def _select(made: Followed, rows: Tensor) -> Followed:
    """Of the samples `rows`."""
    columns: list[Any] = [c[rows] if isinstance(c, Tensor) else c.select(rows) if isinstance(c, States) else c for c in made]
    return Followed(*columns)


class _Later:
    """What follows a step, while the steps are walked from the last to the first.

    Attributes:
        is_last: bool ``[B]``, or for all, whether a sample has no later decision.
        cum_return: ``[B]``, the return of its next decision, 0 if it has none; None: no sample has.
    """

    def __init__(self) -> None:
        self.is_last: Tensor | bool = True
        self.cum_return: Tensor | None = None
        self._steps: list[_Decisions] = []  # the nearest one last

    def push(self, step: _Decisions, cum_return: Tensor) -> None:
        self._steps.append(step)
        if step.mask is None:
            self.is_last, self.cum_return = False, cum_return
        else:
            others = 0 if self.cum_return is None else self.cum_return
            self.is_last, self.cum_return = self.is_last & ~step.mask, torch.where(step.mask, cum_return, others)

    def after(self, step: _Decisions) -> tuple[Tensor | bool, States, States, Tensor, Tensor | None]:
        """The first columns of :class:`Followed`."""
        terminal: Tensor | bool = True
        states, actions = step.states, None
        unknown: Tensor | None = None  # samples whose next decision was not met yet; None: all
        for later in reversed(self._steps):
            met = later.mask if unknown is None else unknown if later.mask is None else unknown & later.mask
            if later.states.num_selections == step.states.num_selections:
                if met is None:
                    return False, step.states, later.states, step.actions, later.actions
                channels = step.states.whole().size(2)
                terminal = terminal & ~met
                states = States(
                    torch.where(met.view(-1, 1, 1), _with_channels(later.states.whole(), channels), states.whole())
                )
                actions = torch.where(met, later.actions, 0 if actions is None else actions)
            if met is None or later.mask is None:
                break
            unknown = ~met if unknown is None else unknown & ~met
        return terminal, step.states, states, step.actions, actions


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


def _of_batch(step: Step, index: Tensor | None) -> _Decisions | None:
    """A step of a trajectory, of its samples `index`; None if none of these made a decision."""
    states, actions, mask, rows = step.stored, step.actions, step.mask, step.deciding
    if not _is_ours(step.decision._loss):
        states = States(step.padded_states())
    if index is not None:
        states, actions = states.select(index), actions[index]
        if mask is not None:
            mask = mask[index]
            rows = mask.nonzero().view(-1)
            if rows.numel() == 0:
                return None
    rewards = rewards_of(step.reward_func, states.whole() if is_users(step.reward_func) else states.rows, actions, mask)
    return _Decisions(step.decision._loss, step.reward_func, mask, rows, states, actions, rewards, None)


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
            decisions.append(_Decisions(loss_func, reward_func, mask, index, States(whole[0]), *whole[1:]))
    return decisions
