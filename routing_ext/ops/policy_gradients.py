"""What decisions by policy gradients compute, in float32 or float64, with one call each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._devices import check_devices

_sample = torch.ops.routing_ext.sample_categorical.default
_invert = torch.ops.routing_ext.sample_by_inversion.default
_states = torch.ops.routing_ext.preference_states.default
_taken = torch.ops.routing_ext.taken.default
_wpl_losses = torch.ops.routing_ext.wpl_losses.default
_latest = torch.ops.routing_ext.latest_actions.default
_collaboration = torch.ops.routing_ext.collaboration_rewards.default
_returns = torch.ops.routing_ext.discounted_returns.default

_DTYPES = (torch.float32, torch.float64)
_DEVICES = ("cpu", "cuda", "meta")


def handles(tensors: Sequence[Tensor]) -> bool:
    """Whether the functions here take these: float32 or float64, all alike, and no graph is being traced."""
    dtype, device = tensors[0].dtype, tensors[0].device
    if dtype not in _DTYPES or device.type not in _DEVICES or torch.compiler.is_compiling():
        return False
    for t in tensors:  # a loop costs less than all()
        if t.dtype != dtype or t.device != device:
            return False
    return True


def sample_categorical(
    probs: Tensor, row_of: Tensor | None, order: Tensor | None, sizes: Sequence[int], batch_size: int
) -> Tensor:
    """Actions, sampled with the stream of random numbers of :meth:`torch.Tensor.exponential_` on torch's own generator.

    Args:
        probs: ``[n, K]``, in proportion to the probabilities.
        row_of: int64 ``[B]``, which row is a sample's; None: they have one each, in order.
        order: int64, the samples that decide, sorted by agent, at least ``sum(sizes)``; None: all, in batch order.
        sizes: how many of them each agent has.
        batch_size: B.

    Returns:
        int64 ``[B]``: the first largest of ``probs / q`` with q exponentially distributed, 0 where no decision is made.

    Raises:
        RuntimeError: wrong shape or dtype; on the CPU also an index out of range (on CUDA a row out of range makes action 0).
    """
    return _sample(probs, row_of, order, sizes, batch_size)  # type: ignore[no-any-return]


def sample_by_inversion(
    probs: Tensor, row_of: Tensor | None, order: Tensor | None, sizes: Sequence[int], batch_size: int
) -> Tensor:
    """:func:`sample_categorical` with one random number a sample: from the same distribution, but another stream."""
    return _invert(probs, row_of, order, sum(sizes), batch_size)  # type: ignore[no-any-return]


def preference_states(preferences: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """``(states [n, K, 2], probs [n, K])``: logarithms of probabilities in proportion to preferences, and values.

    Args:
        preferences: the rows of the agents' tables, ``[., K]`` each; the least of a row has probability 0, up to 1e-6.
        values: likewise.

    ``states`` are differentiable any number of times, ``probs`` are not.
    """
    return _states(preferences, values)  # type: ignore[no-any-return]


def taken(rows: Sequence[Tensor], row_of: Sequence[Tensor], actions: Sequence[Tensor]) -> list[Tensor]:
    """The values of N decisions at their actions; differentiable any number of times.

    Args:
        rows: of each step ``[n, K, C]``, or ``[n, K]`` for a single channel.
        row_of: int64, of each step, the row of each decision; empty: they have one each, in order.
        actions: int64, of each step.

    Returns:
        ``[N]`` for each of the C channels.

    Raises:
        RuntimeError: wrong shape or dtype; on the CPU also an index out of range (on CUDA the value is zero).
    """
    return _taken(rows, row_of, actions)  # type: ignore[no-any-return]


def wpl_losses(
    rows: Sequence[Tensor], row_of: Sequence[Tensor], actions: Sequence[Tensor], returns: Sequence[Tensor]
) -> Tensor:
    """The losses ``[N]`` of the weighted policy learner; differentiable in ``rows`` any number of times.

    Args:
        rows: of each step ``[n, K, C]``, log-probabilities and values, as :func:`preference_states` gives them, come first.
        row_of, actions: as for :func:`taken`.
        returns: of each step, one for each action, constants.

    Raises:
        RuntimeError: wrong shape or dtype; on the CPU also an index out of range (on CUDA the loss is zero).
    """
    return _wpl_losses(rows, row_of, actions, returns)  # type: ignore[no-any-return]


def latest_actions(known: Tensor | None, actions: Tensor, kept: int) -> Tensor:
    """The last `kept` of ``known`` and then ``actions``, int64 ``[.]``; a tensor of its own.

    Raises:
        RuntimeError: wrong shape or dtype.
    """
    return _latest(known, actions, kept)  # type: ignore[no-any-return]


def collaboration_rewards(history: Tensor, actions: Tensor, num_actions: int, ratio: float) -> tuple[Tensor, Tensor]:
    """``(frequencies [num_actions], rewards [n])``, float32: `ratio` times how often each action was taken, and of `actions`.

    The rewards have the ratio once more.

    Args:
        history: int64, the actions that were taken.
        actions: int64 ``[n]``.
        num_actions: K.
        ratio: of the rewards.

    Raises:
        RuntimeError: wrong shape or dtype; on the CPU also an action outside ``[0, num_actions)`` (on CUDA it does not count,
            and its reward is zero).
    """
    return _collaboration(history, actions, num_actions, ratio)  # type: ignore[no-any-return]


def discounted_returns(
    rewards: Sequence[Tensor], final_reward: Tensor, normalise: bool, discounting: float
) -> tuple[list[Tensor], list[Tensor]]:
    """``(rewards, returns)``, ``[B]`` of each of S decisions that all samples made; no gradient.

    Args:
        rewards: ``[B]``, of each step; divided by S.
        final_reward: ``[B]``, added to the last step's.
        normalise: multiply the rewards of the steps with the size of the final one.
        discounting: of the next step's return.

    Raises:
        RuntimeError: wrong shape or dtype.
    """
    return _returns(rewards, final_reward, normalise, discounting)  # type: ignore[no-any-return]


@torch.library.register_fake("routing_ext::sample_categorical")
def _(probs: Tensor, row_of: Tensor | None, order: Tensor | None, sizes: Sequence[int], batch: int) -> Tensor:
    check_devices("sample_categorical", probs, row_of=row_of, order=order)
    return probs.new_empty((batch,), dtype=torch.int64)


@torch.library.register_fake("routing_ext::sample_by_inversion")
def _(probs: Tensor, row_of: Tensor | None, order: Tensor | None, count: int, batch: int) -> Tensor:
    check_devices("sample_by_inversion", probs, row_of=row_of, order=order)
    return probs.new_empty((batch,), dtype=torch.int64)


@torch.library.register_fake("routing_ext::latest_actions")
def _(known: Tensor | None, actions: Tensor, kept: int) -> Tensor:
    check_devices("latest_actions", actions, known=known)
    count = actions.size(0) + (0 if known is None else known.size(0))
    return actions.new_empty((min(count, kept),))


@torch.library.register_fake("routing_ext::collaboration_rewards")
def _(history: Tensor, actions: Tensor, num_actions: int, ratio: float) -> tuple[Tensor, Tensor]:
    check_devices("collaboration_rewards", history, actions=actions)
    return (
        history.new_empty((num_actions,), dtype=torch.float32),
        actions.new_empty(actions.shape, dtype=torch.float32),
    )


@torch.library.register_fake("routing_ext::discounted_returns")
def _(
    rewards: Sequence[Tensor], final_reward: Tensor, normalise: bool, discounting: float
) -> tuple[list[Tensor], list[Tensor]]:
    check_devices("discounted_returns", final_reward, rewards=rewards)
    made = [[final_reward.new_empty(final_reward.shape) for _ in rewards] for _ in range(2)]
    return made[0], made[1]


@torch.library.register_fake("routing_ext::preference_states_forward")
def _(preferences: Sequence[Tensor], values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    check_devices("preference_states", preferences[0], preferences=preferences, values=values)
    rows, selections = sum([t.size(0) for t in preferences]), preferences[0].size(1)
    return preferences[0].new_empty((rows, selections, 2)), preferences[0].new_empty((rows, selections))


@torch.library.register_fake("routing_ext::preference_states_backward")
def _(grad: Tensor, preferences: Sequence[Tensor]) -> Tensor:
    check_devices("preference_states", grad, preferences=preferences)
    return grad.new_empty((2, sum([t.size(0) for t in preferences]), preferences[0].size(1)))


@torch.library.register_fake("routing_ext::taken_forward")
def _(rows: Sequence[Tensor], row_of: Sequence[Tensor], actions: Sequence[Tensor]) -> Tensor:
    check_devices("taken", rows[0], rows=rows, row_of=row_of, actions=actions)
    channels = rows[0].size(2) if rows[0].dim() == 3 else 1
    return rows[0].new_empty((channels, sum([t.size(0) for t in actions])))


@torch.library.register_fake("routing_ext::taken_backward")
def _(
    grads: Sequence[Tensor],
    scale: Tensor | None,
    rows: Sequence[Tensor],
    row_of: Sequence[Tensor],
    actions: Sequence[Tensor],
) -> Tensor:
    check_devices("taken_backward", rows[0], grads=grads, scale=scale, rows=rows, row_of=row_of, actions=actions)
    return rows[0].new_empty((sum([t.numel() for t in rows]),))


@torch.library.register_fake("routing_ext::wpl_losses_forward")
def _(
    rows: Sequence[Tensor], row_of: Sequence[Tensor], actions: Sequence[Tensor], returns: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    check_devices("wpl_losses", rows[0], rows=rows, row_of=row_of, actions=actions, returns=returns)
    count = sum([t.size(0) for t in actions])
    return rows[0].new_empty((count,)), rows[0].new_empty((2, count))
